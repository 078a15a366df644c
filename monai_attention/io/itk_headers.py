"""The text headers of MetaImage (`.mha`, `.mhd`) and NRRD (`.nrrd`, `.nhdr`), as far as a scalar 3-D image needs them.

Both are read here and not by ITK: ITK fills what a truncated file lacks with zeros, and its import takes seconds, which
`check` does not have. Whatever these headers may say beyond a scalar 3-D image in one data file is refused by name.
The tests hold this reading against ITK's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.io import content, geometry
from monai_attention.io.volume import Requirements

MAX_HEADER_BYTES = 1 << 20

META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""MET_LONG is left out: four bytes or eight, depending on who wrote it."""

NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}

NRRD_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), geometry.RAS_LPS),
    **dict.fromkeys(("right-anterior-superior", "ras"), np.eye(4)),
    **dict.fromkeys(("left-anterior-superior", "las"), np.diag([-1.0, 1.0, 1.0, 1.0])),
}
"""World of the file -> RAS."""


@dataclass(frozen=True, kw_only=True)
class ItkHeader(content.Header):
    """A header that was let in, and where its voxels lie.

    Args:
        dtype: of the stored voxels, with byte order.
        data: the file that holds them; the header's own file or one beside it.
        offset: bytes of that file before the (compressed) voxels.
        compression: `gzip`, `zlib` or None.
    """

    dtype: np.dtype
    data: Path
    offset: int
    compression: str | None


def parse_meta(file: BinaryIO, path: Path, requirements: Requirements | None = None) -> ItkHeader:
    """MetaImage: lines of `Key = Value`, of which ElementDataFile is the last."""
    fields: dict[str, str] = {}
    for line in _lines(file, path):
        key, equals, value = line.partition("=")
        if not equals:
            break
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    else:
        raise corrupt(path, "the header ends before ElementDataFile")

    if int(fields.get("ElementNumberOfChannels", 1)) != 1 or fields["ElementType"].endswith("_ARRAY"):
        raise not_scalar(path)
    shape = _three([int(n) for n in fields["DimSize"].split()], path)
    if fields["ElementType"] not in META_TYPES:
        raise unsupported(path, f"ElementType {fields['ElementType']}")
    if not _is_true(fields.get("BinaryData", "True")):
        raise unsupported(path, "voxels written as text (BinaryData = False)")
    if any(float(fields.get(f"ElementToIntensityFunction{k}", v)) != v for k, v in (("Slope", 1.0), ("Offset", 0.0))):
        raise unsupported(path, "ElementToIntensityFunction")
    msb = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    offset = int(fields.get("HeaderSize", 0))
    data = fields["ElementDataFile"]
    local = data.upper() == "LOCAL"
    if offset < 0 or (local and offset):
        raise unsupported(path, f"HeaderSize {offset}")

    if "ElementSpacing" not in fields:
        raise no_spacing(path)
    spacing = _numbers(fields["ElementSpacing"], 3)
    matrix = next((fields[key] for key in ("TransformMatrix", "Rotation", "Orientation") if key in fields), None)
    origin = next((fields[key] for key in ("Offset", "Position", "Origin") if key in fields), "0 0 0")
    affine = np.eye(4)
    # The matrix is written axis by axis: its rows are the directions of x, y and z.
    affine[:3, :3] = (np.eye(3) if matrix is None else _numbers(matrix, 9).reshape(3, 3).T) * spacing
    affine[:3, 3] = _numbers(origin, 3)
    return ItkHeader(
        source=path,
        shape=shape,
        affine=geometry.lps_to_ras(affine),
        notes=() if matrix is not None else (content.unstated_orientation(path, requirements),),
        dtype=np.dtype((">" if _is_true(msb) else "<") + META_TYPES[fields["ElementType"]]),
        data=path if local else _beside(path, data),
        offset=file.tell() if local else offset,
        compression="zlib" if _is_true(fields.get("CompressedData", "False")) else None,
    )


def parse_nrrd(file: BinaryIO, path: Path, requirements: Requirements | None = None) -> ItkHeader:
    """NRRD: lines of `field: value` up to an empty line; `key:=value` and `#` lines are remarks."""
    lines = _lines(file, path)
    if not next(lines, "").startswith("NRRD000"):
        raise Refusal("E-FORMAT", "the file does not begin like NRRD", path=path, remedy="convert it to NIfTI")
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            break
        field, colon, value = line.partition(": ")
        if colon and not line.startswith("#") and ":=" not in field:
            fields[field.strip().lower()] = value.strip()

    kinds = fields.get("kinds", "").lower().split()
    sizes = [int(n) for n in fields["sizes"].split()]
    directions = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    ordinary = {"domain", "space", "time", "list", "none", "???"}
    if not ordinary.issuperset(kinds) or (directions[:1] == ["none"] and "list" not in kinds):
        raise not_scalar(path)
    shape = _three(sizes, path)
    if {"time", "list"}.intersection(kinds):
        raise Refusal(
            "E-DIMENSIONS", f"expected three axes in space, got {kinds}", path=path, remedy="give a 3-D image"
        )
    kind = fields["type"].lower()
    if kind not in NRRD_TYPES:
        raise unsupported(path, f"type {kind}")
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise unsupported(path, f"encoding {encoding}")
    for skip in ("line skip", "lineskip", "byte skip", "byteskip"):
        if int(fields.get(skip, 0)) != 0:
            raise unsupported(path, skip)
    dtype = np.dtype(NRRD_TYPES[kind])
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder({"little": "<", "big": ">"}[fields["endian"].lower()])  # type: ignore[arg-type]
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"", "mm", "millimeter", "millimetre"}
    if units:
        raise Refusal(
            "E-SPACING", f"expected space units in mm, got {sorted(units)}", path=path, remedy="write it in millimetre"
        )

    affine = np.eye(4)
    if directions:
        affine[:3, :3] = np.stack([_numbers(vector, 3) for vector in directions], axis=1)
    elif "spacings" in fields:
        affine[:3, :3] = np.diag(_numbers(fields["spacings"], 3))
    else:
        raise no_spacing(path)
    affine[:3, 3] = _numbers(fields.get("space origin", "(0,0,0)"), 3)
    to_ras = NRRD_SPACES.get(fields.get("space", "").lower()) if directions else None
    data = fields.get("data file", fields.get("datafile"))
    return ItkHeader(
        source=path,
        shape=shape,
        affine=(geometry.RAS_LPS if to_ras is None else to_ras) @ affine,
        notes=() if to_ras is not None else (content.unstated_orientation(path, requirements),),
        dtype=dtype,
        data=path if data is None else _beside(path, data),
        offset=file.tell() if data is None else 0,
        compression=None if encoding == "raw" else "gzip",
    )


def corrupt(path: Path, message: str) -> Refusal:
    """The refusal of a header that is not what its format demands."""
    return Refusal("E-CORRUPT", message, path=path, remedy="export the image again from its source")


def unsupported(path: Path, what: str) -> Refusal:
    """The refusal of a feature of the format that is not read."""
    return Refusal("E-FORMAT", f"{what} is not read", path=path, remedy="convert the image to .nii.gz")


def not_scalar(path: Path) -> Refusal:
    """The refusal of an image with several numbers a voxel."""
    return Refusal(
        "E-NOT-SCALAR",
        "expected one number a voxel, got several (colour, vectors, a multi-component image)",
        path=path,
        remedy="give the original scalar image",
    )


def no_spacing(path: Path) -> Refusal:
    """The refusal of an image without voxel sizes."""
    return Refusal("E-SPACING", "the header states no spacing", path=path, remedy="export the image again with spacing")


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    while line := file.readline(MAX_HEADER_BYTES):
        if file.tell() > MAX_HEADER_BYTES:
            raise corrupt(path, f"the header is longer than {MAX_HEADER_BYTES} bytes")
        if b"\0" in line:
            raise corrupt(path, "the header, which is text, holds a zero byte")
        yield os.fsdecode(line).rstrip("\r\n")


def _three(sizes: list[int], path: Path) -> tuple[int, int, int]:
    if len(sizes) == 4:
        raise Refusal(
            "E-4D",
            f"expected a 3-D image, got size {sizes}",
            path=path,
            remedy="save the one volume to segment, or convert to NIfTI and choose with --volume K",
        )
    if len(sizes) != 3:
        raise Refusal("E-DIMENSIONS", f"expected a 3-D image, got size {sizes}", path=path, remedy="give a 3-D image")
    if min(sizes) < 1:
        raise Refusal(
            "E-TOO-SMALL", f"the image has no voxels: its size is {sizes}", path=path, remedy="export the image again"
        )
    return sizes[0], sizes[1], sizes[2]


def _is_true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")  # all that MetaImage itself looks at


def _numbers(text: str, count: int) -> np.ndarray:
    values = [float(word) for word in text.strip("() ").replace(",", " ").split()]
    if len(values) != count:
        raise ValueError(f"expected {count} numbers, got {len(values)}")
    return np.array(values)


def _beside(path: Path, name: str) -> Path:
    """The data file of a detached header, which must lie in the header's folder or below it."""
    parts = PurePath(name).parts
    if not parts or name.upper().startswith("LIST") or "%" in name or PurePath(name).is_absolute() or ".." in parts:
        raise unsupported(path, "a data file that is a list, a pattern or outside the header's folder")
    return path.parent / name
