"""Structures that a network recognises in two scans: the pose between them, and how far they lie on each other.

Scans of structures are (1, n, *T): the probability of each of n, on a grid of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_attention.registration.scan import Scan, transform
from monai_attention.registration.transformation import Transformation

Recognise = Callable[[Scan], Scan]
"""From a scan of any grid and contrast to its structures."""

LEAST_STRUCTURES = 12
LEAST_MM3 = 300.0
FARTHEST_MM = 10.0
"""Of a pose or an overlap: so many of more than this volume; of a pose: half of them no further apart than this."""

SIZES = (0.5, 2.0)
"""Of the moving scan against the fixed one, along any axis, that a pose may have."""


def pose(fixed: Scan, moving: Scan) -> Tensor | None:
    """The affine map between structures, fixed -> moving in RAS mm, (4, 4), float64.

    It is not refined by mutual information: on heads of two people in two contrasts that was seen to lead away from it.

    Args:
        fixed: structures.
        moving: the same structures in another scan.

    Returns:
        None where fewer than `LEAST_STRUCTURES` are whole in both, or where they do not fit.
    """
    both = _in_both(fixed, moving) & ~_cut(fixed) & ~_cut(moving)
    if int(both.sum()) < LEAST_STRUCTURES:
        return None
    return affine_between(centres(fixed)[0][both], centres(moving)[0][both])


def overlap(fixed: Scan, moving: Scan, transformation: Transformation) -> float:
    """Mean Dice of the structures that are in both scans, those of the moving one brought to the fixed one.

    Of probabilities: what two share is the lesser of both. Only where both are seen after the affine part, so that no
    deformation can push out of sight what does not fit.

    Returns:
        From 0 to 1; NaN where fewer than `LEAST_STRUCTURES` are in both.
    """
    both = _in_both(fixed, moving)
    if int(both.sum()) < LEAST_STRUCTURES:
        return float("nan")
    points = transformation(fixed.points())
    seen = moving.inside(transform(fixed.points(), transformation.matrix))
    here, there = (seen * fixed.values)[0, both], (seen * moving.at(points))[0, both]
    shared, whole = (x.flatten(1).sum(dim=1) for x in (torch.minimum(here, there), here + there))
    return float((2 * shared / whole.clamp_min(1e-6)).mean())


def centres(structures: Scan) -> tuple[Tensor, Tensor]:
    """Where structures lie, (n, 3) in RAS mm, and their volumes in mm³, (n,), float64 on the CPU.

    By the probability above one half, so that a little of it far away counts for nothing; NaN for what is nowhere.
    """
    sure = (structures.values[0] - 0.5).clamp_min(0) * 2
    size = sure.sum(dim=(1, 2, 3))
    middles = []
    for axis in (1, 2, 3):
        along = sure.sum(dim=[other for other in (1, 2, 3) if other != axis])
        middles.append(along @ torch.arange(along.shape[1]).to(along) / size)
    voxels = torch.stack(middles, dim=1).double().cpu()
    affine = structures.affine
    return voxels @ affine[:3, :3].T + affine[:3, 3], size.double().cpu() * affine[:3, :3].det().abs()


def affine_between(here: Tensor, there: Tensor, *, nearest_mm: float = 2.0) -> Tensor | None:
    """The affine map under which points lie nearest to others, by the sum of distances: a few wrong ones hardly count.

    Args:
        here: shape (N, 3), mm.
        there: where each should come to lie.
        nearest_mm: distances below count as squares.

    Returns:
        Shape (4, 4), float64; None if it mirrors or scales beyond `SIZES`, or half of the points stay further away than
        `FARTHEST_MM`.
    """
    points, goals = F.pad(here.double(), (0, 1), value=1.0), there.double()
    weights = torch.ones_like(points[:, :1])
    for _ in range(20):  # least squares, weighted again and again
        columns = torch.linalg.lstsq(points * weights.sqrt(), goals * weights.sqrt()).solution
        off = (points @ columns - goals).norm(dim=1, keepdim=True)
        weights = 1 / off.clamp_min(nearest_mm)
    matrix = torch.cat([columns.T, points.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    sizes = torch.linalg.svdvals(matrix[:3, :3])
    believed = torch.linalg.det(matrix[:3, :3]) > 0 and SIZES[0] <= float(sizes.min()) <= float(sizes.max()) <= SIZES[1]
    return matrix if believed and float(off.median()) < FARTHEST_MM else None


def _in_both(fixed: Scan, moving: Scan) -> Tensor:
    """Which structures are larger than `LEAST_MM3` in both, (n,)."""
    return torch.minimum(centres(fixed)[1], centres(moving)[1]) > LEAST_MM3


def _cut(structures: Scan) -> Tensor:
    """Which structures reach the edge of the scan, so that their centres are not known, (n,)."""
    faces = [structures.values[0].select(axis, end) for axis in (1, 2, 3) for end in (0, -1)]
    return torch.stack([(face > 0.5).flatten(1).any(dim=1) for face in faces]).any(dim=0).cpu()
