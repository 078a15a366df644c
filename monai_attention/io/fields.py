"""Files of transformations that ITK, ANTs and Slicer apply as they are: displacement fields and affine matrices.

In memory a transformation says, in RAS mm, where a world point of the fixed image comes from in the moving one: a field
maps p to p + u(p), a matrix to M p. ITK's transforms say the same in LPS mm, so that only signs change.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.io import nifti, nifti_affine, payload
from monai_attention.io.geometry import RAS_LPS, is_sheared
from monai_attention.io.read import DEFAULTS
from monai_attention.io.volume import ReadOptions, Requirements
from monai_attention.io.write import nifti_header, replacing, write_planes, write_text

VECTOR = 1007
"""NIfTI's intent code of what ITK writes: LPS mm. (Of code 1006, which should be RAS, programs disagree.)"""

TEXT = (".tfm", ".txt")
AFFINE = "AffineTransform_double_3_3"
LIKE_AFFINE = re.compile(r"(AffineTransform|MatrixOffsetTransformBase)_(double|float)_3_3")
"""Names of ITK's transforms with a matrix, a translation and a centre."""

LARGEST_AFFINE = 1 << 16
"""Bytes of a file that can still be one matrix."""

ITK_SHEAR = 5e-5
"""Cosine between two axes of a grid that ITK surely still takes for perpendicular (it ends near 1e-4)."""

AGAIN = "write it again from its source"
ONE_AFFINE = "give one affine transformation; antsApplyTransforms joins several with `-o Linear[joined.mat]`"


def write_field(path: str | Path, displacement_mm: np.ndarray, affine: np.ndarray) -> None:
    """Write a displacement field as NIfTI: size (X, Y, Z, 1, 3), intent code 1007, LPS mm, float32.

    Args:
        path: ends in `.nii.gz` or `.nii`.
        displacement_mm: shape (3, X, Y, Z), RAS mm, on the fixed grid: where each voxel comes from, less where it is.
        affine: shape (4, 4), index of a voxel of the fixed grid -> RAS mm.

    Raises:
        Refusal: E-TRANSFORM where the axes of the grid are not perpendicular; E-DISK-FULL, E-READ-ONLY.
    """
    if not str(path).endswith((".nii.gz", ".nii")):
        raise ValueError(f"the name must end in .nii.gz or .nii, got {path}")
    if displacement_mm.ndim != 4 or displacement_mm.shape[0] != 3:
        raise ValueError(f"expected a field of shape (3, X, Y, Z), got {displacement_mm.shape}")
    if not all(np.isfinite(component).all() for component in displacement_mm):
        raise ValueError("the field holds NaN or infinity")
    header = nifti_header((*displacement_mm.shape[1:], 1, 3), np.dtype(np.float32), affine)
    header.set_intent(VECTOR)
    if is_sheared(affine, ITK_SHEAR) and not header["qform_code"]:
        raise Refusal(
            "E-TRANSFORM",
            "the grid is sheared (gantry tilt), and ITK knows no such grids",
            path=path,
            remedy="resample the fixed image to perpendicular axes first",
        )
    lps = zip((-1, -1, 1), np.moveaxis(displacement_mm, 3, 1), strict=True)
    write_planes(path, header, (sign * plane for sign, planes in lps for plane in planes))


def read_field(path: str | Path, options: ReadOptions = DEFAULTS) -> tuple[np.ndarray, np.ndarray]:
    """Read a displacement field as `write_field`, ITK and ANTs write it.

    Args:
        path: `.nii.gz` or `.nii`.
        options: `affine` and `max_memory` hold for fields as well.

    Returns:
        float32 (3, X, Y, Z), displacement in RAS mm on the fixed grid; and float64 (4, 4), voxel -> RAS mm.

    Raises:
        Refusal: E-TRANSFORM for an image of another kind, or whose convention is not certain; E-NONFINITE; and those
            of any NIfTI file: E-FORMAT, E-CORRUPT, E-TRUNCATED, E-SIZE, E-NOT-SCALAR, E-AFFINE, E-AFFINE-CONFLICT,
            E-NO-ORIENTATION, E-SPACING, E-NOT-FOUND, E-UNREADABLE.
    """
    path = Path(path)
    compression = nifti.compression_of(path)
    with payload.opened(path, compression=compression) as stream:
        raw = nifti.raw_header(stream, path)
        shape = _expect_field(raw, path)
        dtype, scaling = nifti.dtype_of(raw, path), nifti.scaling_of(raw, path)
        affine, _ = nifti_affine.choose(raw, shape, path, options, Requirements())
        begin, size = float(raw["vox_offset"]), math.prod(shape) * dtype.itemsize
        if not (raw["sizeof_hdr"] <= begin < 2**31 and begin == int(begin)):
            raise Refusal("E-CORRUPT", f"vox_offset is {begin:g}", path=path, remedy=AGAIN)
        payload.expect_memory(path, size + (3 + 1) * math.prod(shape) * 4, options.max_memory)
        payload.expect_size(path, int(begin) + 3 * size, compression=compression)
        payload.skip(stream, int(begin) - stream.tell(), path)
        field = np.empty((3, *shape), np.float32)
        for component in field:  # as they are stored, one after the other
            component[...] = payload.to_float32(payload.take(stream, size, path), dtype, shape, scaling=scaling)[0]
        payload.finish(stream, path)
    if not all(np.isfinite(component).all() for component in field):
        raise Refusal("E-NONFINITE", "the field holds NaN or infinity", path=path, remedy="register the images again")
    field[:2] *= -1
    return field, affine


def write_affine(path: str | Path, matrix: np.ndarray) -> None:
    """Write an affine transformation: ITK's text (`.tfm`, `.txt`), or the binary file of ITK and ANTs (`.mat`).

    Args:
        path: its suffix tells the format.
        matrix: shape (4, 4), world point of the fixed image -> where it comes from in the moving one, RAS mm.

    Raises:
        Refusal: E-DISK-FULL or E-READ-ONLY.
    """
    suffix = Path(path).suffix
    if suffix not in (*TEXT, ".mat"):
        raise ValueError(f"the name must end in .tfm, .txt or .mat, got {path}")
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise ValueError(f"expected an affine matrix, (4, 4) with the last row 0 0 0 1, got {matrix}")
    lps = RAS_LPS @ matrix @ RAS_LPS + 0.0  # + 0.0 makes 0 of -0
    parameters = np.concatenate([lps[:3, :3].ravel(), lps[:3, 3]])
    if suffix in TEXT:
        numbers = " ".join(map(repr, parameters.tolist()))
        lines = f"Transform: {AFFINE}\nParameters: {numbers}\nFixedParameters: 0 0 0\n"
        write_text(path, f"#Insight Transform File V1.0\n#Transform 0\n{lines}")
        return
    from scipy.io import savemat

    with replacing(path) as temporary, temporary.open("wb") as file:
        savemat(file, {AFFINE: parameters[:, None], "fixed": np.zeros((3, 1))}, format="4")


def read_affine(path: str | Path) -> np.ndarray:
    """Read an affine transformation as `write_affine`, ITK, ANTs and Slicer write it.

    Returns:
        float64 (4, 4), world point of the fixed image -> where it comes from in the moving one, RAS mm.

    Raises:
        Refusal: E-TRANSFORM for several transformations, or one of another kind; E-AFFINE, E-FORMAT, E-CORRUPT,
            E-TRUNCATED, E-SIZE, E-NOT-FOUND, E-UNREADABLE.
    """
    path = Path(path)
    if path.suffix not in (*TEXT, ".mat"):
        raise Refusal("E-FORMAT", "expected a .tfm, .txt or .mat file", path=path, remedy="save it as one of these")
    with payload.opened(path) as stream:
        content = stream.read(LARGEST_AFFINE + 1)
    if len(content) > LARGEST_AFFINE:
        raise Refusal("E-SIZE", "the file is too large for one affine transformation", path=path, remedy=ONE_AFFINE)
    names, numbers = _text(content, path) if path.suffix in TEXT else _mat(content, path)
    if len(names) != 1 or not LIKE_AFFINE.fullmatch(names[0]):
        message = f"expected one {AFFINE}, got {', '.join(names) or 'none'}"
        raise Refusal("E-TRANSFORM", message, path=path, remedy=ONE_AFFINE)
    try:
        parameters, centre = (np.asarray(part, np.float64).ravel() for part in numbers)
    except (ValueError, TypeError) as error:
        raise _corrupt(path, error) from error
    if (parameters.size, centre.size) != (12, 3):
        raise _corrupt(path, f"expected 12 parameters and 3 fixed ones, got {parameters.size} and {centre.size}")
    lps = np.eye(4)
    lps[:3, :3] = parameters[:9].reshape(3, 3)
    lps[:3, 3] = parameters[9:] + centre - lps[:3, :3] @ centre
    if not np.isfinite(lps).all() or np.linalg.matrix_rank(lps[:3, :3]) < 3:
        raise Refusal("E-AFFINE", "the matrix is singular, or holds NaN or infinity", path=path, remedy=AGAIN)
    return RAS_LPS @ lps @ RAS_LPS


def _expect_field(raw: Any, path: Path) -> tuple[int, int, int]:
    """Voxels along x, y, z of an image that is laid out and marked as ITK's displacement fields are."""
    rank, intent = int(raw["dim"][0]), int(raw["intent_code"])
    size = [int(n) for n in raw["dim"][1 : rank + 1]] if 1 <= rank <= 7 else []
    name = bytes(raw["intent_name"]).rstrip(b"\0")  # SPM and NiftyReg name what is no displacement in LPS mm
    if len(size) != 5 or min(size) < 1 or size[3:] != [1, 3]:
        message = f"expected a displacement field of size (X, Y, Z, 1, 3), got {tuple(size)}"
    elif intent != VECTOR:
        message = f"expected intent code {VECTOR} (LPS mm, as ITK and ANTs write), got {intent}"
    elif name:
        message = f"the image calls itself {name.decode('latin1')!r}, not a displacement field of ITK or ANTs"
    else:
        return size[0], size[1], size[2]
    remedy = "write it with ITK, ANTs or this program; a guess could swap left and right"
    raise Refusal("E-TRANSFORM", message, path=path, remedy=remedy)


def _text(content: bytes, path: Path) -> tuple[list[str], list[Any]]:
    """Names of the transformations in ITK's text, parameters and fixed parameters of the last."""
    if not content.startswith(b"#Insight Transform File V1.0"):
        raise Refusal("E-FORMAT", "the file does not begin like ITK's transformations", path=path, remedy=AGAIN)
    if not content.endswith(b"\n"):
        raise Refusal("E-TRUNCATED", "the last line has no end", path=path, remedy="copy or download the file again")
    entries = re.findall(r"^(\w+):(.*)$", content.decode("latin1"), re.MULTILINE)
    last = dict(entries)
    numbers = [last.get(key, "").split() for key in ("Parameters", "FixedParameters")]
    return [value.strip() for key, value in entries if key == "Transform"], numbers


def _mat(content: bytes, path: Path) -> tuple[list[str], list[Any]]:
    """The same of a MATLAB file, in which parameters have the name of their transformation."""
    from scipy.io import loadmat, whosmat

    try:
        names = [name for name, *_ in whosmat(io.BytesIO(content)) if name != "fixed"]
        variables = loadmat(io.BytesIO(content))
    except Exception as error:  # of many kinds, whatever the damage
        raise _corrupt(path, error) from error
    return names, [variables.get(name, ()) for name in (*names[-1:], "fixed")]


def _corrupt(path: Path, why: object) -> Refusal:
    return Refusal("E-CORRUPT", f"the transformation cannot be read: {why}", path=path, remedy=AGAIN)
