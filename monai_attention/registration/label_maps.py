"""Label maps that are warped: whole numbers, of structures that need not be there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.io.read import read_stored
from monai_attention.io.volume import ReadOptions, Volume

LARGEST = 2**24 - 1
"""Volumes are float32, which rounds larger numbers."""


def read_label_map(path: str | Path, options: ReadOptions, *, counted: bool = False) -> Volume:
    """Read a label map on a grid of its own; it may be empty.

    Args:
        path: any format the gate reads.
        options: choices about inputs that cannot be read unambiguously.
        counted: whether its voxels are to be counted, which negative labels cannot be.

    Raises:
        Refusal: E-LABELS, the values are not whole, too large or too low; or what reading the file raises.
    """
    volume, lowest = read_stored(path, options), 0 if counted else -LARGEST
    whole = all(np.array_equal(plane, np.rint(plane)) for plane in volume.array[0])  # of NaN it is False
    low, high = (float(bound) for bound in (volume.array.min(), volume.array.max()))
    if not whole or low < lowest or high > LARGEST:
        found = f"{low:g} to {high:g}" if whole else "fractions or NaN"
        message = f"a label map must hold whole numbers from {lowest} to {LARGEST}, got {found}"
        remedy = "number its structures anew; if it is no label map, `warp` it without --mode nearest"
        raise Refusal("E-LABELS", message, path=volume.source, remedy=remedy)
    return volume


def smallest_type(labels: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that holds them."""
    low, high = int(labels.min()), int(labels.max())
    kind = np.result_type(np.min_scalar_type(low), np.min_scalar_type(high))
    return labels.astype(np.int32 if kind == np.int64 else kind)  # which NIfTI readers do not expect
