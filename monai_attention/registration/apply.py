"""What one does with the file of a displacement field: warp a scan, invert the field, look at its Jacobian."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from monai_attention.errors import Refusal
from monai_attention.io.fields import read_field, write_field
from monai_attention.io.read import DEFAULTS, read
from monai_attention.io.volume import ReadOptions, Volume
from monai_attention.io.write import check_writable, write_nifti
from monai_attention.registration.case import scan_of
from monai_attention.registration.label_maps import read_label_map, smallest_type
from monai_attention.registration.scan import Scan
from monai_attention.registration.transformation import (
    displacement,
    from_displacement,
    inverse,
    jacobian_of,
    percent_folded,
    resample,
    usable,
)

logger = logging.getLogger(__name__)


def warp(
    moving: str | Path,
    field: str | Path,
    output: str | Path,
    *,
    mode: str = "linear",
    options: ReadOptions = DEFAULTS,
) -> None:
    """Write a scan as the field's grid sees it; beyond its field of view it is as its least value.

    Args:
        moving: any format the gate reads, any grid.
        field: see `monai_attention.io.fields.read_field`.
        output: `.nii.gz`.
        mode: `linear`, `cubic`, or `nearest` for labels; these are 0 beyond the field of view.
        options: choices about inputs that cannot be read unambiguously.

    Raises:
        Refusal: a file cannot be read, or not without guessing.
    """
    _check_output(output, (".nii.gz",))
    labels = mode == "nearest"
    volume = _noted(read_label_map(moving, options) if labels else read(moving, options))
    mm, affine = _field(field, options)
    scan, grid = scan_of(volume, torch.device("cpu")), _grid(mm.shape[1:], affine)
    array = resample(scan, _Moved(mm, affine), grid, mode=mode, outside=0.0 if labels else None)[0, 0].numpy()
    write_nifti(output, smallest_type(array) if labels else array, affine)


def invert(
    field: str | Path, output: str | Path, *, grid: str | Path | None = None, options: ReadOptions = DEFAULTS
) -> float:
    """Write the inverse of a field.

    Args:
        field: see `monai_attention.io.fields.read_field`.
        output: `.nii.gz` or `.nii`.
        grid: scan on whose grid the inverse is written, usually the moving one; None: the field's own.
        options: choices about inputs that cannot be read unambiguously.

    Returns:
        How far a point is off, at most, after going there and back, in mm.

    Raises:
        Refusal: E-NO-INVERSE, the field folds or points are off by more than a voxel; or a file cannot be read.
    """
    _check_output(output, (".nii.gz", ".nii"))
    forward = from_displacement(*_field(field, options))
    assert forward.ddf is not None
    assert forward.grid is not None
    own = _grid(tuple(forward.ddf.shape[2:]), forward.grid.numpy())
    back = inverse(forward)
    size = float(own.spacing.max())
    if not usable(back, size):
        raise Refusal(
            "E-NO-INVERSE",
            f"the field folds at {back.folds:.2g} % of voxels, and there and back is off by up to "
            f"{back.residual_mm:.1f} mm (a voxel has {size:.1f} mm)",
            path=Path(field),
            remedy="register with more smoothness, or swap the fixed and the moving scan",
        )
    if grid is None:
        target = own
    else:
        volume = _noted(read(grid, options))
        target = _grid(volume.shape, volume.affine)
    write_field(output, displacement(back.transformation, target), target.affine.numpy())
    return back.residual_mm


def jacobian(field: str | Path, output: str | Path, *, options: ReadOptions = DEFAULTS) -> dict[str, float]:
    """Write the determinant of the Jacobian at each voxel of a field's grid: 1 keeps volume, 0 or less folds.

    Args:
        field: see `monai_attention.io.fields.read_field`.
        output: `.nii.gz`.
        options: choices about inputs that cannot be read unambiguously.

    Returns:
        `min`, `max`, and `folds`, percent of voxels.

    Raises:
        Refusal: the field cannot be read, or not without guessing.
    """
    _check_output(output, (".nii.gz",))
    mm, affine = _field(field, options)
    values = jacobian_of(mm, affine)
    write_nifti(output, values, affine)
    return {"min": float(values.min()), "max": float(values.max()), "folds": percent_folded(values)}


def _check_output(path: str | Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a name that cannot be written, before the work: E-FORMAT, E-READ-ONLY, E-DISK-FULL."""
    if not str(path).endswith(suffixes):
        remedy = f"choose a name that ends in {' or '.join(suffixes)}"
        raise Refusal("E-FORMAT", "results are written as NIfTI", path=Path(path), remedy=remedy)
    check_writable(Path(path).absolute().parent)


def _field(path: str | Path, options: ReadOptions) -> tuple[np.ndarray, np.ndarray]:
    """See `read_field`; E-TOO-SMALL where it has no extent along some axis."""
    mm, affine = read_field(path, options)
    if min(mm.shape[1:]) < 2:
        message = f"expected at least 2 voxels along every axis, got {' x '.join(map(str, mm.shape[1:]))}"
        raise Refusal("E-TOO-SMALL", message, path=Path(path), remedy="give the field of a 3-D registration")
    return mm, affine


def _noted(volume: Volume) -> Volume:
    """The volume; what is doubtful about it is logged."""
    for note in volume.notes:
        if note.kind == "flag":
            logger.warning("%s: %s %s", volume.source, note.code, note.message)
    return volume


class _Moved:
    """Maps points by a displacement in mm on a grid."""

    def __init__(self, mm: np.ndarray, affine: np.ndarray) -> None:
        self.field = Scan(torch.from_numpy(mm)[None], torch.from_numpy(affine))

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        return points + self.field.at(points, padding="border")


def _grid(shape: tuple[int, ...], affine: np.ndarray) -> Scan:
    """A scan of which only the grid counts; it takes no memory."""
    return Scan(torch.zeros(1).expand(1, 1, *shape), torch.from_numpy(affine))
