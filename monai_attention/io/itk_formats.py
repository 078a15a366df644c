"""MetaImage (`.mha`, `.mhd`) and NRRD (`.nrrd`, `.nhdr`): text header first, then the voxels in one checked pass."""

from __future__ import annotations

import math
from pathlib import Path

from monai_attention.errors import Refusal
from monai_attention.io import content, itk_headers, payload
from monai_attention.io.itk_headers import ItkHeader
from monai_attention.io.volume import ReadOptions, Requirements, Volume

PARSERS = {
    ".mha": itk_headers.parse_meta,
    ".mhd": itk_headers.parse_meta,
    ".nrrd": itk_headers.parse_nrrd,
    ".nhdr": itk_headers.parse_nrrd,
}


def read_header(path: Path, options: ReadOptions, requirements: Requirements | None) -> ItkHeader:
    """Read the header only, and check all that the file's size and its own fields tell.

    Raises:
        Refusal: E-FORMAT, E-CORRUPT, E-TRUNCATED, E-SIZE, E-DIMENSIONS, E-4D, E-NOT-SCALAR, E-AFFINE,
            E-NO-ORIENTATION, E-SPACING, or E-NOT-FOUND (also for a detached data file).
    """
    with payload.opened(path) as file:
        try:
            header = PARSERS[path.suffix.lower()](file, path, requirements)
        except Refusal:  # which is a ValueError too
            raise
        except KeyError as error:
            raise itk_headers.corrupt(path, f"the header lacks or misspells {error}") from error
        except ValueError as error:
            raise itk_headers.corrupt(path, f"the header has a malformed number: {error}") from error
    content.expect_affine(header.affine, path)
    voxels = math.prod(header.shape)
    payload.expect_memory(path, voxels * (header.dtype.itemsize + 4), options.max_memory)
    payload.expect_size(
        header.data, voxels * header.dtype.itemsize, offset=header.offset, compression=header.compression
    )
    return header


def read(path: Path, options: ReadOptions, requirements: Requirements | None) -> Volume:
    """Read a volume: its header, then exactly the voxels it promises, then the rest up to the checksum.

    Returns:
        The volume with notes about the file itself; `content.examine` has still to look at it.

    Raises:
        Refusal: those of `read_header`; E-TRUNCATED, E-CORRUPT or E-SIZE when the data are not what the header says.
    """
    header = read_header(path, options, requirements)
    with payload.opened(header.data, offset=header.offset, compression=header.compression) as stream:
        stored = payload.take(stream, math.prod(header.shape) * header.dtype.itemsize, header.data)
        payload.finish(stream, header.data)
    array = payload.to_float32(stored, header.dtype, header.shape)
    return Volume(array, header.affine, path, notes=header.notes)
