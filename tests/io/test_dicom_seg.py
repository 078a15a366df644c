"""DICOM SEG round trips: other readers find every label in its place in the patient."""

import traceback
import warnings

import highdicom
import numpy as np
import pydicom
import pytest
from scipy.spatial.transform import Rotation

from monai_attention.errors import Refusal
from monai_attention.io import dicom
from monai_attention.io.dicom_seg import Segment, write_segmentation
from monai_attention.io.volume import ReadOptions
from tests.io.make_dicom import CANARY, ras_affine, tilted, write_enhanced, write_series

SHAPE = (7, 6, 8)
TURN = Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix()
AFFINE = ras_affine((0.8, 0.9, 2.0), TURN, (5, -6, 7))
SEGMENTS = [Segment(1, "one"), Segment(3, "Löwe", ("10200004", "SCT", "Liver")), Segment(4, "empty")]


@pytest.fixture
def labels():
    """Values 0, 1 and 3 (4 is empty), with two slices that hold none."""
    drawn = np.random.default_rng(0).choice(np.uint8([0, 1, 3]), SHAPE)
    drawn[:, :, [2, 7]] = 0
    return drawn


def written(folder, labels, volume, segments=SEGMENTS):
    path = folder / "out.seg.dcm"
    write_segmentation(path, labels, volume, segments, algorithm_name="net", algorithm_version="1")
    return highdicom.seg.segread(path)


def label_points(labels, affine, value):
    """Centres in RAS mm of the voxels with a value, as a sorted array."""
    index = np.argwhere(labels == value)
    return sorted_points(index @ affine[:3, :3].T + affine[:3, 3])


def frame_points(segmentation, number):
    """The same for a segment, from nothing but its frames' own attributes (as pydicom shows them)."""
    points = []
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    orientation = np.float64(shared.PlaneOrientationSequence[0].ImageOrientationPatient)
    spacing = np.float64(shared.PixelMeasuresSequence[0].PixelSpacing)
    for group, frame in zip(segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            rows, columns = np.nonzero(frame)
            position = np.float64(group.PlanePositionSequence[0].ImagePositionPatient)
            steps = np.outer(columns * spacing[1], orientation[:3]) + np.outer(rows * spacing[0], orientation[3:])
            points.append(position + steps)
    return sorted_points(np.concatenate(points) * [-1, -1, 1])


def sorted_points(points):
    return points[np.lexsort(points.round(3).T)]


def assert_in_place(path, labels, affine):
    segmentation = pydicom.dcmread(path)
    for number, value in ((1, 1), (2, 3)):
        found, true = frame_points(segmentation, number), label_points(labels, affine, value)
        np.testing.assert_allclose(found, true, atol=1e-4)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("tilt", [0.0, 15.0])
@pytest.mark.parametrize("enhanced", [False, True])
def test_row_03_labels_lie_in_place_in_the_patient(tmp_path, labels, backwards, tilt, enhanced):
    affine = tilted(AFFINE, tilt)
    if backwards:
        affine[:3, 2] *= -1
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    if enhanced:
        write_enhanced(tmp_path / "in" / "one.dcm", np.zeros(SHAPE), affine, slices=order)
    else:
        wrong = {"SpacingBetweenSlices": 9, "SliceThickness": None}  # tags that highdicom would believe or miss
        write_series(tmp_path / "in", np.zeros(SHAPE), affine, slices=order, **wrong)
    volume = dicom.read(tmp_path / "in")
    on_grid = labels[:, :, ::-1] if backwards else labels
    segmentation = written(tmp_path, np.ascontiguousarray(on_grid), volume)
    assert_in_place(tmp_path / "out.seg.dcm", labels, affine)
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(2.0)  # along the normal, tilted or not
    if not tilt:  # highdicom itself makes volumes of right-angled stacks only
        back = segmentation.get_volume(combine_segments=True)
        ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ back.affine
        for number, value in ((1, 1), (2, 3)):
            np.testing.assert_allclose(
                label_points(back.array, ras, number), label_points(labels, affine, value), atol=1e-4
            )


def test_segments_are_named_and_coded_and_refer_to_their_sources(tmp_path, labels):
    paths = write_series(tmp_path / "in", np.zeros(SHAPE), AFFINE)
    segmentation = written(tmp_path, labels, dicom.read(tmp_path / "in"))
    assert segmentation.segment_numbers == [1, 2]  # no holes; 4 is empty and left out
    one, liver = segmentation.SegmentSequence
    assert (one.SegmentLabel, liver.SegmentLabel) == ("one", "Löwe")
    assert liver.SegmentDescription == "value 3 of the label map"
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    sources = [pydicom.dcmread(path) for path in paths]
    uids = [source.SOPInstanceUID for source in sources]
    assert {uid for _, _, uid in segmentation.get_source_image_uids()} == set(uids)
    by_source = segmentation.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=True)
    np.testing.assert_array_equal(by_source, np.array([0, 1, 0, 2])[labels].transpose(2, 1, 0))


def test_row_60_the_patient_goes_into_the_segmentation_and_nowhere_else(tmp_path, labels, caplog):
    caplog.set_level("DEBUG")
    procedure = pydicom.Dataset()
    procedure.CodeValue, procedure.CodingSchemeDesignator, procedure.CodeMeaning = "1", "99X", "Schädel"
    odd = {"PatientName": "Müller^Jürgen", "SpecificCharacterSet": "ISO_IR 100", "StudyDate": None}
    odd["ProcedureCodeSequence"] = [procedure]
    write_series(tmp_path / "in", np.zeros(SHAPE), AFFINE, **odd)
    segmentation = written(tmp_path, labels, dicom.read(tmp_path / "in"))
    assert segmentation.PatientID == f"{CANARY}-ID"
    assert segmentation.PatientName == "Müller^Jürgen"  # in UTF-8 now, since names of segments may need it
    assert segmentation.ProcedureCodeSequence[0].CodeMeaning == "Schädel"
    assert not any(CANARY in text or "Müller" in text for text in caplog.messages)


@pytest.mark.parametrize("keyword", ["PatientBirthDate", "PatientSex", "PatientID", "StudyTime"])
def test_row_60_malformed_patient_fields_are_not_quoted(tmp_path, labels, caplog, keyword):
    caplog.set_level("DEBUG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(tmp_path / "in", np.zeros(SHAPE), AFFINE, **{keyword: CANARY * 10})
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_segmentation(
            tmp_path / "out", labels, dicom.read(tmp_path / "in"), SEGMENTS, algorithm_name="n", algorithm_version="1"
        )
    assert not any(CANARY in text for text in caplog.messages)


def test_sources_that_highdicom_cannot_use_are_refused(tmp_path, labels, monkeypatch):
    write_series(tmp_path / "in", np.zeros(SHAPE), AFFINE)
    volume = dicom.read(tmp_path / "in")
    monkeypatch.setattr(highdicom.seg.Segmentation, "_check_segment_numbers", _complaining)
    with pytest.raises(Refusal, match="E-SEG") as caught:
        written(tmp_path, labels, volume)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def _complaining(*unused):
    raise ValueError(f"{CANARY} is wrong")


def test_all_empty_labels_are_written_with_all_segments(tmp_path):
    write_series(tmp_path / "in", np.zeros(SHAPE), AFFINE)
    segmentation = written(tmp_path, np.zeros(SHAPE, np.uint8), dicom.read(tmp_path / "in"))
    assert segmentation.segment_numbers == [1, 2, 3]
    assert not segmentation.pixel_array.any()


def test_emptied_uids_and_jittering_orientations_do_not_stop_it(tmp_path, labels):
    blank = dict.fromkeys(["SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"], "")
    jitter = {"ImageOrientationPatient": lambda k: [1, 1e-6 * k, 0, 0, 1, 0]}
    affine = ras_affine((0.8, 0.9, 2.0))
    write_series(tmp_path / "in", np.zeros(SHAPE), affine, **blank, **jitter)
    segmentation = written(tmp_path, labels, dicom.read(tmp_path / "in"))
    assert_in_place(tmp_path / "out.seg.dcm", labels, affine)
    assert segmentation.StudyInstanceUID
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID


def test_enhanced_frames_with_a_geometry_of_their_own(tmp_path, labels):
    path = write_enhanced(tmp_path / "one.dcm", np.zeros(SHAPE), AFFINE)
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.PlaneOrientationSequence = shared.PlaneOrientationSequence
        group.PixelMeasuresSequence = shared.PixelMeasuresSequence
    del dataset.SharedFunctionalGroupsSequence
    dataset.save_as(path)
    written(tmp_path, labels, dicom.read(path))
    assert_in_place(tmp_path / "out.seg.dcm", labels, AFFINE)


def test_row_01_labels_of_a_resampled_series_return_to_its_slices(tmp_path, labels):
    kept = [0, 1, 3, 4, 5, 7]
    write_series(tmp_path / "in", np.zeros(SHAPE), AFFINE, slices=kept)
    volume = dicom.read(tmp_path / "in", ReadOptions(allow_gaps=True))
    written(tmp_path, labels, volume)
    on_slices = np.zeros_like(labels)
    on_slices[:, :, kept] = labels[:, :, kept]
    assert_in_place(tmp_path / "out.seg.dcm", on_slices, AFFINE)


def test_labels_elsewhere_are_refused_and_nothing_is_written(tmp_path, labels):
    write_series(tmp_path / "in", np.zeros(SHAPE), AFFINE)
    volume = dicom.read(tmp_path / "in")
    volume.affine[0, 3] += 0.1
    with pytest.raises(Refusal, match="E-SEG"):
        written(tmp_path, labels, volume)
    with pytest.raises(ValueError, match=r"got also \[3\]"):
        written(tmp_path, labels, volume, [Segment(1, "one")])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
