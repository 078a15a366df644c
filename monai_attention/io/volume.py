"""What the gate lets in: an array, where it lies in the world, and what was noticed on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from monai.data import MetaTensor


@dataclass(frozen=True)
class Note:
    """Something the user should know about a volume that was let in.

    Args:
        kind: `repair` (lossless, logged), `flag` (the case is marked for a human), `info`.
        code: stable code, for example `F-SPACING` or `R-DUPLICATE`.
        message: one sentence, without anything that names the patient.
    """

    kind: str
    code: str
    message: str


@dataclass(frozen=True)
class Volume:
    """A scalar image with its geometry.

    Args:
        array: float32, shape (C, X, Y, Z); C counts channels, 1 unless a bundle asks for more.
        affine: float64, shape (4, 4), voxel index (x, y, z) -> RAS world mm. May be oblique, flipped or sheared.
        source: the file or folder that was read.
        modality: DICOM Modality (`CT`, `MR`, ...) or None where the format does not say.
        series_uid: DICOM SeriesInstanceUID, else None.
        slice_files: DICOM files in order of the last array axis, for writing results that refer to them.
        notes: repairs and flags, in the order in which they were noticed.
    """

    array: np.ndarray
    affine: np.ndarray
    source: Path
    modality: str | None = None
    series_uid: str | None = None
    slice_files: tuple[Path, ...] = ()
    notes: tuple[Note, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.array.shape[1:]
        return x, y, z

    def noting(self, *notes: Note) -> Volume:
        """The same volume with more notes."""
        return replace(self, notes=self.notes + notes)

    def as_metatensor(self) -> MetaTensor:
        """The volume as MONAI wants it: a channel-first MetaTensor with the same affine."""
        import torch
        from monai.data import MetaTensor

        return MetaTensor(torch.from_numpy(self.array), affine=torch.from_numpy(self.affine.copy()))


@dataclass(frozen=True)
class Requirements:
    """What a bundle accepts; read from its metadata. The gate compares volumes with it.

    Args:
        modalities: DICOM modalities the bundle was made for, for example ("MR",); empty = any.
        channels: number of image channels.
        spacing_mm: smallest and largest voxel spacing it was trained for; outside is flagged.
        min_extent_mm: smallest field of view along any axis; below is refused.
        needs_orientation: whether left, right, up and down matter to it (refuse files that do not say).
        value_range: plausible intensities (for CT in HU) as (low, high) of the 1st and 99th percentile, or None.
    """

    modalities: tuple[str, ...] = ()
    channels: int = 1
    spacing_mm: tuple[float, float] = (0.1, 10.0)
    min_extent_mm: float = 0.0
    needs_orientation: bool = True
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class ReadOptions:
    """Choices a user makes about inputs that cannot be read unambiguously.

    Args:
        series: SeriesInstanceUID to take from a folder that holds several; of a tuple, for several folders, the one
            that a folder holds, and folders that hold none of them are read as without it.
        allow_gaps: resample a DICOM series with missing slices at its true positions, flagged, instead of refusing.
        affine: `sform` or `qform` where the two of a NIfTI file disagree.
        volume: index along the fourth axis of a 4-D image.
        max_memory: bytes the program may use; larger inputs are refused before they are read.
    """

    series: str | tuple[str, ...] | None = None
    allow_gaps: bool = False
    affine: str | None = None
    volume: int | None = None
    max_memory: int | None = None
