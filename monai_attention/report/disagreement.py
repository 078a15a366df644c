"""A picture of a segmentation beside the truth, on planes through the place where they disagree most."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from monai_attention.report.colours import colour
from monai_attention.report.preview import overlay, planes, tilt_remark, upright
from monai_attention.report.sheet import Panel, compose
from monai_attention.report.tables import measure

BLOCK_MM = 10.0
"""Of the cubes in which voxels that disagree are counted: a missed lesion counts for more than a thin seam."""

DIFFERENT = (235, 40, 60)
"""Tint of voxels where truth and prediction differ."""

REMARK = "above: outlines of the truth, mL of which are given; below: of the prediction, red where they differ"


def disagreement(
    image: np.ndarray, truth: np.ndarray, found: np.ndarray, affine: np.ndarray, classes: Mapping[int, str]
) -> Image.Image:
    """Draw the outlines of the truth above, those of the prediction below, with what differs tinted red.

    Args:
        image: one channel, shape (X, Y, Z).
        truth: uint8, same shape.
        found: uint8, same shape, of the same values.
        affine: shape (4, 4), voxel index -> RAS mm.
        classes: value -> what the legend says of it; the amounts there are the truth's.
    """
    palette = {value: colour(value) for value in range(1, 256)}
    steps, image, upright_truth, upright_found = upright(affine, image, truth, found)
    differ = upright_truth != upright_found
    index = worst_place(differ if differ.any() else upright_truth > 0, steps)
    panels = []
    for one in planes(image, [upright_truth, upright_found], steps, index):
        ours, theirs = one.maps
        tinted = np.asarray(one.grey).astype(np.float32)
        tinted[ours != theirs] = tinted[ours != theirs] / 2 + np.array(DIFFERENT, np.float32) / 2
        above = overlay(one.grey, ours, palette, opacity=0)
        below = overlay(Image.fromarray(tinted.astype(np.uint8)), theirs, palette, opacity=0)
        panels.append(Panel(one.name, one.edges, above, below, one.pixels_per_mm))
    remark = "; ".join(text for text in (REMARK, tilt_remark(affine)) if text)
    return compose(panels, measure(truth, affine, classes), palette, remark)


def worst_place(differ: np.ndarray, steps: np.ndarray) -> list[int]:
    """Index of the middle of what differs in the cube of `BLOCK_MM` with the most of it; of all, if nothing does.

    Args:
        differ: mask, shape (X, Y, Z).
        steps: mm between voxels.
    """
    if not differ.any():
        return [n // 2 for n in differ.shape]
    sides = [max(1, round(BLOCK_MM / mm)) for mm in steps]
    counts: np.ndarray = differ.view(np.uint8)
    for axis, (n, side) in enumerate(zip(differ.shape, sides, strict=True)):
        counts = np.add.reduceat(counts, range(0, n, side), axis=axis, dtype=np.int32)
    block = np.unravel_index(counts.argmax(), counts.shape)
    start = [int(place) * side for place, side in zip(block, sides, strict=True)]
    inside = np.argwhere(differ[tuple(slice(a, a + side) for a, side in zip(start, sides, strict=True))])
    nearest = inside[np.linalg.norm((inside - inside.mean(axis=0)) * steps, axis=1).argmin()]
    return [int(a + place) for a, place in zip(start, nearest, strict=True)]
