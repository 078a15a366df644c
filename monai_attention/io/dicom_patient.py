"""Which DICOM files are of one patient, without saying who that is."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pydicom

from monai_attention.io.cases import files_below
from monai_attention.io.dicom_headers import discreet, is_dicom, read_dataset

logger = logging.getLogger(__name__)


def patient_key(path: Path) -> str | None:
    """The same short text for files of one patient, another for another; to be compared, never to be written out.

    It is a hash of PatientID, and such numbers can be guessed.

    Args:
        path: a DICOM file, or a folder of one patient's.

    Returns:
        None where there is no DICOM file, or its PatientID is empty, left out or unreadable.
    """
    try:
        files = [path] if path.is_file() else files_below(path)
        first = next((file for file in files if is_dicom(file)), None)
        if first is None:
            return None
        with discreet(first):
            patient = str(read_dataset(first, ["PatientID"]).get("PatientID") or "").strip()
    except (OSError, EOFError, ValueError, pydicom.errors.InvalidDicomError) as error:
        logger.warning("%s: its patient is unknown (%s)", path, type(error).__name__)  # reading it gives the verdict
        return None
    return hashlib.sha256(f"monai_attention:{patient}".encode()).hexdigest()[:16] if patient else None
