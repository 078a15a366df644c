"""How far structures lie from their own middle, in an array of labels.

Distances are along the axes of the array, of which the largest counts. The middle is the median along each axis, which
a little of the structure far away does not move.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np

LOOSE_ML = 0.1
"""So much of a structure may lie farther away than it reaches."""


def reach_mm(labels: np.ndarray, affine: np.ndarray, values: Collection[int]) -> dict[int, float]:
    """How far each label reaches from its middle, but for the farthest 0.1 mL.

    Args:
        labels: uint8, shape (X, Y, Z).
        affine: shape (4, 4), voxel index -> world mm.
        values: which labels.

    Returns:
        label -> mm; 0 of a label of which there is less than that.
    """
    found = dict.fromkeys(values, 0.0)
    for label, distances, ml in _along_axes(labels, affine, values):
        farthest_first = np.argsort(-distances, kind="stable")
        too_much = np.flatnonzero(ml[farthest_first].cumsum() > LOOSE_ML)
        if too_much.size:
            found[label] = max(found[label], float(distances[farthest_first[too_much[0]]]))
    return found


def far_ml(labels: np.ndarray, affine: np.ndarray, within_mm: Mapping[int, float]) -> dict[int, float]:
    """How much of each label lies far from its middle.

    Args:
        labels: uint8, shape (X, Y, Z).
        affine: shape (4, 4), voxel index -> world mm.
        within_mm: label -> how far is far.

    Returns:
        label -> mL.
    """
    most = dict.fromkeys(within_mm, 0.0)
    for label, distances, ml in _along_axes(labels, affine, within_mm):
        most[label] = max(most[label], float(ml[distances > within_mm[label]].sum()))
    return most


def _along_axes(
    labels: np.ndarray, affine: np.ndarray, values: Collection[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Label, and of each plane across an axis its distance from the label's middle in mm, and what is in it in mL."""
    if not values:
        return
    ml_per_voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    for axis, spacing in enumerate(np.linalg.norm(affine[:3, :3], axis=0)):
        counts = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in np.moveaxis(labels, axis, 0)])
        for label in values:
            along = counts[:, label]
            middle = int(np.searchsorted(along.cumsum(), along.sum() / 2))
            yield label, np.abs(np.arange(len(along)) - middle) * spacing, along * ml_per_voxel
