"""Where the slices of a DICOM series lie: every voxel in its place, or the refusal that names the fault."""

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from monai_attention.io import dicom
from monai_attention.io.volume import ReadOptions
from tests.io.make_dicom import AFFINE, SCOUT, SHAPE, ras_affine, tilted, write_series
from tests.io.reading_dicom import assert_same_in_world, codes, refusal, refused_by_headers

pytestmark = pytest.mark.usefixtures("nothing_of_the_patient")


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


def test_row_06_a_slice_that_is_turned_by_little_is_no_localizer(tmp_path, values):
    paths = write_series(tmp_path, values, AFFINE)
    last = pydicom.dcmread(paths[-1])
    x, *rest = map(float, last.ImageOrientationPatient)
    last.ImageOrientationPatient = [x + 2e-4, *rest]
    last.save_as(paths[-1])
    assert refusal(tmp_path).code == "E-ORIENTATION"


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
