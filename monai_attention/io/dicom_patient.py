"""Which DICOM files are of one patient, without saying who that is."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pydicom

from monai_attention.io.dicom_headers import discreet, is_dicom, read_dataset
from monai_attention.io.files import files_below

logger = logging.getLogger(__name__)

BEGINNING = 1 << 20
"""Bytes of a zipped file, in which its patient is told."""


def patient_key(path: Path) -> str | None:
    """The same short text for files of one patient, another for another; to be compared, never to be written out.

    It is a hash of PatientID, and such numbers can be guessed.

    Args:
        path: a DICOM file, or a folder or zip of one patient's.

    Returns:
        None where there is no DICOM file, or PatientID is empty, left out or unreadable in all of them.
    """
    try:
        for file in _files(path):
            if is_dicom(file) and (patient := _patient(file)):
                return hashlib.sha256(f"monai_attention:{patient}".encode()).hexdigest()[:16]
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        logger.warning("%s: its patient is unknown (%s)", path, type(error).__name__)  # reading it gives the verdict
    return None


def _patient(file: Path) -> str:
    try:
        with discreet(file):
            return str(read_dataset(file, ["PatientID"]).get("PatientID") or "").strip()
    except (EOFError, ValueError, zlib.error, pydicom.errors.InvalidDicomError):
        return ""  # another file may tell


def _files(path: Path) -> Iterator[Path]:
    """Those of a folder, or the beginnings of those in a zip, one at a time."""
    if path.is_dir():
        yield from files_below(path)
    elif not zipfile.is_zipfile(path):
        yield path
    else:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as scratch:
            beginning = Path(scratch, "beginning")
            for entry in sorted((one for one in archive.infolist() if not one.is_dir()), key=lambda one: one.filename):
                with archive.open(entry) as file:
                    beginning.write_bytes(file.read(BEGINNING))
                yield beginning
