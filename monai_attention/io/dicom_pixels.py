"""Pixels of DICOM planes as the scanner meant them: stored values through the modality LUT, and nothing after it.

No window, no presentation LUT, no inversion of MONOCHROME1: what a voxel holds never depends on how it is displayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian

from monai_attention.errors import Refusal
from monai_attention.io.dicom_headers import GEOMETRY_TAGS, PIXEL_TAGS, Header, Plane, discreet, read_dataset

if TYPE_CHECKING:
    from highdicom import Image


def check_codec(header: Header) -> None:
    """Refuses a file whose pixels cannot be decoded here.

    Raises:
        Refusal: `E-CODEC`, naming the transfer syntax.
    """
    syntax = UID(header.transfer_syntax)
    what = f"expected a transfer syntax that can be decoded here, but the file is {syntax.name} ({syntax})"
    if syntax == ExplicitVRBigEndian:
        raise Refusal("E-CODEC", what, path=header.path, remedy="convert it to little endian")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Refusal("E-CODEC", what, path=header.path, remedy="convert it to an uncompressed syntax") from None
    if not decoder.is_available:
        raise Refusal("E-CODEC", what, path=header.path, remedy="pip install 'monai_attention[dicom-codecs]'")


def check_scalar(header: Header) -> None:
    """Refuses colour images and secondary captures, and a display convention that readers disagree about.

    Raises:
        Refusal: `E-NOT-SCALAR`, `E-MONOCHROME1`.
    """
    name = UID(header.sop_class).name if header.sop_class else ""
    if header.samples != 1 or not header.photometric.startswith("MONOCHROME") or "Secondary Capture" in name:
        kind = "secondary capture" if "Secondary Capture" in name else header.photometric or "colour"
        raise Refusal(
            "E-NOT-SCALAR",
            f"expected a scalar image with one measured value for each pixel, but a {kind} image came",
            path=header.path,
            remedy="give the original series of the scanner",
        )
    if header.photometric == "MONOCHROME1" and header.modality in ("CT", "MR"):
        raise Refusal(
            "E-MONOCHROME1",
            f"expected MONOCHROME2 in a {header.modality} series, but MONOCHROME1 came, which some readers invert",
            path=header.path,
            remedy="export the series again without inverting its grey scale",
        )


def read_frames(planes: Sequence[Plane]) -> Iterator[np.ndarray]:
    """Values of each plane, float32 of shape (rows, columns), one after the other.

    Raises:
        Refusal: `E-TRUNCATED` if a file's pixels cannot be decoded, naming the file.
    """
    for _, group in groupby(planes, key=lambda plane: plane.header.path):
        image: Image | None = None
        for plane in group:
            image, values = _decode(image, plane)
            yield values


def _decode(image: Image | None, plane: Plane) -> tuple[Image, np.ndarray]:
    """The opened file, and the values of one of its frames."""
    path = plane.header.path
    try:
        with discreet(path):
            image = image or _open(plane.header)
            return image, _frame(image, plane)
    except MemoryError:
        raise
    except Exception as error:  # whatever pydicom, highdicom or a codec raises; the text may quote values
        raise Refusal(
            "E-TRUNCATED",
            f"expected {plane.header.size} pixels in frame {plane.frame + 1}, but decoding failed with "
            f"{type(error).__name__}; the file is truncated or damaged",
            path=path,
            remedy="copy or export the file again",
        ) from None


def _open(header: Header) -> Image:
    from highdicom import Image

    dataset = read_dataset(header.path, [*PIXEL_TAGS, *GEOMETRY_TAGS], pixels=True)
    image = Image.from_dataset(dataset, copy=False)
    if dataset.BitsStored < dataset.BitsAllocated:
        _ = image.pixel_array  # decoded by pydicom and kept: highdicom 0.28 takes bits that are not stored for values
    return image


def _frame(image: Image, plane: Plane) -> np.ndarray:
    values = image.get_frame(
        plane.frame + 1,
        dtype=np.float32,
        apply_real_world_transform=False,
        apply_voi_transform=False,
        apply_presentation_lut=False,
    )
    if values.shape != plane.header.size:
        raise ValueError(f"shape {values.shape}")
    return values
