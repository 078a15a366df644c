"""What reading a DICOM series in a test gives: its refusal, its notes, its voxels in their places."""

import numpy as np
import pytest

from monai_attention.errors import Refusal
from monai_attention.io import dicom


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
