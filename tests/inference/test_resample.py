import itk
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from monai_attention.inference.resample import labels_on_grid, on_orthogonal_grid, orthogonal_grid, slabs_on_grid
from monai_attention.io.geometry import RAS_LPS, corners, is_sheared, spacing


def _affine(angles, steps, origin=(0.0, 0.0, 0.0), shear=0.0):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(steps)
    affine[:3, 2] += shear * steps[2] * affine[:3, 1] / steps[1]
    affine[:3, 3] = origin
    return affine


def _whole(image, affine, target_affine, target_shape):
    return torch.cat([piece for _, piece in slabs_on_grid(image, affine, target_affine, target_shape)], dim=1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-180, 180), min_size=3, max_size=3),
    st.lists(st.floats(0.5, 3), min_size=3, max_size=3),
    st.floats(-0.3, 0.3),
)
def test_a_linear_image_is_reproduced_on_any_grid(angles, steps, shear):
    source, shape = _affine((10, 20, 30), (1.0, 1.5, 2.0), (5, -3, 2)), (24, 20, 16)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    world = index @ source[:3, :3].T + source[:3, 3]
    image = torch.from_numpy(world @ [0.3, -0.2, 0.5] + 1)[None].float()

    target_shape = (3, 4, 5)
    target = _affine(angles, np.array(steps) * 0.3, shear=shear)  # small enough to stay inside
    middle = source[:3, :3] @ [11.5, 9.5, 7.5] + source[:3, 3]
    target[:3, 3] = middle - target[:3, :3] @ [1, 1.5, 2]
    got = _whole(image, source, target, target_shape)[0].numpy()
    index = np.stack(np.meshgrid(*[np.arange(n) for n in target_shape], indexing="ij"), -1)
    expected = (index @ target[:3, :3].T + target[:3, 3]) @ [0.3, -0.2, 0.5] + 1
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_itk_resamples_to_the_same_values():
    rng = np.random.default_rng(0)
    array = rng.random((9, 8, 7)).astype(np.float32)
    source, target, shape = (
        _affine((10, -20, 30), (1, 2, 3)),
        _affine((-5, 15, 20), (1.5, 1.2, 2), (3, 4, 2)),
        (6, 7, 5),
    )

    def as_itk(values, affine):
        image = itk.image_from_array(np.ascontiguousarray(values.T))
        lps = RAS_LPS @ affine
        image.SetSpacing(spacing(lps))
        image.SetDirection(lps[:3, :3] / spacing(lps))
        image.SetOrigin(lps[:3, 3])
        return image

    reference = as_itk(np.zeros(shape, np.float32), target)
    resampled = itk.resample_image_filter(
        as_itk(array, source), use_reference_image=True, reference_image=reference, default_pixel_value=-1
    )
    expected = itk.array_from_image(resampled).T
    got = _whole(torch.from_numpy(array)[None], source, target, shape)[0].numpy()
    assert (expected >= 0).sum() > 20
    np.testing.assert_allclose(got[expected >= 0], expected[expected >= 0], atol=1e-4)


def test_slabs_are_the_whole(monkeypatch):
    image, affine = torch.randn(3, 10, 9, 8), _affine((10, 20, 30), (1, 1, 1))
    target = _affine((0, 0, 45), (0.7, 0.8, 0.9))
    whole = _whole(image, affine, target, (7, 6, 5))
    monkeypatch.setattr("monai_attention.inference.resample.SLAB_BYTES", 1)
    pieces = list(slabs_on_grid(image, affine, target, (7, 6, 5)))
    assert len(pieces) == 7
    torch.testing.assert_close(torch.cat([piece for _, piece in pieces], dim=1), whole)


def test_labels_at_the_same_grid_are_the_argmax_whatever_the_orientation():
    logits = 5 * torch.randn(4, 6, 7, 8)
    affine = _affine((0, 0, 0), (1, 2, 3))
    expected = logits.argmax(dim=0).numpy()
    flipped = affine @ np.array([[0, -1, 0, 5], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # axes x<-z, y<-(-x), z<-y
    got = labels_on_grid(logits.clone(), affine, flipped, (8, 6, 7))
    for x, y, z in np.ndindex(8, 6, 7):
        assert got[x, y, z] == expected[5 - y, z, x]


def test_probabilities_are_interpolated_and_not_labels():
    logits = torch.zeros(3, 2, 1, 1)
    logits[0, 0], logits[1, 1] = 4.0, 4.0  # class 0, then class 1; class 2 is second everywhere
    logits[2] = 3.5
    halfway = np.eye(4)
    halfway[0, 3] = 0.5
    assert labels_on_grid(logits, np.eye(4), halfway, (1, 1, 1)) == 2  # most probable between the two


def test_outside_of_the_networks_grid_is_background():
    logits = torch.zeros(2, 4, 4, 4)
    logits[1] = 1.0
    target = np.eye(4)
    target[:3, 3] = -3
    labels = labels_on_grid(logits, np.eye(4), target, (10, 10, 10))
    assert labels.sum() == 6**3  # the grid and one voxel around it
    assert labels[2:8, 2:8, 2:8].all()


@pytest.mark.parametrize("shear", [0.27, -0.5])
def test_a_sheared_grid_is_covered_by_perpendicular_axes(shear):
    affine, shape = _affine((10, 20, 30), (1, 1, 2), (4, 5, 6), shear=shear), (10, 12, 14)
    assert is_sheared(affine)
    grid, size = orthogonal_grid(affine, shape)
    assert not is_sheared(grid)
    np.testing.assert_allclose(spacing(grid), spacing(affine))
    index = (np.linalg.inv(grid) @ np.c_[corners(affine, shape), np.ones(8)].T)[:3]
    assert index.min() > -1e-6
    assert (index.max(axis=1) <= np.array(size) - 1 + 1e-6).all()
    assert (index.max(axis=1) > np.array(size) - 2).all()  # and not more than needed


def test_a_ball_stays_a_ball_where_the_grid_was_sheared():
    affine, shape = _affine((0, 0, 0), (1, 1, 1), shear=0.4), (40, 60, 40)
    middle = affine[:3, :3] @ [20, 30, 20] + affine[:3, 3]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    far = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - middle, axis=-1)
    array, grid = on_orthogonal_grid(np.clip(12 - far, 0, 1).astype(np.float32)[None], affine)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in array.shape[1:]], indexing="ij"), -1)
    far = np.linalg.norm(index @ grid[:3, :3].T + grid[:3, 3] - middle, axis=-1)
    assert np.abs(array[0] - np.clip(12 - far, 0, 1))[far < 9].max() < 1e-3
    assert array[0][far > 14].max() < 1e-3
