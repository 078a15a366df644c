"""From one grid to another through world mm, a slab at a time. Affines map voxel index -> RAS mm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_attention.io.geometry import directions, spacing

SLAB_BYTES = 64 * 2**20
"""Largest piece of a resampled image that is held at once."""


def slabs_on_grid(
    image: Tensor, affine: np.ndarray, target_affine: np.ndarray, target_shape: Sequence[int]
) -> Iterator[tuple[slice, Tensor]]:
    """Interpolate an image linearly at the voxel centres of another grid; beyond its edge the edge voxel is repeated.

    Args:
        image: float, shape (C, *S).
        affine: its affine.
        target_affine: affine of the grid to sample on; may be flipped, permuted, oblique, sheared.
        target_shape: voxels of that grid.

    Yields:
        A range of planes along the target's first axis, and the image there, shape (C, planes, Y, Z).
    """
    to_source = np.linalg.inv(affine) @ target_affine
    # grid_sample wants coordinates in reverse axis order, from -1 to 1 at the centres of the outermost voxels.
    reach = np.maximum(np.array(image.shape[1:]) - 1, 1)
    to_unit = np.diag([*(2 / reach), 1.0]) @ to_source
    to_unit[:3, 3] -= np.array(image.shape[1:]) > 1
    matrix = torch.from_numpy(to_unit[2::-1].copy()).to(image)
    x, y, z = (torch.arange(n, device=image.device, dtype=image.dtype) for n in target_shape)
    planes = max(1, SLAB_BYTES // (4 * (image.shape[0] + 3) * len(y) * len(z)))
    within = y[:, None, None] * matrix[:, 1] + z[:, None] * matrix[:, 2] + matrix[:, 3]
    for start in range(0, len(x), planes):
        part = slice(start, min(start + planes, len(x)))
        grid = x[part, None, None, None] * matrix[:, 0] + within
        yield part, F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=True)[0]


def labels_on_grid(
    logits: Tensor, affine: np.ndarray, target_affine: np.ndarray, target_shape: Sequence[int]
) -> np.ndarray:
    """The most probable class at every voxel of another grid, from interpolated probabilities.

    The probabilities are interpolated, not the labels, so borders come out smooth at the target's resolution; only a
    slab of them exists at a time. Outside the network's grid the label is 0.

    Args:
        logits: shape (C, *S); overwritten by the probabilities (softmax over C).
        affine: affine of the network's grid.
        target_affine: affine of the grid the labels are wanted on.
        target_shape: voxels of that grid.

    Returns:
        uint8, shape `target_shape`.
    """
    for plane in logits.unbind(1):
        plane.copy_(plane.softmax(dim=0))
    labels = np.zeros(tuple(target_shape), np.uint8)
    for part, probabilities in slabs_on_grid(logits, affine, target_affine, target_shape):
        labels[part] = probabilities.argmax(dim=0).to(torch.uint8).cpu().numpy()
    # One voxel of tolerance: a grid made by rounding the field of view may end that far inside it.
    _clear_outside(labels, np.linalg.inv(affine) @ target_affine, logits.shape[1:], tolerance=1.0)
    return labels


def map_on_grid(
    values: Tensor, affine: np.ndarray, target_affine: np.ndarray, target_shape: Sequence[int]
) -> np.ndarray:
    """Values (C, *S) interpolated at every voxel of another grid, 0 outside theirs: float32, shape (C, *target_shape).

    See `labels_on_grid`.
    """
    result = np.empty((len(values), *target_shape), np.float32)
    for part, piece in slabs_on_grid(values, affine, target_affine, target_shape):
        result[:, part] = piece.cpu().numpy()
    for channel in result:
        _clear_outside(channel, np.linalg.inv(affine) @ target_affine, values.shape[1:], tolerance=1.0)
    return result


def orthogonal_grid(affine: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """The nearest grid with perpendicular axes that covers a sheared one, with the same spacing.

    Returns:
        Affine and shape.
    """
    step = spacing(affine)
    u, _, vt = np.linalg.svd(directions(affine))
    axes = u @ vt  # the orthogonal matrix nearest to the sheared directions
    corner = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    along = axes.T @ (affine[:3, :3] @ corner + affine[:3, 3:])  # mm along the new axes
    low, high = along.min(axis=1), along.max(axis=1)
    grid = np.eye(4)
    grid[:3, :3] = axes * step
    grid[:3, 3] = axes @ low
    return grid, tuple(int(n) for n in np.ceil((high - low) / step - 1e-6).astype(int) + 1)


def on_orthogonal_grid(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sheared image (C, *S) and its affine -> the same on `orthogonal_grid`, float32, the minimum outside."""
    target_affine, target_shape = orthogonal_grid(affine, array.shape[1:])
    result = np.empty((array.shape[0], *target_shape), np.float32)
    for part, piece in slabs_on_grid(torch.from_numpy(array), affine, target_affine, target_shape):
        result[:, part] = piece.numpy()
    for channel in result:
        inside = np.linalg.inv(affine) @ target_affine
        _clear_outside(channel, inside, array.shape[1:], tolerance=0.5, value=float(channel.min()))
    return result, target_affine


def _clear_outside(
    array: np.ndarray, to_source: np.ndarray, source_shape: Sequence[int], *, tolerance: float, value: float = 0
) -> None:
    """Set voxels whose centre lies outside the source's voxel centres by more than `tolerance` source voxels."""
    _, y, z = (np.arange(n) for n in array.shape)
    within = to_source[:3, 1, None, None] * y[:, None] + to_source[:3, 2, None, None] * z + to_source[:3, 3, None, None]
    low = -tolerance - 1e-6
    high = np.array(source_shape)[:, None, None] - 1 - low
    for x, plane in enumerate(array):
        index = within + x * to_source[:3, 0, None, None]
        plane[((index < low) | (index > high)).any(axis=0)] = value
