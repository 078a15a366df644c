"""What is taken for a label map."""

import nibabel
import numpy as np
import pytest

from monai_attention.io.read import DEFAULTS
from monai_attention.registration.label_maps import read_label_map, smallest_type
from tests.refusals import refusal


def saved(path, values):
    array = np.zeros((6, 6, 6), np.asarray(values).dtype)
    array.flat[: len(values)] = values
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


@pytest.mark.parametrize("values", [np.float32([0.5]), np.float32([np.nan]), np.uint32([312782546]), np.int32([-1])])
def test_row_34_fractions_and_numbers_that_would_be_rounded_or_cannot_be_counted_are_refused(tmp_path, values):
    error = refusal(read_label_map, saved(tmp_path / "labels.nii", values), DEFAULTS, counted=True)
    assert error.code == "E-LABELS"


def test_negative_labels_and_none_at_all_can_be_warped(tmp_path):
    assert read_label_map(saved(tmp_path / "a.nii", np.int16([-1, 4])), DEFAULTS).array.min() == -1
    assert not read_label_map(saved(tmp_path / "b.nii", np.uint8([0])), DEFAULTS).array.any()


@pytest.mark.parametrize(("largest", "kind"), [(200, np.uint8), (300, np.uint16), (70000, np.uint32)])
def test_the_smallest_type_is_one_that_nifti_has(largest, kind):
    assert smallest_type(np.float32([0, largest])).dtype == kind
    signed = smallest_type(np.float32([-1, largest])).dtype
    assert signed in (np.int16, np.int32)
