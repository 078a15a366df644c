"""Pure functions on 4x4 affines: voxel index -> world mm. World is RAS unless a name says LPS.

ITK and DICOM speak LPS; everything in memory speaks RAS. The conversion happens in this package only.
"""

from __future__ import annotations

import numpy as np

RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Maps RAS world coordinates to LPS ones and back (it is its own inverse)."""

SHEAR_TOLERANCE = 1e-3
"""Largest cosine between two grid axes that still count as perpendicular (0.06 degrees)."""


def spacing(affine: np.ndarray) -> np.ndarray:
    """Distance in mm between neighbouring voxels along each array axis, shape (3,)."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def directions(affine: np.ndarray) -> np.ndarray:
    """Unit vectors of the array axes in world space as columns, shape (3, 3)."""
    return affine[:3, :3] / spacing(affine)


def is_sheared(affine: np.ndarray, tolerance: float = SHEAR_TOLERANCE) -> bool:
    """Whether two array axes are not perpendicular in world space (gantry tilt, a sheared sform)."""
    d = directions(affine)
    return bool(np.abs(d.T @ d - np.eye(3)).max() > tolerance)


def lps_to_ras(affine: np.ndarray) -> np.ndarray:
    """Voxel -> LPS affine to voxel -> RAS affine (and the other way round)."""
    return RAS_LPS @ affine


def corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World coordinates in mm of the centres of the eight corner voxels, shape (8, 3)."""
    index = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1).T
    return index @ affine[:3, :3].T + affine[:3, 3]
