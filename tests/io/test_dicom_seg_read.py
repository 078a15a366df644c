"""A Segmentation is read back onto its series, whoever wrote it and however its frames are ordered."""

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.seg import SegmentationTypeValues
from pydicom.sr.coding import Code

from monai_attention.errors import Refusal
from monai_attention.io import dicom
from monai_attention.io.dicom_seg import Segment, write_segmentation
from monai_attention.io.label_maps import read_labels
from tests.io.make_dicom import AFFINE, CANARY, SHAPE, tilted, write_enhanced, write_series
from tests.refusals import refusal

ORGAN = Code("123037004", "SCT", "Anatomical Structure")
LIVER = Code("10200004", "SCT", "Liver")


@pytest.fixture
def labels():
    """Values 0, 1 and 3, with a slice that holds none."""
    drawn = np.random.default_rng(0).choice(np.uint8([0, 1, 3]), SHAPE)
    drawn[:, :, 2] = 0
    return drawn


def series(folder, affine=AFFINE, **more):
    write_series(folder / "in", np.zeros(SHAPE), affine, **more)
    return dicom.read(folder / "in")


def foreign(folder, pixels, kind=SegmentationTypeValues.BINARY, **more):
    """A Segmentation as other programs write it: frames (slices, rows, columns[, segments]) of two segments."""
    sources = [pydicom.dcmread(path) for path in dicom.read(folder / "in").slice_files]
    described = [
        highdicom.seg.SegmentDescription(k, name, ORGAN, LIVER, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
        for k, name in ((1, "liver"), (2, "tumour"))
    ]
    segmentation = highdicom.seg.Segmentation(
        sources, pixels, kind, described, highdicom.UID(), 2, highdicom.UID(), 1, "m", "n", "1", "s", **more
    )
    segmentation.save_as(folder / "foreign.dcm")
    return folder / "foreign.dcm"


@pytest.mark.parametrize("tilt", [0.0, 15.0])
@pytest.mark.parametrize("enhanced", [False, True])
def test_what_we_write_we_read_with_its_own_values_and_names(tmp_path, labels, tilt, enhanced):
    affine = tilted(AFFINE, tilt)
    if enhanced:
        write_enhanced(tmp_path / "in" / "one.dcm", np.zeros(SHAPE), affine)
        volume = dicom.read(tmp_path / "in")
    else:
        volume = series(tmp_path, affine)
    segments = [Segment(1, "one"), Segment(3, "Löwe"), Segment(4, "empty")]
    path = tmp_path / "seg.dcm"
    write_segmentation(path, labels, volume, segments, algorithm_name="net", algorithm_version="1")
    found = read_labels(path, volume)
    np.testing.assert_array_equal(found.values, labels)
    assert found.names == {1: "one", 3: "Löwe"}


@pytest.mark.parametrize("omit", [False, True])
def test_segments_of_other_programs_have_their_numbers(tmp_path, labels, omit):
    volume = series(tmp_path)
    labels[labels == 3] = 2
    path = foreign(tmp_path, np.ascontiguousarray(labels.transpose(2, 1, 0)), omit_empty_frames=omit)
    found = read_labels(path, volume)
    np.testing.assert_array_equal(found.values, labels)
    assert found.names == {1: "liver", 2: "tumour"}
    (tmp_path / "alone").mkdir()
    path.rename(tmp_path / "alone" / path.name)
    np.testing.assert_array_equal(read_labels(tmp_path / "alone", volume).values, labels)


def test_label_map_segmentations_are_read(tmp_path, labels):
    volume = series(tmp_path)
    labels[labels == 3] = 2
    path = foreign(tmp_path, np.ascontiguousarray(labels.transpose(2, 1, 0)), SegmentationTypeValues.LABELMAP)
    np.testing.assert_array_equal(read_labels(path, volume).values, labels)


def test_row_34_overlapping_and_fractional_segments_are_refused(tmp_path, labels):
    volume = series(tmp_path)
    frames = np.zeros((*labels.transpose(2, 1, 0).shape, 2), np.uint8)
    frames[3, 2, 2] = 1
    assert refusal(read_labels, foreign(tmp_path, frames), volume).code == "E-LABELS"
    path = foreign(tmp_path, frames * 0.5, SegmentationTypeValues.FRACTIONAL)
    assert refusal(read_labels, path, volume).code == "E-LABELS"


def test_row_32_a_segmentation_of_another_series_is_refused(tmp_path, labels):
    series(tmp_path)
    path = foreign(tmp_path, np.ascontiguousarray((labels > 0).astype(np.uint8).transpose(2, 1, 0)))
    elsewhere = AFFINE.copy()
    elsewhere[:3, 3] += 0.4 * AFFINE[:3, 2]
    refused = refusal(read_labels, path, series(tmp_path / "other", elsewhere))
    assert (refused.code, refused.path) == ("E-GRID", path)


def test_damaged_segmentations_are_refused_without_quoting_them(tmp_path, labels, caplog):
    caplog.set_level("DEBUG")
    volume = series(tmp_path)
    path = foreign(tmp_path, np.ascontiguousarray((labels > 0).astype(np.uint8).transpose(2, 1, 0)))
    whole = path.read_bytes()
    for size in range(len(whole) - 1, 400, -len(whole) // 40):
        path.write_bytes(whole[:size])
        with pytest.raises(Refusal) as refused:
            read_labels(path, volume)
        assert CANARY not in str(refused.value)
    assert CANARY not in caplog.text
