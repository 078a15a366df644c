"""From the stored values of a label map to labels, or to what is wrong with them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.finetune.labelled import MOST_LABEL, listed
from monai_attention.io.volume import Volume

MOST_DISTINCT = 256
"""A label map of more values is an image, or was resampled with interpolation."""

SAMPLE = 1_000_000
"""Voxels that are looked at first where all of them need not be."""


def as_labels(
    values: np.ndarray, image: Volume, *, path: Path, allowed: Collection[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels as bytes.

    Args:
        values: of the label map, on the image's grid, shape (X, Y, Z).
        image: to tell a label map from it.
        path: of the label map, for messages.
        allowed: values of the classes; None allows 0 to 255. Background, 0, always is.

    Returns:
        Labels, uint8, same shape, and the number of voxels of each value, shape (256,).

    Raises:
        Refusal: E-SWAPPED, image and label map are the same or the wrong way round, or E-LABELS, there are values that
            are no class.
    """
    if any(np.array_equal(values, channel) for channel in image.array):
        remedy = "give the label map"
        raise Refusal("E-SWAPPED", "the label map holds the same voxels as the image", path=path, remedy=remedy)
    labels = _bytes(values)
    counts = np.zeros(256, np.int64)
    if labels is None:
        distinct = np.unique(values)
        wrong = [value for value in distinct.tolist() if not _is_class(value, allowed)]
    else:
        for plane in labels:  # one at a time: bincount works on 64-bit copies
            counts += np.bincount(plane.ravel(), minlength=256)
        distinct = np.flatnonzero(counts)
        wrong = [value for value in distinct.tolist() if not _is_class(value, allowed)]
    if len(distinct) > MOST_DISTINCT or 2 * _distinct(image.array[0], at_least=len(distinct)) < len(distinct):
        message = f"it holds {len(distinct)} different values, as an image does, not a label map"
        remedy = "exchange image and label map; or, if it was resampled, do so with the nearest neighbour"
        raise Refusal("E-SWAPPED", message, path=path, remedy=remedy)
    if labels is None or wrong:
        classes = "0 to 255" if allowed is None else listed(sorted({0, *allowed}))
        message = f"expected the values {classes}, got also {listed(f'{value:g}' for value in wrong)}"
        remedy = "renumber the labels, or correct the list of classes"
        raise Refusal("E-LABELS", message, path=path, remedy=remedy)
    return labels, counts


def _bytes(values: np.ndarray) -> np.ndarray | None:
    """The same values as bytes, None if bytes cannot be the same."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= MOST_LABEL):  # so is NaN
        return None
    labels = values.astype(np.uint8)
    return labels if np.array_equal(labels, values) else None


def _is_class(value: float, allowed: Collection[int] | None) -> bool:
    whole = 0 <= value <= MOST_LABEL and value == int(value)
    return whole and (allowed is None or value == 0 or int(value) in allowed)


def _distinct(array: np.ndarray, *, at_least: int) -> int:
    """How many different values there are, or some number that is at least `at_least`."""
    sample = array.ravel(order="K")[:: max(1, array.size // SAMPLE)]
    found = len(np.unique(sample))
    return found if found >= at_least or sample.size == array.size else len(np.unique(array))
