"""Labels come out on their image's grid, however the file orders its axes, and are never resampled."""

import itertools

import nibabel
import numpy as np

from monai_attention.io.label_maps import read_labels
from monai_attention.io.volume import ReadOptions, Volume
from tests.io.make_volumes import oblique, ramp, write_meta, write_nifti
from tests.refusals import refusal

SHAPE = (4, 5, 6)
LABELS = ramp(*SHAPE)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def image(folder, affine=None):
    return Volume(np.zeros((1, *SHAPE), np.float32), oblique() if affine is None else affine, folder / "image.nii")


def test_row_32_any_order_and_direction_of_axes_gives_the_same_labels(tmp_path):
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            orientation = np.stack([order, flips], axis=1)
            affine = oblique() @ nibabel.orientations.inv_ornt_aff(orientation, SHAPE)
            path = write_nifti(tmp_path / "l.nii", nibabel.apply_orientation(LABELS, orientation), affine)
            np.testing.assert_array_equal(read_labels(path, image(tmp_path)).values, LABELS)


def test_formats_mix_and_empty_label_maps_are_let_in(tmp_path):
    path = write_meta(tmp_path / "l.mha", LABELS, LPS @ oblique())
    np.testing.assert_array_equal(read_labels(path, image(tmp_path)).values, LABELS)
    empty = write_nifti(tmp_path / "empty.nii.gz", np.zeros(SHAPE, np.uint8))
    assert not read_labels(empty, image(tmp_path)).values.any()


def test_row_32_mirrored_labels_are_refused_where_the_file_says_so(tmp_path):
    mirrored = oblique()
    mirrored[:3, 0] *= -1
    path = write_nifti(tmp_path / "l.nii", LABELS, mirrored)
    assert refusal(read_labels, path, image(tmp_path)).code == "E-GRID"


def test_options_of_the_image_do_not_choose_in_the_label_file(tmp_path):
    path = write_nifti(tmp_path / "l.nii", LABELS)
    options = ReadOptions(series="1.2.3", volume=3)
    np.testing.assert_array_equal(read_labels(path, image(tmp_path), options).values, LABELS)
