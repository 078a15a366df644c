"""The DICOM gate: what is let in lies where the headers say, and every fault gets its answer."""

import logging
import shutil
import warnings

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid
from scipy.spatial.transform import Rotation

from monai_attention.errors import Refusal
from monai_attention.io import dicom
from monai_attention.io.dicom_headers import HEADER_TAGS, Skip, discreet, read_dataset
from monai_attention.io.volume import ReadOptions, Requirements
from tests.io.make_dicom import CANARY, ras_affine, tilted, write_enhanced, write_report, write_series

SHAPE = (7, 6, 10)
AFFINE = ras_affine((0.8, 0.9, 2.0), Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix(), (5, -6, 7))
SCOUT = ras_affine((1.0, 1.0, 1.0), Rotation.from_euler("x", 90, degrees=True).as_matrix())


@pytest.fixture
def values():
    """Different whole numbers in every voxel."""
    return np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32) - 100


@pytest.fixture
def large():
    """Large enough for JPEG 2000's five resolutions."""
    return np.random.default_rng(0).integers(-999, 999, (40, 33, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def nothing_of_the_patient(caplog, monkeypatch):
    """Row 60, for every test of this file: the canary is in no log record and in no refusal."""
    caplog.set_level(logging.DEBUG)
    seen = []
    monkeypatch.setattr(Refusal, "__init__", _listening(Refusal.__init__, seen))
    yield
    for text in [*(record.getMessage() for record in caplog.get_records("call")), *seen]:
        assert CANARY not in text
        assert "19010203" not in text


def _listening(init, seen):
    def listening(self, *args, **kwargs):
        init(self, *args, **kwargs)
        seen.append(str(self))

    return listening


def refusal(path, options=dicom.DEFAULTS, requirements=None):
    """The refusal of reading `path`, the same from headers alone as from reading."""
    with pytest.raises(Refusal) as caught:
        dicom.read(path, options, requirements)
    assert caught.value.remedy or caught.value.code in ("E-TOO-SMALL", "E-NO-IMAGES")
    return caught.value


def refused_by_headers(path):
    """The code that looking at headers gives."""
    with pytest.raises(Refusal) as caught:
        dicom.check_series(dicom.choose(dicom.scan(path)))
    return caught.value.code


def codes(volume):
    return [note.code for note in volume.notes]


def assert_same_in_world(volume, array, affine):
    """Every voxel of `array` is found in `volume` at the same place in mm, with the same value."""
    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), -1).reshape(-1, 3)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    inverse = np.linalg.inv(volume.affine)
    found = world @ inverse[:3, :3].T + inverse[:3, 3]
    assert np.abs(found - found.round()).max() < 1e-3
    x, y, z = found.round().astype(int).T
    assert volume.array.shape[1:] == array.shape
    np.testing.assert_array_equal(volume.array[0, x, y, z], array.reshape(-1))


@settings(max_examples=12, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3), st.floats(0.5, 6)),
    tilt=st.sampled_from([0.0, 0.5, -15.0, 25.0]),
    backwards=st.booleans(),
    order=st.permutations(range(4)),
)
def test_every_voxel_keeps_its_place_on_any_grid(tmp_path_factory, angles, spacing, tilt, backwards, order):
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine = tilted(ras_affine(spacing, turn, (10, 20, 30)), tilt)
    if backwards:
        affine[:3, 2] *= -1
    array = np.arange(3 * 5 * 4, dtype=np.float32).reshape(3, 5, 4)
    folder = tmp_path_factory.mktemp("series")
    paths = write_series(folder, array, affine, slices=order)
    volume = dicom.read(folder)
    assert_same_in_world(volume, array, affine)
    along_z = [paths[order.index(k)] for k in (range(3, -1, -1) if backwards else range(4))]
    assert list(volume.slice_files) == along_z
    assert ("I-TILT" in codes(volume)) == (tilt != 0)


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


def test_a_data_set_without_preamble_is_read(tmp_path, values):
    for path in write_series(tmp_path, values, AFFINE):
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        with path.open("wb") as file:
            pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True)
        assert dicom.is_dicom(path)
    assert_same_in_world(dicom.read(tmp_path), values, AFFINE)


def test_memory_limit_is_checked_before_reading(tmp_path, values, monkeypatch):
    write_series(tmp_path, values, AFFINE)
    monkeypatch.setattr(dicom, "read_frames", None)
    assert refusal(tmp_path, ReadOptions(max_memory=1000)).code == "E-SIZE"


def test_row_01_missing_slices_are_refused_with_their_places(tmp_path, values):
    write_series(tmp_path, values, ras_affine((1, 1, 2.0)), slices=[0, 1, 2, 3, 5, 6, 7, 9])
    error = refusal(tmp_path)
    assert error.code == "E-GAP"
    assert "2 slices are missing" in error.message
    assert "between 6.00 and 10.00 mm, between 14.00 and 18.00 mm" in error.message
    assert "--allow-gaps" in error.remedy
    assert refused_by_headers(tmp_path) == "E-GAP"


@pytest.mark.parametrize(
    ("heights", "distances"),
    [
        ([2.0 * k + (0.3 if k == 4 else 0) for k in range(10)], "1.700 to 2.300 mm"),
        (
            [k + {4: 0.015, 5: -0.015}.get(k, 0) for k in range(10)],
            "0.970 to 1.015 mm",
        ),  # ends agree, neighbours do not
        (
            [2.0 * k + max(0, 0.035 * (k - 5)) for k in range(10)],
            "2.000 to 2.035 mm",
        ),  # neighbours agree, but not all the way
    ],
)
def test_row_01_uneven_slices_are_refused(tmp_path, values, heights, distances):
    write_series(tmp_path, values, ras_affine((1, 1, 2.0)), ImagePositionPatient=lambda k: [0, 0, heights[k]])
    error = refusal(tmp_path)
    assert error.code == "E-GAP"
    assert distances in error.message


def test_row_01_allowed_gaps_are_resampled_at_true_positions(tmp_path):
    ramp = np.broadcast_to(np.arange(10) * 7.0, SHAPE)
    affine = tilted(AFFINE, 12)
    write_series(tmp_path, ramp, affine, slices=[0, 1, 2, 5, 6, 8, 9])
    volume = dicom.read(tmp_path, ReadOptions(allow_gaps=True))
    assert_same_in_world(volume, np.float32(ramp), affine)
    assert "F-GAP" in codes(volume)
    assert len(volume.slice_files) == 7


def test_row_01_a_volume_is_not_invented_from_two_slabs(tmp_path, values):
    positions = [[0.0, 0.0, 2.0 * k + (500 if k > 4 else 0)] for k in range(10)]
    write_series(tmp_path, values, ras_affine((1, 1, 2.0)), ImagePositionPatient=lambda k: positions[k])
    assert refusal(tmp_path, ReadOptions(allow_gaps=True)).code == "E-GAP"


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


def test_row_21_several_time_points_are_refused(tmp_path, values):
    same = {"SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2"}
    write_series(tmp_path, values, AFFINE, **same)
    write_series(tmp_path, values + 1, AFFINE, prefix="later", **same)
    error = refusal(tmp_path)
    assert error.code == "E-4D"
    assert "2 different slices" in error.message


@pytest.mark.parametrize("degrees", [1.0, 15.0])  # highdicom and others take 1 degree for none: 5 mm off at 300 mm
def test_row_03_tilt_gives_a_sheared_affine(tmp_path, values, degrees):
    affine = tilted(ras_affine((1, 1, 3.0)), degrees)
    write_series(tmp_path, values, affine)
    volume = dicom.read(tmp_path)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-9)
    assert f"{degrees:.1f} degrees" in next(note.message for note in volume.notes if note.code == "I-TILT")


def test_row_03_slices_beside_the_line_are_refused(tmp_path, values):
    positions = [[1.0 if k == 5 else 0.0, 0.0, 2.0 * k] for k in range(10)]
    write_series(tmp_path, values, ras_affine((1, 1, 2.0)), ImagePositionPatient=lambda k: positions[k])
    error = refusal(tmp_path)
    assert error.code == "E-GEOMETRY"
    assert error.path.name == "slice_005.dcm"
    assert refused_by_headers(tmp_path) == "E-GEOMETRY"


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


def test_row_05_mixed_orientation_is_refused(tmp_path, values):
    same = {"SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2"}
    write_series(tmp_path, values, ras_affine((1, 1, 1)), **same)
    write_series(tmp_path, values, SCOUT, prefix="other", **same)
    assert refusal(tmp_path).code == "E-ORIENTATION"
    assert refused_by_headers(tmp_path) == "E-ORIENTATION"


@pytest.mark.parametrize("named", [True, False])
def test_row_06_localizers_inside_a_series_are_dropped(tmp_path, values, named):
    same = {"SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2"}
    write_series(tmp_path, values, AFFINE, **same)
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER" if named else "AXIAL"]
    write_series(tmp_path, np.zeros((9, 9, 2)), SCOUT, prefix="scout", ImageType=kind, **same)
    volume = dicom.read(tmp_path)
    assert_same_in_world(volume, values, AFFINE)
    assert [(note.kind, note.code) for note in volume.notes] == [("repair", "R-LOCALIZER")]


@pytest.mark.parametrize(("slices", "strays"), [(10, 3), (30, 4)])  # too large a part, too many
def test_row_06_too_many_strays_are_ambiguous(tmp_path, slices, strays):
    same = {"SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2"}
    write_series(tmp_path, np.zeros((4, 4, slices)), AFFINE, **same)
    write_series(tmp_path, np.zeros((4, 4, strays)), SCOUT, prefix="scout", **same)
    assert refusal(tmp_path).code == "E-ORIENTATION"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_row_07_a_truncated_file_is_refused_by_name(tmp_path, large, syntax, kept):
    paths = write_series(tmp_path, large, AFFINE, transfer_syntax=syntax)
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: int(len(whole) * kept)])
    error = refusal(tmp_path)
    assert (error.code, error.path) == ("E-TRUNCATED", paths[2])
    assert refused_by_headers(tmp_path) == "E-TRUNCATED"


def test_row_07_wherever_a_file_ends_it_is_never_left_out_silently(tmp_path):
    (path,) = write_series(tmp_path, np.zeros((4, 4, 1)), AFFINE, slices=[0])
    whole = path.read_bytes()
    for length in range(132, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(Refusal, match="E-TRUNCATED"):
            dicom.choose(dicom.scan(tmp_path))


def test_row_07_a_damaged_code_stream_is_refused_by_name(tmp_path, large):
    paths = write_series(tmp_path, large, AFFINE, transfer_syntax=JPEG2000Lossless)
    dataset = pydicom.dcmread(paths[3])
    stream = bytearray(dataset.PixelData)
    stream[40:60] = bytes(20)
    dataset.PixelData = bytes(stream)
    dataset.save_as(paths[3])
    error = refusal(tmp_path)
    assert (error.code, error.path) == ("E-TRUNCATED", paths[3])


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


def test_row_39_links_in_a_circle_end(tmp_path, values):
    write_series(tmp_path / "ünïcode name", values, AFFINE)
    (tmp_path / "ünïcode name" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "ünïcode name")
    volume = dicom.read(tmp_path)
    assert_same_in_world(volume, values, AFFINE)
    assert not codes(volume)


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


def test_row_10_colour_and_secondary_captures_are_refused(tmp_path, values):
    write_series(
        tmp_path / "rgb", values, AFFINE, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0
    )
    write_series(tmp_path / "capture", values, AFFINE, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    for name in ("rgb", "capture"):
        assert refusal(tmp_path / name).code == "E-NOT-SCALAR"
        assert refused_by_headers(tmp_path / name) == "E-NOT-SCALAR"


def test_row_11_monochrome1_is_refused_for_ct_and_never_inverted(tmp_path, values):
    write_series(tmp_path / "ct", values, AFFINE, PhotometricInterpretation="MONOCHROME1")
    assert refusal(tmp_path / "ct").code == "E-MONOCHROME1"
    shape = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    write_series(tmp_path / "pt", values, AFFINE, "PT", **shape)
    assert_same_in_world(dicom.read(tmp_path / "pt"), values, AFFINE)


def test_row_12_each_slice_has_its_own_rescale_and_no_window(tmp_path):
    slopes = 0.5 + np.arange(10) / 4
    array = np.random.default_rng(0).integers(-100, 100, SHAPE) * slopes - 10
    window = {"WindowCenter": 5, "WindowWidth": 3}
    write_series(tmp_path, array, AFFINE, "PT", RescaleSlope=lambda k: slopes[k], RescaleIntercept=-10, **window)
    assert_same_in_world(dicom.read(tmp_path), array.astype(np.float32), AFFINE)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_row_13_compressed_pixels_are_decoded(tmp_path, large, syntax):
    write_series(tmp_path, large, AFFINE, transfer_syntax=syntax)
    assert_same_in_world(dicom.read(tmp_path), large, AFFINE)


def test_row_13_a_missing_decoder_is_named_with_its_remedy(tmp_path, large, monkeypatch):
    write_series(tmp_path, large, AFFINE, transfer_syntax=JPEG2000Lossless)
    monkeypatch.setattr(pydicom.pixels.get_decoder(JPEG2000Lossless), "_available", {})
    error = refusal(tmp_path)
    assert error.code == "E-CODEC"
    assert "JPEG 2000" in error.message
    assert "1.2.840.10008.1.2.4.90" in error.message
    assert error.remedy == "pip install 'monai_attention[dicom-codecs]'"
    assert refused_by_headers(tmp_path) == "E-CODEC"


def test_row_25_a_single_slice_is_refused(tmp_path, values):
    write_series(tmp_path, values, AFFINE, slices=[0])
    assert refusal(tmp_path).code == "E-TOO-SMALL"


@pytest.mark.parametrize(
    "odd",
    [
        {"PixelSpacing": lambda k: [1, 1.5] if k == 4 else [1, 1]},
        {"FrameOfReferenceUID": lambda k: generate_uid() if k == 4 else "1.2"},
        {"ImagePositionPatient": lambda k: None if k == 4 else [0, 0, k]},
    ],
    ids=["spacing", "frame of reference", "position"],
)
def test_slices_that_do_not_belong_together_are_refused(tmp_path, values, odd):
    write_series(tmp_path, values, ras_affine((1, 1, 1)), **odd)
    error = refusal(tmp_path)
    assert (error.code, error.path.name) == ("E-GEOMETRY", "slice_004.dcm")


def test_row_60_pydicom_is_counted_not_quoted(tmp_path, values, caplog):
    (path,) = write_series(tmp_path, values, AFFINE, slices=[0])
    assert "PatientName" not in read_dataset(path, HEADER_TAGS)
    with discreet(path):
        warnings.warn(CANARY, UserWarning, stacklevel=1)
        logging.getLogger("pydicom").error(CANARY)
    assert any("1 warnings" in text for text in caplog.messages)  # the fixture looks for the canary


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
