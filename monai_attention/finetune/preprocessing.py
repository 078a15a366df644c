"""Spacing and intensities for a training from scratch, by what the cohort is like; all of it can be edited.

The rules:

- **Spacing**: along each axis, with the patient upright, the median over cases; coarser where a window would see less
  than a third of the median scan.
- **Intensities**: of CT alone, whose numbers mean something, what lies between the 0.5th and 99.5th percentiles of
  labelled voxels goes to [0, 1], the same for all; of anything else, what lies between those of each channel of each
  scan. It is CT if the files or the channel's name say so, or if every scan has values as low as air's.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from monai_attention.finetune.preflight import Preflight
from monai_attention.finetune.statistics import CaseStatistics

AIR = -500
"""HU; nothing but air, and what is outside of a scan, is lower."""

SEEN = 1 / 3
"""Of a scan, along each axis, that a window sees at least."""

AXES = {letter: axis for axis, pair in enumerate(("LR", "PA", "IS")) for letter in pair}


def planned_preprocessing(found: Preflight, roi_size: Sequence[int]) -> tuple[list[float], dict[str, Any]]:
    """What goes into `inference.json`.

    Args:
        found: the cohort; at least one case is usable.
        roi_size: voxels of a window along x, y, z of RAS.

    Returns:
        `spacing` in mm along x, y, z, and `preprocessing`, which refers to it.
    """
    seen = [one.statistics for one in found.usable if one.statistics]
    spacing = []
    for axis, window in enumerate(roi_size):
        here = [_along(one, axis) for one in seen]
        mm = statistics.median(step for step, _ in here)
        extent = statistics.median(step * n for step, n in here)
        spacing.append(round(max(mm, SEEN * extent / window), 2))
    steps = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
        _intensities(found, seen),
    ]
    return spacing, {"_target_": "Compose", "transforms": steps}


def _along(one: CaseStatistics, axis: int) -> tuple[float, int]:
    """Spacing and number of voxels along an axis of RAS."""
    (own,) = (i for i, letter in enumerate(one.orientation) if AXES[letter] == axis)
    return one.spacing_mm[own], one.shape[own]


def _intensities(found: Preflight, seen: Sequence[CaseStatistics]) -> dict[str, Any]:
    labelled = [channel for one in seen for channel in one.foreground]
    scaled = {"keys": "image", "b_min": 0.0, "b_max": 1.0, "clip": True}
    if labelled and len(found.data.channels) == 1 and _is_ct(found, seen):
        low, high = statistics.median(c.low for c in labelled), statistics.median(c.high for c in labelled)
        return {"_target_": "ScaleIntensityRanged", "a_min": low, "a_max": high, **scaled}
    each = {"channel_wise": True} if len(found.data.channels) > 1 else {}
    return {"_target_": "ScaleIntensityRangePercentilesd", "lower": 0.5, "upper": 99.5, **scaled, **each}


def _is_ct(found: Preflight, seen: Sequence[CaseStatistics]) -> bool:
    told = {one.verdict.modality for one in found.usable} - {None}
    named = [name.upper() for name in found.data.channels]
    return told == {"CT"} or named == ["CT"] or (not told and all(c.low < AIR for one in seen for c in one.intensities))
