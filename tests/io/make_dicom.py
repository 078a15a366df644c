"""Synthetic DICOM files with a chosen geometry, and with chosen faults, for tests. Every file carries CANARY."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat
from scipy.spatial.transform import Rotation

CANARY = "CANARYBIRD"
"""Stands in every field that could name the patient; must never be seen outside DICOM files."""
PATIENT = {
    "PatientName": f"{CANARY}^Name",
    "PatientID": f"{CANARY}-ID",
    "PatientBirthDate": "19010203",
    "PatientSex": "O",
    "AccessionNumber": CANARY,
    "StudyDescription": CANARY,
    "SeriesDescription": CANARY,
    "InstitutionName": CANARY,
    "ReferringPhysicianName": CANARY,
    "StudyDate": "19010203",
    "StudyTime": "010203",
    "StudyID": "1",
}
CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
ENHANCED = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage}


def ras_affine(spacing: tuple[float, ...], rotation: np.ndarray | None = None, origin: Any = (0, 0, 0)) -> np.ndarray:
    """Voxel -> RAS of a right-handed grid that is axial (x to the left, y to the back) before its rotation."""
    affine = np.eye(4)
    turn = np.eye(3) if rotation is None else rotation
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


SHAPE = (7, 6, 10)
AFFINE = ras_affine((0.8, 0.9, 2.0), Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix(), (5, -6, 7))
"""An oblique grid for arrays of SHAPE."""
SCOUT = ras_affine((1.0, 1.0, 1.0), Rotation.from_euler("x", 90, degrees=True).as_matrix())
"""A grid that lies across the others."""


def tilted(affine: np.ndarray, degrees: float) -> np.ndarray:
    """The grid with its slices stacked off their normal, along y, as a tilted gantry leaves them."""
    out = affine.copy()
    y, z = affine[:3, 1], affine[:3, 2]
    out[:3, 2] = z + y / np.linalg.norm(y) * np.tan(np.radians(degrees)) * np.linalg.norm(z)
    return out


def write_series(
    folder: Path,
    array_xyz: np.ndarray,
    affine_ras: np.ndarray,
    modality: str = "CT",
    *,
    slices: Iterable[int] | None = None,
    prefix: str = "slice",
    transfer_syntax: str = ExplicitVRLittleEndian,
    **overrides: Any,
) -> list[Path]:
    """One file a slice; stored values are `(array - RescaleIntercept) / RescaleSlope`, rounded to int16.

    Args:
        folder: made if it is not there.
        array_xyz: values as a reader should return them, shape (X, Y, Z); x runs along a row of the image.
        affine_ras: voxel -> RAS mm; the third axis may be sheared.
        modality: CT, MR or PT.
        slices: which slices to write, in this order of instance numbers; all by default.
        prefix: files are called <prefix>_<number>.dcm.
        transfer_syntax: encoding of the pixels; what pydicom can compress to.
        **overrides: DICOM keywords with values, None to leave out, or a function of the slice index.

    Returns:
        The files, in the order of `slices`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = {"SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(), "SeriesNumber": 1}
    study = {"StudyInstanceUID": generate_uid()}
    paths = []
    for number, index in enumerate(range(array_xyz.shape[2]) if slices is None else slices):
        dataset = _dataset(CLASSES[modality], modality)
        _set(
            dataset, {**series, **study, "InstanceNumber": number + 1, **_plane(affine_ras, index), "SliceThickness": 1}
        )
        _set(dataset, {"RescaleSlope": 1, "RescaleIntercept": 0, "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]})
        _set(dataset, overrides, index)
        values = array_xyz[:, :, index]
        stored = (values - float(dataset.get("RescaleIntercept", 0))) / float(dataset.get("RescaleSlope", 1))
        _set_pixels(dataset, np.rint(stored.T).astype("<i2"))
        _set(
            dataset, {key: value for key, value in overrides.items() if key in ("Rows", "Columns", "PixelData")}, index
        )
        paths.append(_save(dataset, folder / f"{prefix}_{number:03d}.dcm", transfer_syntax))
    return paths


def write_enhanced(
    path: Path,
    array_xyz: np.ndarray,
    affine_ras: np.ndarray,
    modality: str = "MR",
    *,
    slices: Iterable[int] | None = None,
    slopes: Callable[[int], float] = lambda index: 1.0,
    **overrides: Any,
) -> Path:
    """One enhanced multi-frame file; frames stand in the order of `slices`, each with a rescale slope of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = list(range(array_xyz.shape[2]) if slices is None else slices)
    dataset = _dataset(ENHANCED[modality], modality)
    _set(dataset, {name: generate_uid() for name in ("SeriesInstanceUID", "FrameOfReferenceUID", "StudyInstanceUID")})
    _set(dataset, {"SeriesNumber": 1, "InstanceNumber": 1, "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]})
    organization = generate_uid()
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    dataset.DimensionIndexSequence = [
        _item(DimensionOrganizationUID=organization, DimensionIndexPointer=pointer, FunctionalGroupPointer=0x00209111)
        for pointer in (0x00209056, 0x00209057)  # StackID, InStackPositionNumber
    ]
    geometry = _plane(affine_ras, 0)
    measures = _item(PixelSpacing=geometry["PixelSpacing"], SliceThickness=1)
    orientation = _item(ImageOrientationPatient=geometry["ImageOrientationPatient"])
    dataset.SharedFunctionalGroupsSequence = [
        _item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])
    ]
    groups, frames = [], []
    for number, index in enumerate(order):
        place = _item(ImagePositionPatient=_plane(affine_ras, index)["ImagePositionPatient"])
        rescale = _item(RescaleSlope=slopes(index), RescaleIntercept=-10, RescaleType="US")
        stack = _item(StackID="1", InStackPositionNumber=number + 1, DimensionIndexValues=[1, number + 1])
        group = _item(PlanePositionSequence=[place], PixelValueTransformationSequence=[rescale])
        group.FrameContentSequence = [stack]
        group.FrameVOILUTSequence = [_item(WindowCenter=5, WindowWidth=3)]
        groups.append(group)
        frames.append(np.rint((array_xyz[:, :, index].T + 10) / slopes(index)).astype("<i2"))
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.NumberOfFrames = len(frames)
    _set_pixels(dataset, np.stack(frames))
    _set(dataset, overrides)
    return _save(dataset, path, ExplicitVRLittleEndian)


def write_report(path: Path) -> Path:
    """A DICOM object without pixels (a structured report)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = _dataset(UID("1.2.840.10008.5.1.4.1.1.88.11"), "SR")
    _set(dataset, {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()})
    return _save(dataset, path, ExplicitVRLittleEndian)


def _dataset(sop_class: UID, modality: str) -> Dataset:
    dataset = Dataset()
    _set(dataset, {"SOPClassUID": sop_class, "SOPInstanceUID": generate_uid(), "Modality": modality, **PATIENT})
    return dataset


def _plane(affine_ras: np.ndarray, index: int) -> dict[str, list[DSfloat]]:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras
    spacing = np.linalg.norm(lps[:3, :2], axis=0)
    position = lps[:3, 3] + index * lps[:3, 2]
    return {
        "ImagePositionPatient": _decimals(position),
        "ImageOrientationPatient": _decimals((lps[:3, :2] / spacing).T.ravel()),
        "PixelSpacing": _decimals(spacing[::-1]),
    }


def _decimals(numbers: np.ndarray) -> list[DSfloat]:
    return [DSfloat(float(number), auto_format=True) for number in numbers]


def _item(**values: Any) -> Dataset:
    item = Dataset()
    _set(item, values)
    return item


def _set(dataset: Dataset, values: dict[str, Any], index: int | None = None) -> None:
    for keyword, value in values.items():
        chosen = value(index) if callable(value) else value
        if chosen is not None:
            setattr(dataset, keyword, chosen)
        elif keyword in dataset:
            delattr(dataset, keyword)


def _set_pixels(dataset: Dataset, stored: np.ndarray) -> None:
    defaults = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
    _set(dataset, {key: value for key, value in defaults.items() if key not in dataset})
    bits = {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1}
    _set(dataset, {"Rows": stored.shape[-2], "Columns": stored.shape[-1], **bits})
    dataset.PixelData = np.repeat(stored[..., None], dataset.SamplesPerPixel, axis=-1).tobytes()


def _save(dataset: Dataset, path: Path, transfer_syntax: str) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or generate_uid()
    if transfer_syntax != ExplicitVRLittleEndian:
        dataset.compress(UID(transfer_syntax), generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path
