"""The record of one case: what `run.json` holds, and what the tables and the page are made of.

Only the keys documented here go out. A key that nobody has thought about is an error, so that nothing of the patient
slips into a file by accident.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from monai_attention.io.geometry import spacing
from monai_attention.io.write import write_json

SCHEMA_VERSION = "1.0"

VERDICTS = ("refused", "flagged", "ok")
"""What can become of a case, worst first."""

LIBRARIES = ("monai_attention", "torch", "monai", "numpy", "nibabel", "pydicom", "highdicom", "itk")


class Remark(TypedDict):
    """A repair or flag: the fields of `io.volume.Note`."""

    kind: str
    code: str
    message: str


class ClassVolume(TypedDict):
    """How much of one class was found."""

    label: int
    voxels: int
    ml: float


class ClassScores(TypedDict):
    """How well one class was found: the fields of `finetune.scores.Scores`, None where there is no number."""

    label: int  # the dataset's
    dice: float | None
    surface_dice: float | None
    hd95_mm: float | None
    truth_ml: float
    found_ml: float
    where: str


class Geometry(TypedDict):
    """The input's grid: voxels, mm between them, and where the array axes point ("RAS", "LPS", ...)."""

    shape: list[int]
    spacing_mm: list[float]
    orientation: str


class BundleIdentity(TypedDict, total=False):
    """Which network made the labels."""

    name: str
    version: str
    weights_sha256: str


class CaseRecord(TypedDict, total=False):
    """One case. `case_id` and `verdict` are always there, the rest as far as the case came.

    The paths in `outputs` are relative to the case's folder, which is the output folder / `case_id`.
    """

    schema_version: str  # added on writing
    case_id: str
    verdict: str  # one of VERDICTS
    code: str  # of the refusal or of the first flag
    message: str
    remedy: str
    path: str  # the file at fault
    notes: list[Remark]
    geometry: Geometry
    volumes: dict[str, ClassVolume]  # by class name, background left out
    scores: dict[str, ClassScores]  # of an evaluation, by class name
    figures: dict[str, Any]  # of a registration: similarity, folds, Dice, ...
    outputs: dict[str, str]  # "labels", "preview", "volumes", "dicom_seg" -> relative path
    seconds: dict[str, float]  # by phase: "read", "network", "write", ...
    peak_memory_mb: dict[str, float]  # by phase
    device: str
    bundle: BundleIdentity
    parameters: dict[str, Any]  # options that change the result
    fingerprint: str  # of inputs, bundle and parameters; see cohort/ledger.py
    versions: dict[str, str]  # added on writing
    finished_at: str  # ISO 8601


_NESTED: dict[str, type] = {"geometry": Geometry, "bundle": BundleIdentity}
_NESTED_MANY: dict[str, type] = {"notes": Remark, "volumes": ClassVolume, "scores": ClassScores}


def write_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write one case's `run.json`, in a stable order of keys.

    Args:
        path: the file; its folder exists. In a cohort it is written last: it declares the case done.
        record: see `CaseRecord`; NumPy numbers and arrays and paths may stand for plain ones.

    Raises:
        ValueError: a key is unknown, missing, or a value is no JSON (NaN).
    """
    check_record(record)
    full = {**record, "schema_version": SCHEMA_VERSION, "versions": versions()}
    write_json(path, {key: _plain(full[key]) for key in CaseRecord.__annotations__ if key in full})


def check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError unless the record has only documented keys, a case id and a known verdict."""
    _check_keys(record, CaseRecord, "record")
    for key, kind in _NESTED.items():
        _check_keys(record.get(key, {}), kind, key)
    for key, kind in _NESTED_MANY.items():
        entries = record.get(key, ())
        for entry in entries.values() if isinstance(entries, Mapping) else entries:
            _check_keys(entry, kind, key)
    if not record.get("case_id"):
        raise ValueError("a record needs a case_id")
    if record.get("verdict") not in VERDICTS:
        raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, got {record.get('verdict')!r}")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that results depend on, without importing them."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe_grid(shape: tuple[int, ...], affine: np.ndarray) -> Geometry:
    """The geometry of a record from the shape of a volume and its affine (voxel index -> RAS mm)."""
    import nibabel

    return Geometry(
        shape=[int(n) for n in shape],
        spacing_mm=[round(float(mm), 6) for mm in spacing(affine)],
        orientation="".join(nibabel.aff2axcodes(affine)),
    )


def _check_keys(entry: Mapping[str, Any], kind: type, where: str) -> None:
    unknown = sorted(set(entry) - set(kind.__annotations__))
    if unknown:
        known = ", ".join(kind.__annotations__)
        raise ValueError(f"{where} may only hold the keys {known}; got {', '.join(unknown)}")


def _plain(value: Any) -> Any:
    """The same value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    return value
