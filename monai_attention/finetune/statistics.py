"""What a plan for training needs to know of a case, from its voxels."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from monai_attention.io.geometry import spacing
from monai_attention.io.reach import reach_mm
from monai_attention.io.volume import Volume

SAMPLE = 1_000_000
"""About how many voxels percentiles are taken of; evenly spread, so the same each time."""


@dataclass(frozen=True)
class Intensities:
    """Of one channel, over all voxels or over the labelled ones.

    Args:
        low: 0.5th percentile.
        median: 50th percentile.
        high: 99.5th percentile.
        mean: mean.
        deviation: standard deviation.
    """

    low: float
    median: float
    high: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class CaseStatistics:
    """A case in numbers.

    Args:
        shape: voxels along x, y, z.
        spacing_mm: mm along x, y, z.
        orientation: where the array axes point, for example `RAS`.
        intensities: of all voxels, one a channel.
        foreground: of the labelled voxels, one a channel; empty where nothing is labelled.
        voxels: by value of the classes that are there, without background.
        ml: the same in mL.
        reach_mm: the same, how far from its middle, see `io.reach`.
        box: first labelled voxel and one past the last, along each axis; None where nothing is labelled.
        digest: of the image's voxels: equal for equal images.
        labels_digest: the same of the labels.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    intensities: tuple[Intensities, ...]
    foreground: tuple[Intensities, ...]
    voxels: dict[int, int]
    ml: dict[int, float]
    reach_mm: dict[int, float]
    box: tuple[tuple[int, int], ...] | None
    digest: str
    labels_digest: str

    def to_json(self) -> dict[str, Any]:
        """The intensities and the box, as plain numbers, lists and dictionaries."""
        kept = ("intensities", "foreground", "box")
        return {name: value for name, value in asdict(self).items() if name in kept}


def measure(image: Volume, labels: np.ndarray, counts: np.ndarray) -> CaseStatistics:
    """Numbers of one case.

    Args:
        image: shape (C, X, Y, Z).
        labels: uint8, shape (X, Y, Z).
        counts: voxels of each value, shape (256,).
    """
    import nibabel

    labelled = labels > 0
    present = [int(value) for value in np.flatnonzero(counts) if value]
    ml_per_voxel = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000.0
    return CaseStatistics(
        shape=image.shape,
        spacing_mm=tuple(round(float(mm), 6) for mm in spacing(image.affine)),
        orientation="".join(nibabel.aff2axcodes(image.affine)),
        intensities=tuple(_intensities(channel.ravel(order="K")) for channel in image.array),
        foreground=tuple(_intensities(channel[labelled]) for channel in image.array) if present else (),
        voxels={value: int(counts[value]) for value in present},
        ml={value: round(int(counts[value]) * ml_per_voxel, 4) for value in present},
        reach_mm={value: round(mm, 3) for value, mm in reach_mm(labels, image.affine, present).items()},
        box=bounding_box(labelled) if present else None,
        digest=_digest(image.array),
        labels_digest=_digest(labels[None]),
    )


def bounding_box(labelled: np.ndarray) -> tuple[tuple[int, int], ...]:
    """First true voxel and one past the last, along each axis of a mask that is not empty, shape (X, Y, Z)."""
    found = []
    for axis in range(3):
        filled = np.flatnonzero(labelled.any(axis=tuple(other for other in range(3) if other != axis)))
        found.append((int(filled[0]), int(filled[-1]) + 1))
    return tuple(found)


def _intensities(values: np.ndarray) -> Intensities:
    sample = values[:: max(1, values.size // SAMPLE)].astype(np.float64)
    low, median, high = np.percentile(sample, (0.5, 50, 99.5))
    return Intensities(*(float(f"{one:.6g}") for one in (low, median, high, sample.mean(), sample.std())))


def _digest(array: np.ndarray) -> str:
    """Of shape and values, whatever their order in memory."""
    digest = hashlib.sha256(str(array.shape).encode())
    for channel in array:
        for plane in channel:  # one at a time: only what does not lie in this order is copied
            digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()
