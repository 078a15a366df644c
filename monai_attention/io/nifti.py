"""NIfTI-1 and NIfTI-2 single files (`.nii`, `.nii.gz`): raw header first, then the voxels in one checked pass.

The header is looked at as it is stored, since nibabel repairs what it finds wrong without a word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from monai_attention.errors import Refusal
from monai_attention.io import content, nifti_affine, payload
from monai_attention.io.volume import ReadOptions, Requirements, Volume

HEADER_BYTES = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
"""`sizeof_hdr`, the first field, tells the two versions (and, byte-swapped, the endianness) apart."""


@dataclass(frozen=True, kw_only=True)
class NiftiHeader(content.Header):
    """A NIfTI header that was let in, and where its voxels lie.

    Args:
        dtype: of the stored voxels, with byte order.
        scaling: (slope, inter) from stored value to intensity, or None.
        begin: bytes of the uncompressed file before the first voxel to read.
        size: bytes of the voxels to read.
        end: bytes of the uncompressed file up to the end of the last volume.
    """

    dtype: np.dtype
    scaling: tuple[float, float] | None
    begin: int
    size: int
    end: int


def read_header(path: Path, options: ReadOptions, requirements: Requirements | None) -> NiftiHeader:
    """Read the header only, and check all that the file's size and its own fields tell.

    Raises:
        Refusal: E-FORMAT, E-CORRUPT, E-TRUNCATED, E-SIZE, E-DIMENSIONS, E-4D, E-NOT-SCALAR, E-AFFINE,
            E-AFFINE-CONFLICT, E-NO-ORIENTATION or E-SPACING.
    """
    with payload.opened(path, compression=compression_of(path)) as stream:
        return _parse(stream, path, options, requirements)


def read(path: Path, options: ReadOptions, requirements: Requirements | None) -> Volume:
    """Read a volume: its header, then exactly the voxels it promises, then the rest up to the checksum.

    Returns:
        The volume with notes about the file itself; `content.examine` has still to look at it.

    Raises:
        Refusal: those of `read_header`; E-TRUNCATED, E-CORRUPT or E-SIZE when the data are not what the header says.
    """
    with payload.opened(path, compression=compression_of(path)) as stream:
        header = _parse(stream, path, options, requirements)
        payload.skip(stream, header.begin - stream.tell(), path)
        stored = payload.take(stream, header.size, path)
        payload.skip(stream, header.end - stream.tell(), path)
        payload.finish(stream, path)
    array = payload.to_float32(stored, header.dtype, header.shape, channels=header.channels, scaling=header.scaling)
    return Volume(array, header.affine, path, notes=header.notes)


def compression_of(path: Path) -> str | None:
    """By the name."""
    return "gzip" if path.suffix.lower() == ".gz" else None


def _parse(stream: BinaryIO, path: Path, options: ReadOptions, requirements: Requirements | None) -> NiftiHeader:
    raw = raw_header(stream, path)
    dtype = dtype_of(raw, path)
    shape, volumes = _dimensions(raw, path)
    index, channels = _chosen(volumes, path, options, requirements)
    affine, notes = nifti_affine.choose(raw, shape, path, options, requirements)

    volume_bytes = math.prod(shape) * dtype.itemsize
    begin = float(raw["vox_offset"])
    if not (raw["sizeof_hdr"] <= begin < 2**31 and begin == int(begin)):
        raise Refusal(
            "E-CORRUPT",
            f"expected the voxels after the header of {raw['sizeof_hdr']} bytes, got vox_offset {begin:g}",
            path=path,
            remedy="export the image again from its source",
        )
    end = int(begin) + volume_bytes * volumes
    needed = channels * math.prod(shape) * (dtype.itemsize + 4)
    payload.expect_memory(path, needed, options.max_memory)
    payload.expect_size(path, end, compression=compression_of(path))
    return NiftiHeader(
        source=path,
        shape=shape,
        affine=affine,
        channels=channels,
        notes=notes,
        dtype=dtype,
        scaling=scaling_of(raw, path),
        begin=int(begin) + volume_bytes * index,
        size=volume_bytes * channels,
        end=end,
    )


def raw_header(stream: BinaryIO, path: Path) -> Any:
    """The header as it is stored, nothing repaired; E-FORMAT for what is not a single-file NIfTI."""
    first = stream.read(348)
    if len(first) < 348:
        raise payload.truncated(path, 348 - len(first))
    for order in ("little", "big"):
        kind = HEADER_BYTES.get(int.from_bytes(first[:4], order))
        if kind is not None:
            break
    else:
        raise Refusal("E-FORMAT", "the file does not begin like NIfTI", path=path, remedy="convert it to NIfTI")
    block = first + stream.read(kind.sizeof_hdr - 348)
    if len(block) < kind.sizeof_hdr:
        raise payload.truncated(path, kind.sizeof_hdr - len(block))
    raw = kind(block, endianness="<" if order == "little" else ">", check=False)
    if bytes(raw["magic"]).rstrip(b"\0")[:3] not in (b"n+1", b"n+2"):
        raise Refusal(
            "E-FORMAT",
            "expected a single-file NIfTI, got an ANALYZE image or a pair of .hdr and .img",
            path=path,
            remedy="convert it to .nii.gz, for example with `nibabel.load(...).to_filename(...)`",
        )
    return raw


def dtype_of(raw: Any, path: Path) -> np.dtype:
    """Of the voxels, as a header says; E-NOT-SCALAR if a voxel is more than one number."""
    code = int(raw["datatype"])
    try:
        dtype = raw.get_data_dtype()
    except (KeyError, HeaderDataError) as error:
        raise Refusal(
            "E-CORRUPT", f"datatype code {code} is none of NIfTI's", path=path, remedy="export the image again"
        ) from error
    if dtype.kind not in "iuf" or dtype.itemsize == 0:
        raise Refusal(
            "E-NOT-SCALAR",
            f"expected one number a voxel, got datatype code {code} (colour, complex or bits)",
            path=path,
            remedy="give the original scalar image, not a rendered or colour-coded one",
        )
    return dtype


def _dimensions(raw: Any, path: Path) -> tuple[tuple[int, int, int], int]:
    """Voxels along x, y, z and the number of volumes; trailing axes of length 1 do not count."""
    rank = int(raw["dim"][0])
    if not 1 <= rank <= 7:
        raise Refusal(
            "E-CORRUPT", f"expected 1 to 7 dimensions, got dim[0] = {rank}", path=path, remedy="export the image again"
        )
    sizes = [int(n) for n in raw["dim"][1 : rank + 1]]
    if min(sizes) < 1:
        raise Refusal(
            "E-TOO-SMALL", f"the image has no voxels: its size is {sizes}", path=path, remedy="export the image again"
        )
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if not 3 <= len(sizes) <= 4:
        raise Refusal(
            "E-DIMENSIONS",
            f"expected a 3-D image (or 4-D with volumes along the fourth axis), got size {sizes}",
            path=path,
            remedy="give the scalar image; 2-D images, vector fields and tensors are not segmented",
        )
    x, y, z = sizes[:3]
    return (x, y, z), sizes[3] if len(sizes) == 4 else 1


def _chosen(volumes: int, path: Path, options: ReadOptions, requirements: Requirements | None) -> tuple[int, int]:
    """First volume to read and how many: one, or all of them as the channels that a bundle asks for."""
    if volumes == 1:
        return 0, 1
    if options.volume is not None:
        if 0 <= options.volume < volumes:
            return options.volume, 1
        message = f"volume {options.volume} was asked for; the image has volumes 0 to {volumes - 1}"
    elif requirements is not None and requirements.channels == volumes:
        return 0, volumes
    else:
        message = f"expected one volume, got {volumes} along the fourth axis (time, echoes or directions)"
    raise Refusal("E-4D", message, path=path, remedy=f"choose one with --volume K, K from 0 to {volumes - 1}")


def scaling_of(raw: Any, path: Path) -> tuple[float, float] | None:
    """Slope and intercept; None where the slope is 0, NaN or infinite, which the standard calls no scaling."""
    try:
        slope, inter = raw.get_slope_inter()
    except HeaderDataError as error:
        message = f"scl_slope is {float(raw['scl_slope']):g} but scl_inter is {float(raw['scl_inter']):g}"
        raise Refusal("E-CORRUPT", message, path=path, remedy="export the image again") from error
    return None if slope is None or (slope, inter) == (1.0, 0.0) else (slope, inter)
