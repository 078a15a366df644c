"""From the fixed scan's world to the moving one's, RAS mm: a deformation, then an affine transformation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_attention.registration.fields import ddf_to_affine, identity, invert, jacobian_determinant
from monai_attention.registration.metrics import folds
from monai_attention.registration.sampling import sample
from monai_attention.registration.scan import Scan, transform
from monai_attention.registration.world import mm_to_ddf

FOLDS_PERCENT = 0.1
"""Of voxels; a field that folds at more has no inverse."""

PART_VOXELS = 2**21
"""Points that are mapped at a time."""


@dataclass(frozen=True)
class Transformation:
    """Maps a point p to matrix @ (p + d(p)).

    Args:
        matrix: shape (4, 4), float64.
        ddf: d, in voxels of its grid, shape (1, 3, *S); beyond its grid it is as at the border. None: no deformation.
        grid: affine of that grid, shape (4, 4), float64.
    """

    matrix: Tensor
    ddf: Tensor | None = None
    grid: Tensor | None = None

    def __call__(self, points: Tensor) -> Tensor:
        """Where points (1, 3, *S) go."""
        if self.ddf is None or self.grid is None:
            return transform(points, self.matrix)
        places = transform(points, torch.linalg.inv(self.grid))
        moved = places + sample(self.ddf, places, padding="border")
        return transform(moved, self.matrix @ self.grid)


class Inverse(NamedTuple):
    """An inverse, and how true it is.

    Args:
        transformation: of the inverse; its deformation comes first as well.
        residual_mm: how far points are off at most after going back and there again.
        folds: percent of voxels where the deformation folds, so that going there and back may end elsewhere.
    """

    transformation: Transformation
    residual_mm: float
    folds: float


def inverse(forward: Transformation, *, start: Tensor | None = None) -> Inverse:
    """The transformation back.

    From x = A (p + d(p)), with e the inverse of d: p = A^-1 x + e(A^-1 x) = A^-1 (x + A e(A^-1 x)), without A's shift
    in its last use; that is, the deformation back lies on the grid moved by A, with the same displacements in voxels.

    Args:
        forward: from here.
        start: a guess of the inverse of its ddf.
    """
    back = torch.linalg.inv(forward.matrix)
    if forward.ddf is None or forward.grid is None:
        return Inverse(Transformation(back), 0.0, 0.0)
    ddf, residual = invert(forward.ddf, start=start)
    size = float(forward.grid[:3, :3].norm(dim=0).max())
    off = float(residual.max()) * size
    return Inverse(Transformation(back, ddf, forward.matrix @ forward.grid), off, float(folds(forward.ddf)))


def usable(back: Inverse, voxel_mm: float) -> bool:
    """Whether an inverse is one: it is off by no more than a voxel, and hardly anything folds."""
    return back.residual_mm <= voxel_mm and back.folds <= FOLDS_PERCENT


def displacement(mapping: Callable[[Tensor], Tensor], scan: Scan) -> np.ndarray:
    """Where each voxel of a scan goes, less where it is: mm, RAS, float32, shape (3, X, Y, Z)."""
    result = np.empty((3, *scan.shape), np.float32)
    step = max(1, PART_VOXELS // (scan.shape[1] * scan.shape[2]))
    for start in range(0, scan.shape[0], step):
        points = _points(scan, start, min(start + step, scan.shape[0]))
        result[:, start : start + step] = (mapping(points) - points)[0].float().cpu().numpy()
    return result


def jacobian_of(mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Determinant of the Jacobian of p -> p + mm(p) at each voxel, float32; some planes at a time.

    Args:
        mm: shape (3, X, Y, Z), RAS.
        affine: of its grid.
    """
    result = np.empty(mm.shape[1:], np.float32)
    step = max(1, PART_VOXELS // (mm.shape[2] * mm.shape[3]))
    for start in range(0, mm.shape[1], step):
        first, last = max(0, start - 1), min(start + step + 1, mm.shape[1])
        # A part of one plane has no derivative across; then it takes one more on the other side.
        first = max(0, min(first, last - 2))
        ddf = mm_to_ddf(torch.from_numpy(mm[:, first:last])[None], affine)
        part = jacobian_determinant(ddf)[0, 0].numpy()
        result[start : start + step] = part[start - first :][:step]
    return result


def resample(
    moving: Scan,
    mapping: Callable[[Tensor], Tensor],
    fixed: Scan,
    *,
    mode: str = "linear",
    outside: float | None = None,
) -> Tensor:
    """A scan as another one's grid sees it, (1, C, *fixed.shape); beyond its field of view `outside`, or its least."""
    least = moving.values.min() if outside is None else outside
    shifted = Scan(moving.values - least, moving.affine)
    step = max(1, PART_VOXELS // (fixed.shape[1] * fixed.shape[2]))
    parts = [
        shifted.at(mapping(_points(fixed, start, min(start + step, fixed.shape[0]))), mode=mode)
        for start in range(0, fixed.shape[0], step)
    ]
    return torch.cat(parts, dim=2) + least


def from_displacement(mm: np.ndarray, affine: np.ndarray) -> Transformation:
    """A field in mm (3, X, Y, Z) on a grid as a transformation: the nearest affine one, and the rest as deformation."""
    grid = torch.from_numpy(np.asarray(affine, np.float64))
    total = mm_to_ddf(torch.from_numpy(mm)[None], grid)
    fitted = ddf_to_affine(total)[0]  # voxel -> voxel
    back = torch.linalg.inv(fitted)
    places = identity(total.shape[2:], like=total)[None]
    ddf = transform(places + total, back) - places
    return Transformation(grid @ fitted @ torch.linalg.inv(grid), ddf, grid)


def _points(scan: Scan, start: int, stop: int) -> Tensor:
    """Where the voxels of some planes along the first axis lie, (1, 3, planes, Y, Z)."""
    places = identity((stop - start, *scan.shape[1:]), like=scan.values)
    places[0] += start
    return transform(places[None], scan.affine)
