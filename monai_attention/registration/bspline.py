"""Free-form deformation: a dense field from few control points, by cubic B-splines.

Rueckert et al., "Nonrigid registration using free-form deformations: application to breast MR images", IEEE
Transactions on Medical Imaging 18 (1999), doi:10.1109/42.796284.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def control_size(size: Sequence[int], spacing: Sequence[int]) -> list[int]:
    """Control points that a grid of `size` voxels needs along each axis: from one before it to one behind its end."""
    return [-(-(n - 1) // gap) + 3 for n, gap in zip(size, spacing, strict=True)]


def bspline(control: Tensor, spacing: Sequence[int], size: Sequence[int]) -> Tensor:
    """The field that control points make, in their own units; computed in float32 at least.

    Args:
        control: shape (B, C, *G), G as `control_size` says. Control point i of an axis lies at voxel (i - 1) * spacing.
        spacing: voxels between control points along each axis.
        size: voxels of the field along each axis.

    Returns:
        Shape (B, C, *size). Control points on a line give that line; otherwise the field is smoother than they are,
        and does not go through them.
    """
    if list(control.shape[2:]) != control_size(size, spacing):
        raise ValueError(
            f"a field of {tuple(size)} voxels, control points {tuple(spacing)} voxels apart, takes "
            f"{tuple(control_size(size, spacing))} of them; got {tuple(control.shape[2:])}"
        )
    field = control.to(torch.promote_types(control.dtype, torch.float32))
    with torch.autocast(control.device.type, enabled=False):  # it must not round places
        for axis, (gap, n) in enumerate(zip(spacing, size, strict=True), start=2):
            weights = _weights(field.shape[axis], gap, n, like=field)
            field = (field.movedim(axis, -1) @ weights).movedim(-1, axis)
    return field.contiguous()


def _weights(points: int, spacing: int, size: int, *, like: Tensor) -> Tensor:
    """Part of each control point in each voxel along an axis, shape (points, size); at most four in a voxel."""
    voxels = torch.arange(size, device=like.device, dtype=like.dtype)
    places = torch.arange(-1, points - 1, device=like.device, dtype=like.dtype)
    distance = (voxels / spacing - places[:, None]).abs()
    return ((2 - distance).clamp(min=0) ** 3 - 4 * (1 - distance).clamp(min=0) ** 3) / 6
