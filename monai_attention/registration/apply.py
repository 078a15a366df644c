"""What one does with the file of a displacement field: warp a scan, invert the field, look at its Jacobian."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from monai_attention.errors import Refusal
from monai_attention.io.fields import read_field, write_field
from monai_attention.io.read import DEFAULTS, read
from monai_attention.io.volume import ReadOptions, Volume
from monai_attention.io.write import write_nifti
from monai_attention.registration.scan import Scan
from monai_attention.registration.transformation import (
    displacement,
    from_displacement,
    inverse,
    jacobian_of,
    resample,
    usable,
)


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
        mode: `linear`, `cubic`, or `nearest` for labels, which keep their type.
        options: choices about inputs that cannot be read unambiguously.

    Raises:
        Refusal: a file cannot be read, or not without guessing.
    """
    volume = read(moving, options)
    mm, affine = read_field(field)
    warped = resample(_scan(volume), _Moved(mm, affine), _grid(mm.shape[1:], affine), mode=mode)
    array = warped[0, 0].numpy()
    if mode == "nearest" and np.array_equal(volume.array, np.rint(volume.array)):
        array = array.astype(np.result_type(np.min_scalar_type(int(array.min())), np.min_scalar_type(int(array.max()))))
    write_nifti(output, array, affine)


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
    mm, affine = read_field(field)
    back = inverse(from_displacement(mm, affine))
    size = float(np.linalg.norm(affine[:3, :3], axis=0).max())
    if not usable(back, size):
        raise Refusal(
            "E-NO-INVERSE",
            f"the field folds at {back.folds:.2g} % of voxels, and there and back is off by up to "
            f"{back.residual_mm:.1f} mm (a voxel has {size:.1f} mm)",
            path=Path(field),
            remedy="register with more smoothness, or swap the fixed and the moving scan",
        )
    if grid is None:
        target = _grid(mm.shape[1:], affine)
    else:
        volume = read(grid, options)
        target = _grid(volume.shape, volume.affine)
    write_field(output, displacement(back.transformation, target), target.affine.numpy())
    return back.residual_mm


def jacobian(field: str | Path, output: str | Path) -> dict[str, float]:
    """Write the determinant of the Jacobian at each voxel of a field's grid: 1 keeps volume, 0 or less folds.

    Returns:
        `min`, `max`, and `folds`, percent of voxels.

    Raises:
        Refusal: the field cannot be read, or not without guessing.
    """
    mm, affine = read_field(field)
    values = jacobian_of(mm, affine)
    write_nifti(output, values, affine)
    return {"min": float(values.min()), "max": float(values.max()), "folds": 100 * float((values <= 0).mean())}


class _Moved:
    """Maps points by a displacement in mm on a grid."""

    def __init__(self, mm: np.ndarray, affine: np.ndarray) -> None:
        self.field = Scan(torch.from_numpy(mm)[None], torch.from_numpy(affine))

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        return points + self.field.at(points, padding="border")


def _scan(volume: Volume) -> Scan:
    return Scan(torch.from_numpy(volume.array).mean(dim=0, keepdim=True)[None], torch.from_numpy(volume.affine))


def _grid(shape: tuple[int, ...], affine: np.ndarray) -> Scan:
    """A scan of which only the grid counts; it takes no memory."""
    return Scan(torch.zeros(1).expand(1, 1, *shape), torch.from_numpy(affine))
