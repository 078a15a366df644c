"""How well a label map agrees with the truth, class by class, in mm whatever the grid.

Surfaces are what lies between a class's voxels and the others. They are made of elements around the corners that eight
voxels share, each with the area that its eight voxels' pattern stands for, as Nikolov et al. measure them, "Clinically
applicable segmentation of head and neck anatomy", JMIR 2021, doi:10.2196/26151. MONAI's table of these areas is used;
the rest is written out, since MONAI's metrics count voxels for the percentile, whatever their size and shape, know no
sheared grids, and hold a dozen float copies of a class's bounding box, where bytes will do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from monai.metrics.utils import get_code_to_measure_table
from scipy.spatial import KDTree

from monai_attention.finetune.statistics import bounding_box
from monai_attention.io.geometry import spacing

TOLERANCE_MM = 2.0
"""Of the surface Dice: about as far as two experts' outlines are apart."""

BOTH, IN_TRUTH, IN_PREDICTION, NEITHER = "", "in truth only", "in prediction only", "in neither"


@dataclass(frozen=True)
class Scores:
    """Of one class in one case; None is n/a.

    Args:
        dice: 0 to 1; 0 where only one of the two has the class, None where neither has.
        surface_dice: as `dice`, of the surfaces: the share of their area that is within the tolerance of the other.
        hd95_mm: 95 % of the area of either surface are nearer than this to the other; None unless both have the class.
        truth_ml: how much there is.
        found_ml: how much was found.
        where: `BOTH`, `IN_TRUTH`, `IN_PREDICTION` or `NEITHER`.
    """

    dice: float | None
    surface_dice: float | None
    hd95_mm: float | None
    truth_ml: float
    found_ml: float
    where: str


def tolerance_of(affine: np.ndarray) -> float:
    """In mm, for the surface Dice: `TOLERANCE_MM`, or the largest spacing of voxels where that is coarser.

    Where between two voxels a surface lies nobody knows: on a coarse grid even experts' outlines differ by a voxel.

    Args:
        affine: shape (4, 4), voxel index -> mm.
    """
    return max(TOLERANCE_MM, float(spacing(affine).max()))


def scores(
    truth: np.ndarray, found: np.ndarray, affine: np.ndarray, classes: Iterable[int], *, tolerance_mm: float
) -> dict[int, Scores]:
    """Score every class.

    Args:
        truth: labels, shape (X, Y, Z).
        found: labels of the same numbers, same shape.
        affine: shape (4, 4), voxel index -> mm; may be anisotropic and sheared.
        classes: values to score.
        tolerance_mm: of the surface Dice.

    Raises:
        ValueError: the shapes differ.
    """
    if truth.shape != found.shape:
        raise ValueError(f"truth and prediction must have one shape, got {truth.shape} and {found.shape}")
    return {value: score(truth == value, found == value, affine, tolerance_mm=tolerance_mm) for value in classes}


def score(truth: np.ndarray, found: np.ndarray, affine: np.ndarray, *, tolerance_mm: float) -> Scores:
    """Score one class; `truth` and `found` are masks, the rest is as in `scores`."""
    ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    voxels = int(np.count_nonzero(truth)), int(np.count_nonzero(found))
    amounts = round(voxels[0] * ml, 4), round(voxels[1] * ml, 4)
    if not all(voxels):
        zero = 0.0 if any(voxels) else None
        return Scores(zero, zero, None, *amounts, IN_TRUTH if voxels[0] else IN_PREDICTION if voxels[1] else NEITHER)
    box = tuple(slice(*ends) for ends in bounding_box(truth | found))
    truth, found = truth[box], found[box]
    dice = 2 * int(np.count_nonzero(truth & found)) / sum(voxels)
    (places, areas), (others, other_areas) = _surface(truth, affine), _surface(found, affine)
    far, other_far = KDTree(others).query(places)[0], KDTree(places).query(others)[0]
    tolerance_mm += 1e-6  # rounding of a distance that is the tolerance
    near = areas[far <= tolerance_mm].sum() + other_areas[other_far <= tolerance_mm].sum()
    surface_dice = float(near / (areas.sum() + other_areas.sum()))
    hd95 = max(_within(far, areas, 0.95), _within(other_far, other_areas, 0.95))
    return Scores(dice, surface_dice, hd95, *amounts, BOTH)


def _surface(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places, shape (N, 3), in mm from somewhere, and areas in mm², shape (N,), of the elements of a mask's surface."""
    padded = np.pad(mask, 1).view(np.uint8)
    size = [n - 1 for n in padded.shape]
    pattern = np.zeros(size, np.uint8)
    for bit, corner in enumerate(itertools.product((1, 0), repeat=3)):  # the order of MONAI's table
        pattern |= padded[tuple(slice(first, first + n) for first, n in zip(corner, size, strict=True))] << bit
    areas = get_code_to_measure_table(tuple(spacing(affine)))[0].numpy()
    index = np.argwhere((pattern > 0) & (pattern < 255))
    return index @ affine[:3, :3].T, areas[pattern[tuple(index.T)]].astype(np.float64)


def _within(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    """The distance within which this share of the area is."""
    order = np.argsort(distances)
    covered = np.cumsum(areas[order])
    return float(distances[order[np.searchsorted(covered, share * covered[-1])]])
