"""Volumes in mL, counted from labels and written as a table that spreadsheets and statistics programs read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monai_attention.io.write import write_text
from monai_attention.report.manifest import ClassVolume

COLUMNS = ("case_id", "class", "label", "voxels", "ml")


def measure(labels: np.ndarray, affine: np.ndarray, classes: Mapping[int, str]) -> dict[str, ClassVolume]:
    """Count every class, absent ones too (0 mL); background, label 0, is left out.

    Args:
        labels: uint8, shape (X, Y, Z).
        affine: shape (4, 4), voxel index -> world mm; sheared ones count right too.
        classes: label -> name.
    """
    counts = np.zeros(256, np.int64)
    for plane in labels:  # one at a time: bincount works on 64-bit copies
        counts += np.bincount(plane.ravel(), minlength=256)
    ml_per_voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    return {
        name: ClassVolume(label=label, voxels=int(counts[label]), ml=round(int(counts[label]) * ml_per_voxel, 4))
        for label, name in sorted(classes.items())
        if label != 0
    }


def write_volumes(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write `volumes.csv`: one row per case and class. Cases without volumes (refused) have no rows."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        for name, volume in record.get("volumes", {}).items():
            writer.writerow([record["case_id"], name, volume["label"], volume["voxels"], volume["ml"]])
    write_text(path, table.getvalue())
