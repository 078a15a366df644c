"""The DICOM gate: which files and series of a folder are read, as one volume, with notes of what was left out."""

import shutil
import warnings

import highdicom
import numpy as np
import pydicom
import pytest

from monai_attention.io import dicom
from monai_attention.io.dicom_headers import Skip
from monai_attention.io.volume import ReadOptions, Requirements
from tests.io.make_dicom import AFFINE, CANARY, SCOUT, SHAPE, tilted, write_enhanced, write_report, write_series
from tests.io.reading_dicom import assert_same_in_world, codes, refusal, refused_by_headers

pytestmark = pytest.mark.usefixtures("nothing_of_the_patient")


def test_agrees_with_highdicom_on_an_orthogonal_series(tmp_path, values):
    paths = write_series(tmp_path, values, AFFINE, RescaleSlope=2, RescaleIntercept=-100)
    volume = dicom.read(tmp_path)
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in paths])
    theirs = theirs.to_patient_orientation("LPS")
    ours = highdicom.Volume(volume.array[0], np.diag([-1, -1, 1, 1]) @ volume.affine, "PATIENT")
    ours = ours.to_patient_orientation("LPS")
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-6)
    np.testing.assert_array_equal(ours.array, theirs.array)
    assert volume.array.dtype == np.float32
    assert volume.affine.dtype == np.float64
    assert volume.modality == "CT"
    assert volume.series_uid == pydicom.dcmread(paths[0]).SeriesInstanceUID


def test_uids_emptied_by_de_identification_do_not_matter(tmp_path, values):
    blank = dict.fromkeys(["SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"], "")
    write_series(tmp_path, values, AFFINE, **blank)
    for path in tmp_path.iterdir():  # after saving, since pydicom needs a class to write
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = ""
        dataset.save_as(path)
    volume = dicom.read(tmp_path)
    assert_same_in_world(volume, values, AFFINE)
    assert volume.series_uid is None


def test_memory_limit_is_checked_before_reading(tmp_path, values, monkeypatch):
    write_series(tmp_path, values, AFFINE)
    monkeypatch.setattr(dicom, "read_frames", None)
    assert refusal(tmp_path, ReadOptions(max_memory=1000)).code == "E-SIZE"


def test_row_02_identical_duplicates_are_dropped(tmp_path, values):
    write_series(tmp_path, values, AFFINE, SeriesInstanceUID="1.2.3", FrameOfReferenceUID="1.2")
    same = {"SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2"}
    write_series(tmp_path, values, AFFINE, slices=[4], prefix="again", **same)
    volume = dicom.read(tmp_path)
    assert_same_in_world(volume, values, AFFINE)
    assert [(note.kind, note.code) for note in volume.notes] == [("repair", "R-DUPLICATE")]
    assert len(volume.slice_files) == SHAPE[2]


def test_row_02_differing_duplicates_are_refused(tmp_path, values):
    same = {"SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2"}
    write_series(tmp_path, values, AFFINE, **same)
    write_series(tmp_path, values + 1, AFFINE, slices=[4], prefix="again", **same)
    error = refusal(tmp_path)
    assert error.code == "E-DUPLICATE"
    assert error.path.name == "slice_004.dcm"
    assert refused_by_headers(tmp_path) == "E-DUPLICATE"


def test_row_04_the_one_series_that_fits_is_taken_with_a_note(tmp_path, values):
    write_series(tmp_path / "a", values, AFFINE, "CT")
    write_series(tmp_path / "b", values + 1, AFFINE, "MR", SeriesInstanceUID="1.2.3")
    volume = dicom.read(tmp_path, requirements=Requirements(modalities=("MR",)))
    assert_same_in_world(volume, values + 1, AFFINE)
    assert any(note.code == "I-SERIES" and "1.2.3" in note.message for note in volume.notes)


def test_row_04_localizers_and_single_images_are_no_candidates(tmp_path, values):
    write_series(tmp_path / "a", values, AFFINE)
    write_series(tmp_path / "b", values, SCOUT, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "c", values, SCOUT, slices=[0])
    write_series(tmp_path / "d", values, AFFINE, SamplesPerPixel=3, PhotometricInterpretation="RGB")
    assert_same_in_world(dicom.read(tmp_path), values, AFFINE)


def test_row_04_several_series_are_listed_and_one_can_be_asked_for(tmp_path, values):
    write_series(tmp_path, values, AFFINE, SeriesInstanceUID="1.2.3", prefix="a")
    write_series(tmp_path, values + 1, AFFINE, SeriesInstanceUID="1.2.4", prefix="b", SeriesNumber=7)
    error = refusal(tmp_path)
    assert error.code == "E-SERIES"
    assert "--series" in error.remedy
    assert "7  CT  7x6x10  1.2.4" in error.message
    assert_same_in_world(dicom.read(tmp_path, ReadOptions(series="1.2.4")), values + 1, AFFINE)
    assert refusal(tmp_path, ReadOptions(series="1.9")).code == "E-SERIES"
    assert_same_in_world(dicom.read(tmp_path, ReadOptions(series=("1.9", "1.2.4"))), values + 1, AFFINE)
    for several in (("1.9",), ("1.2.3", "1.2.4")):
        assert refusal(tmp_path, ReadOptions(series=several)).code == "E-SERIES"


def test_row_08_what_is_no_image_is_counted(tmp_path, values):
    write_series(tmp_path / "deep" / "er", values, AFFINE)
    write_report(tmp_path / "report.dcm")
    (tmp_path / "notes.txt").write_text("not an image" * 50)
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\x08\x00\x10\x00UI\x04\x00" + bytes(range(256)))
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    seen = dicom.scan(tmp_path)
    assert seen.skipped == {Skip.NO_PIXELS: 1, Skip.NOT_DICOM: 3, Skip.UNREADABLE: 1}
    volume = dicom.read(tmp_path)
    assert_same_in_world(volume, values, AFFINE)
    message = next(note.message for note in volume.notes if note.code == "I-SKIPPED")
    assert "3 not DICOM" in message
    assert ("flag", "F-UNREADABLE") in [(note.kind, note.code) for note in volume.notes]
    shutil.rmtree(tmp_path / "deep")
    assert refusal(tmp_path).code == "E-NO-IMAGES"


@pytest.mark.parametrize("tilt", [0.0, 10.0])
def test_row_09_enhanced_frames_are_read_by_their_own_geometry(tmp_path, values, tilt):
    affine = tilted(AFFINE, tilt)
    path = write_enhanced(
        tmp_path / "one.dcm",
        values,
        affine,
        slices=[3, 1, 2, 0, 9, 8, 7, 6, 5, 4],
        slopes=lambda index: 0.5 + index / 2,
    )
    volume = dicom.read(path)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-9)
    np.testing.assert_allclose(volume.array[0], values, atol=2.6)  # slopes up to 5: stored values are rounded
    np.testing.assert_allclose(volume.array[0, :, :, 1], values[:, :, 1], atol=1e-4)
    assert volume.slice_files == (path,)
    assert volume.modality == "MR"


def test_row_09_enhanced_frames_of_two_times_are_refused(tmp_path, values):
    write_enhanced(tmp_path / "one.dcm", values, AFFINE, slices=range(5))
    two_times = np.concatenate([values, values + 1], axis=2)
    affine = AFFINE.copy()
    path = write_enhanced(tmp_path / "two" / "two.dcm", two_times, affine, slices=range(20))
    dataset = pydicom.dcmread(path)
    groups = dataset.PerFrameFunctionalGroupsSequence
    for first, second in zip(groups[:10], groups[10:], strict=True):
        second.PlanePositionSequence = first.PlanePositionSequence
    dataset.save_as(path)
    assert refusal(path).code == "E-4D"


def test_row_09_multi_frame_without_geometry_is_refused(tmp_path, values):
    path = write_enhanced(tmp_path / "one.dcm", values, AFFINE, SharedFunctionalGroupsSequence=None)
    assert refusal(path).code == "E-GEOMETRY"


def test_row_21_several_time_points_are_refused(tmp_path, values):
    same = {"SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2"}
    write_series(tmp_path, values, AFFINE, **same)
    write_series(tmp_path, values + 1, AFFINE, prefix="later", **same)
    error = refusal(tmp_path)
    assert error.code == "E-4D"
    assert "2 different slices" in error.message


def test_row_39_links_in_a_circle_end(tmp_path, values):
    write_series(tmp_path / "ünïcode name", values, AFFINE)
    (tmp_path / "ünïcode name" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "ünïcode name")
    volume = dicom.read(tmp_path)
    assert_same_in_world(volume, values, AFFINE)
    assert not codes(volume)


def test_row_60_burned_in_annotation_is_flagged_and_no_patient_field_leaves(tmp_path, values, caplog):
    # Too long for its kind and of the wrong form: pydicom would quote both in warnings.
    bad = {"PatientID": CANARY * 20, "BurnedInAnnotation": "YES"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(tmp_path, values, AFFINE, **bad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = dicom.read(tmp_path)
    assert [(note.kind, note.code) for note in volume.notes] == [("flag", "F-BURNED-IN")]
    assert CANARY not in repr(volume)
    assert CANARY not in repr(dicom.scan(tmp_path))
    assert any("F-BURNED-IN" in text for text in caplog.messages)
