"""DICOM headers as plain facts: where every image plane of a file lies, read without its pixels.

Only the tags listed here are parsed, and what DICOM readers have to say about malformed values is counted, not
repeated: such messages quote the values.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from monai_attention.errors import Refusal

logger = logging.getLogger(__name__)

GEOMETRY_TAGS = [
    "NumberOfFrames",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
PIXEL_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "DimensionIndexSequence",
]
SERIES_TAGS = ["ImageType", "Modality", "SeriesInstanceUID", "SeriesNumber", "BurnedInAnnotation"]
HEADER_TAGS = [*GEOMETRY_TAGS, *PIXEL_TAGS, *SERIES_TAGS]

DICOM_ROOT = "1.2.840.10008."
"""How all UIDs of the standard begin; others are private."""
DICOMDIR = "1.2.840.10008.1.3.10"
IMAGE_CLASSES = b"1.2.840.10008.5.1.4.1.1."
"""How the classes of stored objects begin; in a file without a preamble it stands near the beginning."""
DICOM_SUFFIXES = (".dcm", ".ima")
DERIVED_OBJECTS = {
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
}


class Skip(Enum):
    """Why a file found in a folder is no image plane to look at."""

    NOT_DICOM = "not DICOM"
    DIRECTORY = "DICOMDIR"
    NO_PIXELS = "DICOM without pixel data (reports, presentation states, PDF)"
    DERIVED = "segmentations, dose or parametric maps"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Header:
    """What one DICOM image file says about itself; UIDs are "" where the file has them emptied or left out.

    Args:
        path: the file.
        sop_class: SOPClassUID, or the one of the file's meta header.
        series_uid: SeriesInstanceUID.
        series_number: SeriesNumber, if any.
        frame_of_reference: FrameOfReferenceUID.
        modality: Modality, or "".
        size: rows, columns.
        samples: samples per pixel; 1 for scalar images.
        photometric: PhotometricInterpretation.
        transfer_syntax: how the file is encoded.
        frames: number of frames in the file.
        localizer: whether ImageType says LOCALIZER.
        burned_in: whether BurnedInAnnotation says YES.
    """

    path: Path
    sop_class: str
    series_uid: str
    series_number: int | None
    frame_of_reference: str
    modality: str
    size: tuple[int, int]
    samples: int
    photometric: str
    transfer_syntax: str
    frames: int
    localizer: bool
    burned_in: bool


@dataclass(frozen=True)
class Plane:
    """One frame of one file and its place; None where the file does not say.

    Args:
        header: the file's facts.
        frame: 0-based number of the frame in its file.
        position: LPS mm of the centre of the first pixel.
        orientation: LPS unit vectors along a row and along a column, six numbers.
        pixel_spacing: mm between rows, mm between columns.
    """

    header: Header
    frame: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None

    @property
    def placed(self) -> bool:
        """Whether the plane's place in the patient is known."""
        return None not in (self.position, self.orientation, self.pixel_spacing)


_ONE_AT_A_TIME = threading.RLock()
"""How warnings are treated belongs to the process: a thread that restores it would lay open another's."""


@contextmanager
def discreet(path: Path) -> Iterator[None]:
    """Keeps warnings and log lines of DICOM readers to a count: their text may quote what belongs to the patient."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    with _ONE_AT_A_TIME:
        levels = [one.level for one in loggers]
        for one in loggers:
            one.setLevel(logging.CRITICAL + 1)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)
    if caught:
        logger.debug("%s: %d warnings about malformed values", path, len(caught))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by the magic after its preamble, or because it begins like a data set without one."""
    with path.open("rb") as file:
        start = file.read(132)
    return _has_magic(start) or _begins_like_dataset(start)


def _has_magic(start: bytes) -> bool:
    return start[128:132] == b"DICM"


def _begins_like_dataset(start: bytes) -> bool:
    group, vr, length = start[:2], start[4:6], int.from_bytes(start[4:8], "little")
    begins_like_one = group in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"
    return begins_like_one and len(start) == 132 and (vr in (b"UL", b"UI", b"CS", b"SH", b"OB") or length < 256)


def read_planes(path: Path, derived: Container[str] = DERIVED_OBJECTS) -> tuple[Plane, ...] | Skip:
    """The image planes of one file, from its header alone, or why there are none.

    Args:
        path: the file.
        derived: SOPClassUIDs of objects that are no images.

    Raises:
        Refusal: `E-TRUNCATED` if the file is DICOM but ends before its pixels do.
    """
    try:
        if not is_dicom(path):
            if path.suffix.lower() in DICOM_SUFFIXES and _is_blank(path):
                raise _truncated(path, "it is called like DICOM and holds nothing")
            return Skip.NOT_DICOM
        with path.open("rb") as file, discreet(path):
            try:
                return _planes(path, file, derived)
            except Refusal:
                file.seek(0)
                beginning = file.read(4096)
                if _has_magic(beginning) or IMAGE_CLASSES in beginning:
                    raise
                return Skip.NOT_DICOM  # something else that happened to begin like a data set
    except OSError as error:
        logger.warning("%s: cannot be opened (%s)", path, error.strerror)
        return Skip.UNREADABLE


def _is_blank(path: Path) -> bool:
    """Whether a file is shorter than any of DICOM, or begins with zeros, as interrupted copies do."""
    with path.open("rb") as file:
        beginning = file.read(1024)
    return len(beginning) < 132 or not any(beginning)


def read_dataset(path: Path, keywords: list[str] | None = None, *, pixels: bool = False) -> pydicom.Dataset:
    """A data set with the UIDs that some de-identification programs empty restored from the file's meta header.

    Args:
        path: the file.
        keywords: what to parse; None = everything, the patient's fields included.
        pixels: whether to read the pixel data too.
    """
    tags = None if keywords is None else [*keywords, *(["PixelData"] if pixels else [])]
    with path.open("rb") as file:
        return _read_dataset(file, tags, pixels)


def _read_dataset(file: BinaryIO, tags: list[str] | None, pixels: bool) -> pydicom.Dataset:
    dataset = pydicom.dcmread(file, force=True, stop_before_pixels=not pixels, specific_tags=tags)
    meta = dataset.file_meta
    if not meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    for keyword, spare in (
        ("SOPClassUID", "MediaStorageSOPClassUID"),
        ("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
    ):
        if not dataset.get(keyword) and meta.get(spare):
            setattr(dataset, keyword, meta[spare].value)
    return dataset


def _planes(path: Path, file: BinaryIO, derived: Container[str]) -> tuple[Plane, ...] | Skip:
    try:
        dataset = _read_dataset(file, HEADER_TAGS, pixels=False)
        sop_class = str(dataset.get("SOPClassUID") or "")
        if DICOMDIR in (sop_class, dataset.file_meta.get("MediaStorageSOPClassUID")):
            return Skip.DIRECTORY
        if sop_class in derived:
            return Skip.DERIVED
        size = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
        # An image's file that ends before its pixels is damaged: leaving it out would shorten the series silently.
        if not _is_image(sop_class) and (0 in size or _ended(file, dataset)):
            return Skip.NO_PIXELS
        if 0 in size:
            raise _truncated(path, "the header ends before the size of the image")
        header = _header(path, dataset, sop_class, size)
        _check_pixels_are_there(path, file, header, int(dataset.get("BitsAllocated") or 8))
        return tuple(_plane(dataset, header, frame) for frame in range(header.frames))
    except (Refusal, OSError, MemoryError):
        raise
    except Exception as error:  # whatever pydicom raises on a damaged header; its text may quote values
        raise _truncated(path, f"the header cannot be read, {type(error).__name__}") from None


def _is_image(sop_class: str) -> bool:
    """Whether a class stands for images, as far as one can tell: also where its UID is cut short, or not there."""
    known = UID(sop_class).name != sop_class
    private = sop_class[: len(DICOM_ROOT)] != DICOM_ROOT[: len(sop_class)]
    return "Image Storage" in UID(sop_class).name if known else not private


def _ended(file: BinaryIO, dataset: pydicom.Dataset) -> bool:
    """Whether nothing follows the header in the file, which stands where parsing stopped."""
    at = file.tell()
    ended = at == file.seek(0, 2) and dataset.file_meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian
    file.seek(at)
    return ended


def _header(path: Path, dataset: pydicom.Dataset, sop_class: str, size: tuple[int, int]) -> Header:
    number = dataset.get("SeriesNumber")
    return Header(
        path=path,
        sop_class=sop_class,
        series_uid=str(dataset.get("SeriesInstanceUID") or ""),
        series_number=None if number is None else int(number),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
        modality=str(dataset.get("Modality") or ""),
        size=size,
        samples=int(dataset.get("SamplesPerPixel") or 1),
        photometric=str(dataset.get("PhotometricInterpretation") or ""),
        transfer_syntax=str(dataset.file_meta.TransferSyntaxUID),
        frames=int(dataset.get("NumberOfFrames") or 1),
        localizer="LOCALIZER" in np.atleast_1d(dataset.get("ImageType") or ""),
        burned_in=dataset.get("BurnedInAnnotation") == "YES",
    )


def _plane(dataset: pydicom.Dataset, header: Header, frame: int) -> Plane:
    """The place of a frame: from the functional groups of a multi-frame file, else from the data set itself."""
    sources = [dataset]
    if header.frames > 1 or "PerFrameFunctionalGroupsSequence" in dataset:
        own = (dataset.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
        shared = dataset.get("SharedFunctionalGroupsSequence") or []
        names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        sources = [item for group in (*own, *shared) for name in names for item in group.get(name) or ()]
    return Plane(
        header,
        frame,
        position=_numbers(sources, "ImagePositionPatient", 3),
        orientation=_numbers(sources, "ImageOrientationPatient", 6),
        pixel_spacing=_numbers(sources, "PixelSpacing", 2),
    )


def _numbers(sources: list[pydicom.Dataset], keyword: str, count: int) -> tuple[float, ...] | None:
    for source in sources:
        value = source.get(keyword)
        if value is not None and len(value) == count:
            numbers = tuple(float(v) for v in value)
            return numbers if np.isfinite(numbers).all() else None
    return None


def _check_pixels_are_there(path: Path, file: BinaryIO, header: Header, bits: int) -> None:
    """Compares the file's length with what its header promises. `file` stands at the pixel data element."""
    if header.transfer_syntax == DeflatedExplicitVRLittleEndian:
        return  # its length is known after inflating only; reading the pixels finds out
    start, end = file.tell(), file.seek(0, 2)
    if header.frames > end:
        raise _truncated(path, f"it promises {header.frames} frames in {end} bytes")
    if UID(header.transfer_syntax).is_encapsulated:
        whole = _last_fragment_ends(file, start + 12, end)
    else:
        explicit = not UID(header.transfer_syntax).is_implicit_VR
        promised = (header.size[0] * header.size[1] * header.samples * header.frames * bits + 7) // 8
        # Colour may be stored with subsampled chroma; scalar pixels have exactly one length.
        whole = end - start - (12 if explicit else 8) >= (promised if header.samples == 1 else 1)
    if not whole:
        raise _truncated(path, "the file ends before its pixel data do")


def _last_fragment_ends(file: BinaryIO, at: int, end: int) -> bool:
    """Whether the chain of compressed fragments that starts `at` reaches its delimiter inside the file."""
    while at + 8 <= end:
        file.seek(at)
        tag, length = file.read(4), int.from_bytes(file.read(4), "little")
        if tag == b"\xfe\xff\xdd\xe0":
            return True
        if tag != b"\xfe\xff\x00\xe0":
            return False
        at += 8 + length
    return False


def _truncated(path: Path, what: str) -> Refusal:
    return Refusal(
        "E-TRUNCATED",
        f"expected a whole DICOM image, but {what}; the file is truncated or damaged",
        path=path,
        remedy="copy or export the file again",
    )
