"""The one affine that a NIfTI header means. It may state two (sform, qform) that agree or not, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nibabel.quaternions import quat2mat

from monai_attention.errors import Refusal
from monai_attention.io import content, geometry
from monai_attention.io.volume import Note, ReadOptions, Requirements

UNITS = {1: "metre", 3: "micrometre"}
"""`xyzt_units & 7` for spatial units other than millimetre (2) and unknown (0)."""

CONFLICT = 1e-3
"""Largest distance, in voxels, between where sform and qform put a corner that still counts as agreement."""

QUATERNION_ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Error of `a*a = 1 - b*b - c*c - d*d` for the float32 components (b, c, d) of a stored quaternion."""


def choose(
    raw: Any,
    shape: tuple[int, int, int],
    path: Path,
    options: ReadOptions,
    requirements: Requirements | None,
) -> tuple[np.ndarray, tuple[Note, ...]]:
    """The affine of a raw (unrepaired) nibabel NIfTI header, and a flag where it had to be chosen or assumed.

    Args:
        raw: `Nifti1Header` or `Nifti2Header`, not checked by nibabel.
        shape: voxels along x, y, z.
        path: the file, for messages.
        options: `affine` decides where sform and qform disagree or one of them is damaged.
        requirements: a bundle that needs the orientation refuses a file that does not state it.

    Returns:
        float64 (4, 4), voxel index -> RAS mm, and the notes F-AFFINE or F-NO-ORIENTATION.

    Raises:
        Refusal: E-AFFINE, E-AFFINE-CONFLICT, E-NO-ORIENTATION or E-SPACING.
    """
    unit = int(raw["xyzt_units"]) & 7
    if unit in UNITS:
        raise Refusal(
            "E-SPACING",
            f"expected spacing in millimetre, got {UNITS[unit]} (xyzt_units {unit})",
            path=path,
            remedy="write the header in millimetre",
        )
    stated = {name: form for name, form in (("sform", _sform), ("qform", _qform)) if raw[f"{name}_code"] > 0}
    if not stated:
        return _assumed(raw, path, requirements)
    try:
        forms = [_sound(name, form, raw, path) for name, form in stated.items()]
        if len(forms) == 2:
            _expect_agreement(raw, forms[0], forms[1], shape, path)
    except Refusal as error:
        if len(stated) < 2:
            raise
        if options.affine not in stated:
            either = "find out which one is right, then say --affine sform or --affine qform"
            raise Refusal(error.code, error.message, path=path, remedy=either) from error
        affine = _sound(options.affine, stated[options.affine], raw, path)
        return affine, (Note("flag", "F-AFFINE", f"the {options.affine} was taken, as asked for: {error.message}"),)
    return forms[0], ()


def _assumed(raw: Any, path: Path, requirements: Requirements | None) -> tuple[np.ndarray, tuple[Note, ...]]:
    """The standard's method 1, for sform_code = qform_code = 0: voxel sizes, and the first voxel at the origin."""
    note = content.unstated_orientation(path, requirements)
    affine = np.diag([*_pixdim(raw, path), 1.0])
    content.expect_affine(affine, path)
    return affine, (note,)


def _sound(name: str, form: Any, raw: Any, path: Path) -> np.ndarray:
    affine = form(raw, path)
    try:
        content.expect_affine(affine, path)
    except Refusal as error:
        raise Refusal(error.code, f"{name}: {error.message}", path=path, remedy=error.remedy) from error
    return affine


def _expect_agreement(raw: Any, sform: np.ndarray, qform: np.ndarray, shape: tuple[int, int, int], path: Path) -> None:
    """Refuse (E-AFFINE-CONFLICT) two transforms that put a corner of the image in two places.

    A qform stores three of the four components of a unit quaternion, in float32. The fourth, a, is what they leave,
    and near a = 0 (a half turn, as in every LPS image) it is known to 7e-4 only. That much rotation is no conflict.
    """
    spacing = geometry.spacing(sform)
    apart = np.linalg.norm(geometry.corners(sform, shape) - geometry.corners(qform, shape), axis=1).max()
    a = _quaternion(raw, path)[0]
    turn = 2 * (np.sqrt(a * a + QUATERNION_ROUNDING) - a)
    if apart > CONFLICT * spacing.min() + turn * np.linalg.norm(spacing * shape):
        message = f"sform and qform put a corner of the image {apart:.3g} mm apart"
        raise Refusal("E-AFFINE-CONFLICT", message, path=path)


def _sform(raw: Any, path: Path) -> np.ndarray:
    return np.array([raw["srow_x"], raw["srow_y"], raw["srow_z"], [0, 0, 0, 1]], np.float64)


def _qform(raw: Any, path: Path) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = quat2mat(_quaternion(raw, path)) * _pixdim(raw, path)
    if raw["pixdim"][0] < 0:
        affine[:3, 2] *= -1
    affine[:3, 3] = [raw["qoffset_x"], raw["qoffset_y"], raw["qoffset_z"]]
    return affine


def _quaternion(raw: Any, path: Path) -> np.ndarray:
    """(a, b, c, d) with a >= 0, shape (4,); E-AFFINE when the stored b, c, d are no part of a unit quaternion."""
    bcd = np.array([raw["quatern_b"], raw["quatern_c"], raw["quatern_d"]], np.float64)
    rest = 1 - float(bcd @ bcd)
    if not rest >= -QUATERNION_ROUNDING:  # also for NaN
        raise Refusal(
            "E-AFFINE",
            f"qform: quaternion components {bcd} are longer than 1 or not numbers",
            path=path,
            remedy="the header is damaged; export the image again from its source",
        )
    return np.array([np.sqrt(max(rest, 0.0)), *bcd])


def _pixdim(raw: Any, path: Path) -> np.ndarray:
    sizes = np.array(raw["pixdim"][1:4], np.float64)
    if (sizes <= 0).any():
        raise Refusal(
            "E-SPACING",
            f"expected positive voxel sizes, got pixdim {sizes}",
            path=path,
            remedy="the header is damaged; export the image again from its source",
        )
    return sizes
