"""Displacements in voxels and in mm of the world (RAS), and where the voxels of one grid lie in another.

Affines are float64 (4, 4), voxel index -> RAS mm, as `io.volume.Volume` has them. All of it
is computed in float32 at least, whatever comes in.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monai_attention.registration.fields import identity


def ddf_to_mm(ddf: Tensor, affine: np.ndarray | Tensor) -> Tensor:
    """A displacement in voxels of a grid, in mm along the world's axes.

    Args:
        ddf: shape (B, 3, *S).
        affine: of the grid that the voxels are of: the fixed one.

    Returns:
        Shape (B, 3, *S), RAS mm: the world point p of a voxel comes from p + displacement.
    """
    return _turned(ddf, _matrix(affine)[:3, :3])


def mm_to_ddf(displacement_mm: Tensor, affine: np.ndarray | Tensor) -> Tensor:
    """A displacement in mm along the world's axes (RAS), in voxels of a grid; undoes `ddf_to_mm`."""
    return _turned(displacement_mm, torch.linalg.inv(_matrix(affine))[:3, :3])


def moving_voxels(
    displacement_mm: Tensor, fixed_affine: np.ndarray | Tensor, moving_affine: np.ndarray | Tensor
) -> Tensor:
    """Where each voxel of the fixed grid comes from, in voxels of the moving image's own grid.

    `sampling.sample(moving, moving_voxels(...))` resamples the moving image once, from its original grid.

    Args:
        displacement_mm: shape (B, 3, *S), RAS mm, on the fixed grid.
        fixed_affine: of the fixed grid.
        moving_affine: of the moving image.

    Returns:
        Shape (B, 3, *S), 0 at the centre of the moving image's first voxel.
    """
    between = torch.linalg.inv(_matrix(moving_affine)) @ _matrix(fixed_affine)
    grid = identity(displacement_mm.shape[2:], like=displacement_mm)
    shift = grid.new_tensor(between[:3, 3].tolist()).view(3, *[1] * (grid.ndim - 1))
    return _turned(grid[None], between[:3, :3]) + shift + mm_to_ddf(displacement_mm, moving_affine)


def _matrix(affine: np.ndarray | Tensor) -> Tensor:
    return torch.as_tensor(affine, dtype=torch.float64, device="cpu")


def _turned(field: Tensor, linear: Tensor) -> Tensor:
    """A matrix times the vector at each voxel; by sums, because autocast would round a matrix product."""
    parts = field.to(torch.promote_types(field.dtype, torch.float32)).unbind(1)
    zero = torch.zeros_like(parts[0])
    return torch.stack([sum((m * x for m, x in zip(row, parts, strict=True)), zero) for row in linear.tolist()], dim=1)
