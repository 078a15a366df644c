"""What must be known of a prepared case to cut crops from it: where its classes are, and what lies beyond its edge.

Found once, when the case is prepared, and kept beside it in a `.npz`: label maps need not be read again to draw a crop,
and of a cohort with many classes nothing is held in memory.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from monai_attention.io.write import replacing

PLACES = 2_000
"""Voxels of each class that are remembered of a case."""

LOWEST = "lowest"
"""In the file beside the classes, whose names are their numbers."""


def write_places(path: str | Path, image: np.ndarray, labels: np.ndarray) -> None:
    """Write an uncompressed `.npz`, of which single classes can be read.

    Args:
        path: ends in `.npz`.
        image: shape (C, *S); the lowest value of each channel becomes `lowest`, (C,).
        labels: uint8, shape *S; the places of class 7, see `places_of`, become `7`.

    Raises:
        Refusal: see `monai_attention.io.write.replacing`.
    """
    content: dict[str, Any] = {str(value): where for value, where in places_of(labels).items()}
    content[LOWEST] = image.reshape(len(image), -1).min(axis=1)
    with replacing(path) as temporary:
        np.savez(temporary, **content)


def places_of(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Class -> flat indices of its voxels, int64, ascending, at most `PLACES`; without background.

    Of a larger class, one voxel is drawn from each of `PLACES` equal parts: every step-th one would be at the same side
    of each row wherever rows are as long as the step. The same map always gives the same places.
    """
    flat, counts, found = labels.reshape(-1), np.zeros(256, np.int64), {}
    for plane in labels:  # one at a time: bincount works on 64-bit copies
        counts += np.bincount(plane.reshape(-1), minlength=256)
    for value in np.flatnonzero(counts[1:]) + 1:
        where = np.flatnonzero(flat == value)
        if len(where) > PLACES:
            parts = np.arange(PLACES) + np.random.default_rng(int(value)).random(PLACES)
            where = where[(parts * (len(where) / PLACES)).astype(np.int64)]
        found[int(value)] = where
    return found


def classes_in(names: Collection[str]) -> list[int]:
    """The classes that a case has, ascending, from the names in its file."""
    return sorted(int(name) for name in names if name != LOWEST)
