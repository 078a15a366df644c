"""From the fixed scan's world to the moving one's, RAS mm: a deformation, then an affine transformation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_attention.registration.fields import ddf_to_affine, identity, invert, jacobian_determinant
from monai_attention.registration.parts import planes
from monai_attention.registration.sampling import sample
from monai_attention.registration.scan import Scan, transform
from monai_attention.registration.world import mm_to_ddf

MOST_FOLDS_TO_INVERT = 0.1
"""Percent of voxels; a field that folds at more has no inverse."""


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
    stretch = float(torch.linalg.svdvals(forward.matrix[:3, :3]).max())  # of what is off, by A
    off = float(residual.max()) * size * stretch
    folds = percent_folded(jacobian_of(forward.ddf[0].cpu().numpy(), np.eye(4)))  # volumes do not care for units
    return Inverse(Transformation(back, ddf, forward.matrix @ forward.grid), off, folds)


def usable(back: Inverse, voxel_mm: float) -> bool:
    """Whether an inverse is one: it is off by no more than a voxel, and hardly anything folds."""
    return back.residual_mm <= voxel_mm and back.folds <= MOST_FOLDS_TO_INVERT


def displacement(mapping: Callable[[Tensor], Tensor], scan: Scan) -> np.ndarray:
    """Where each voxel of a scan goes, less where it is: mm, RAS, float32, shape (3, X, Y, Z)."""
    result = np.empty((3, *scan.shape), np.float32)
    for part in planes(scan.shape):
        points = _points(scan, part)
        result[:, part] = (mapping(points) - points)[0].float().cpu().numpy()
    return result


def jacobian_of(mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Determinant of the Jacobian of p -> p + mm(p) at each voxel, float32.

    Args:
        mm: shape (3, X, Y, Z), RAS.
        affine: of its grid.
    """
    result = np.empty(mm.shape[1:], np.float32)
    for part in planes(mm.shape[1:]):
        first, last = max(0, part.start - 1), min(part.stop + 1, mm.shape[1])
        # A part of one plane has no derivative across; then it takes one more on the other side.
        first = max(0, min(first, last - 2))
        ddf = mm_to_ddf(torch.from_numpy(mm[:, first:last])[None], affine)
        result[part] = jacobian_determinant(ddf)[0, 0, part.start - first : part.stop - first].numpy()
    return result


def percent_folded(jacobian: np.ndarray) -> float:
    """Percent of voxels where a Jacobian's determinant is 0 or less."""
    return 100 * np.count_nonzero(jacobian <= 0) / jacobian.size


def sd_of_log(jacobian: np.ndarray) -> float:
    """SD of the logarithm of a Jacobian's determinant where it has one; a constant factor changes nothing."""
    count, total, squares = 0, 0.0, 0.0
    for part in planes(jacobian.shape):
        values = jacobian[part]
        logs = np.log(values[values > 0], dtype=np.float64)
        count, total, squares = count + logs.size, total + logs.sum(), squares + (logs * logs).sum()
    return float(np.sqrt(max(0.0, squares / count - (total / count) ** 2)))


def resample(
    moving: Scan,
    mapping: Callable[[Tensor], Tensor],
    fixed: Scan,
    *,
    mode: str = "linear",
    outside: float | None = None,
) -> Tensor:
    """A scan as another one's grid sees it, (1, C, *fixed.shape); beyond its field of view `outside`, or its least."""
    least = float(moving.values.min()) if outside is None else outside
    shifted = Scan(moving.values - least, moving.affine) if least else moving  # beyond it, sampling gives 0
    result = moving.values.new_empty(1, moving.values.shape[1], *fixed.shape)
    for part in planes(fixed.shape):
        result[:, :, part] = shifted.at(mapping(_points(fixed, part)), mode=mode) + least
    return result


def from_displacement(mm: np.ndarray, affine: np.ndarray) -> Transformation:
    """A field in mm (3, X, Y, Z) on a grid as a transformation: the nearest affine one, and the rest as deformation."""
    grid = torch.from_numpy(np.asarray(affine, np.float64))
    ddf = torch.empty(1, *mm.shape)
    parts = planes(mm.shape[1:])
    for part in parts:
        ddf[:, :, part] = mm_to_ddf(torch.from_numpy(mm[:, part])[None], grid)
    fitted = ddf_to_affine(ddf)[0]  # voxel -> voxel
    back = torch.linalg.inv(fitted)
    for part in parts:
        places = identity(mm.shape[1:], like=ddf, part=part)[None]
        ddf[:, :, part] = transform(places + ddf[:, :, part], back) - places
    return Transformation(grid @ fitted @ torch.linalg.inv(grid), ddf, grid)


def _points(scan: Scan, part: slice) -> Tensor:
    """Where the voxels of some planes along the first axis lie, (1, 3, planes, Y, Z)."""
    return transform(identity(scan.shape, like=scan.values, part=part)[None], scan.affine)
