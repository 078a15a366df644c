"""Displacements in voxels and in mm of the world (RAS).

Affines are float64 (4, 4), voxel index -> RAS mm, as `io.volume.Volume` has them. All of it
is computed in float32 at least, whatever comes in.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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


def _matrix(affine: np.ndarray | Tensor) -> Tensor:
    return torch.as_tensor(affine, dtype=torch.float64, device="cpu")


def _turned(field: Tensor, linear: Tensor) -> Tensor:
    """A matrix times the vector at each voxel; by sums, because autocast would round a matrix product."""
    parts = field.to(torch.promote_types(field.dtype, torch.float32)).unbind(1)
    zero = torch.zeros_like(parts[0])
    return torch.stack([sum((m * x for m, x in zip(row, parts, strict=True)), zero) for row in linear.tolist()], dim=1)
