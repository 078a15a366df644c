"""What any volume must satisfy, whatever file it came from: geometry first, then voxels.

`examine_geometry` needs the header only, so `check` is fast; `examine` adds what only the voxels can tell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.io import geometry
from monai_attention.io.volume import Note, Requirements, Volume

SPACING_LIMITS_MM = (0.01, 100.0)
"""Spacing outside these is a wrong unit or a damaged header, not a patient."""

SINGULAR = 1e-6
"""Volume of the unit cell of the axes' directions below which they count as lying in one plane."""

MAX_NONFINITE_SHARE = 1e-3
"""Share of NaN and infinite voxels up to which they are filled instead of refused."""

AIR_HU = -500.0
"""A plausible range that begins below this is one of CT, and CT shows air."""

FINGERPRINT_VOXELS = 1_000_000
"""About how many voxels the intensity fingerprint looks at."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """A volume before its voxels are read.

    Args:
        source: the file or folder.
        shape: voxels along x, y, z.
        affine: float64, shape (4, 4), voxel index -> RAS mm.
        channels: number of image channels.
        modality: DICOM Modality, or None where the format does not say.
        notes: what was noticed so far.
    """

    source: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    channels: int = 1
    modality: str | None = None
    notes: tuple[Note, ...] = ()


def examine_geometry(header: Header, requirements: Requirements | None = None) -> tuple[Note, ...]:
    """Check all that a header can tell; with requirements also that it suits the bundle.

    Returns:
        Flags and remarks: F-SPACING (outside the range trained for), I-SHEAR.

    Raises:
        Refusal: E-TOO-SMALL, E-AFFINE, E-SPACING, E-MODALITY or E-CHANNELS.
    """
    path = header.source
    if min(header.shape) < 2:
        raise Refusal(
            "E-TOO-SMALL",
            f"expected at least 2 voxels along every axis, got {_times(header.shape)}",
            path=path,
            remedy="give a 3-D image, not a single slice",
        )
    expect_affine(header.affine, path)
    spacing = geometry.spacing(header.affine)
    notes = []
    if geometry.is_sheared(header.affine):
        notes.append(Note("info", "I-SHEAR", "the grid is sheared (gantry tilt or a sheared transform); kept as it is"))
    if requirements is None:
        return tuple(notes)

    if requirements.modalities and header.modality and header.modality not in requirements.modalities:
        raise Refusal(
            "E-MODALITY",
            f"expected modality {' or '.join(requirements.modalities)}, got {header.modality}",
            path=path,
            remedy="choose a bundle made for this modality (`monai-attention bundles list`)",
        )
    if header.channels != requirements.channels:
        raise Refusal(
            "E-CHANNELS",
            f"expected {requirements.channels} image channel(s), got {header.channels}",
            path=path,
            remedy="choose a bundle for this number of channels, or give the files of a case with commas between them "
            "(other ways: --help)",
        )
    extent = spacing * header.shape
    if extent.min() < requirements.min_extent_mm:
        raise Refusal(
            "E-TOO-SMALL",
            f"expected a field of view of at least {requirements.min_extent_mm:g} mm along every axis, "
            f"got {_times(extent)} mm",
            path=path,
            remedy="give the whole scan, not a crop or a localizer",
        )
    low, high = requirements.spacing_mm
    if spacing.min() < low * (1 - 1e-3) or spacing.max() > high * (1 + 1e-3):
        message = f"spacing {_times(spacing)} mm is outside {low:g} to {high:g} mm, which the bundle was trained for"
        notes.append(Note("flag", "F-SPACING", message))
    return tuple(notes)


def expect_affine(affine: np.ndarray, path: Path) -> None:
    """Refuse a matrix that is no geometry (E-AFFINE) or has voxels of an absurd size (E-SPACING)."""
    remedy = "the header is damaged; export the image again from its source"
    if not np.isfinite(affine).all() or not affine[:3, :3].any():
        raise Refusal("E-AFFINE", "the affine is zero, or holds NaN or infinity", path=path, remedy=remedy)
    spacing = geometry.spacing(affine)
    low, high = SPACING_LIMITS_MM
    if spacing.min() < low or spacing.max() > high:
        raise Refusal(
            "E-SPACING",
            f"expected a spacing of {low:g} to {high:g} mm, got {_times(spacing)} mm",
            path=path,
            remedy="the unit may be wrong (metre, micrometre) or the header damaged; correct the spacing in the header",
        )
    if abs(np.linalg.det(geometry.directions(affine))) < SINGULAR:
        raise Refusal("E-AFFINE", "the affine is singular: its axes lie in one plane", path=path, remedy=remedy)


def unstated_orientation(path: Path, requirements: Requirements | None) -> Note:
    """The flag for a file that does not say how the patient lies in it; E-NO-ORIENTATION if the bundle needs that."""
    if requirements is not None and requirements.needs_orientation:
        raise Refusal(
            "E-NO-ORIENTATION",
            "the file does not say how the patient lies in it",
            path=path,
            remedy="convert the image again from DICOM; left and right cannot be told from the voxels",
        )
    message = "the file states no orientation; left, right and the position of the image are assumed"
    return Note("flag", "F-NO-ORIENTATION", message)


def examine(volume: Volume, requirements: Requirements | None = None) -> Volume:
    """Check geometry and voxels; return the volume with what was noticed, and with its few NaNs filled.

    NaN and infinite voxels up to `MAX_NONFINITE_SHARE` become the smallest finite value of their channel.

    Raises:
        Refusal: those of `examine_geometry`, E-NONFINITE or E-CONSTANT.
    """
    header = Header(
        source=volume.source,
        shape=volume.shape,
        affine=volume.affine,
        channels=len(volume.array),
        modality=volume.modality,
    )
    volume = volume.noting(*examine_geometry(header, requirements))
    volume = _fill_nonfinite(volume)
    for channel in volume.array:
        if channel.min() == channel.max():
            raise Refusal(
                "E-CONSTANT",
                f"every voxel has the value {channel.flat[0]:g}",
                path=volume.source,
                remedy="check that the export worked and that this is the image, not an empty mask",
            )
    if requirements is not None and requirements.value_range is not None:
        volume = volume.noting(*_fingerprint(volume.array, requirements.value_range))
    return volume


def _fill_nonfinite(volume: Volume) -> Volume:
    finite = np.isfinite(volume.array)
    count = finite.size - int(np.count_nonzero(finite))
    if count == 0:
        return volume
    if count > MAX_NONFINITE_SHARE * finite.size:
        raise Refusal(
            "E-NONFINITE",
            f"{count} of {finite.size} voxels are NaN or infinite; at most {MAX_NONFINITE_SHARE:.1%} are filled",
            path=volume.source,
            remedy="find the processing step that made them, or fill them with the background value",
        )
    filled = volume.array.copy()
    for channel, good in zip(filled, finite, strict=True):
        # A channel of nothing but NaN is possible only in small arrays with many channels; it ends as constant.
        channel[~good] = channel[good].min() if good.any() else 0.0
    note = Note("flag", "F-NONFINITE", f"{count} NaN or infinite voxels were filled with the smallest finite value")
    return replace(volume, array=filled).noting(note)


def _fingerprint(array: np.ndarray, plausible: tuple[float, float]) -> tuple[Note, ...]:
    """Flag intensities that do not look like the bundle's modality.

    A range that reaches down to air demands values below zero too: MR intensities lie within the range of CT.
    """
    low, high = plausible
    sample = array.reshape(-1)[:: max(1, array.size // FINGERPRINT_VOXELS)]
    first, last = np.percentile(sample, (1, 99))
    if low <= first <= last <= high and not (low <= AIR_HU and first >= 0):
        return ()
    message = (
        f"intensities (1st to 99th percentile {first:g} to {last:g}) are unlike the bundle's ({low:g} to {high:g})"
    )
    return (Note("flag", "F-MODALITY", message),)


def _times(values: tuple[int, ...] | np.ndarray) -> str:
    return " x ".join(f"{float(value):g}" for value in values)
