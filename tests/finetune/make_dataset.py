"""Tiny labelled volumes, and datasets of them in every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.io.make_dicom import ras_affine, write_series
from tests.io.make_volumes import oblique, write_nifti

SHAPE = (10, 9, 8)


def image(seed: int = 0) -> np.ndarray:
    """Noise, int16, another for every seed."""
    return np.random.default_rng(seed).integers(-500, 1500, SHAPE, dtype=np.int16)


def labels(*values: int) -> np.ndarray:
    """A block of 3 x 3 x 3 voxels for each value (1 and 2 without any), uint8."""
    out = np.zeros(SHAPE, np.uint8)
    for number, value in enumerate(values or (1, 2)):
        out[3 * number : 3 * number + 3, 2:5, 4:7] = value
    return out


def put(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI, with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_nifti(path, array, affine)


def folders(root: Path, names: tuple[str, ...] = ("a", "b", "c"), *, split: str = "", first: int = 0) -> Path:
    """Paired folders; every image is another one."""
    for seed, name in enumerate(names, start=first):
        put(root / f"images{split}" / f"{name}.nii.gz", image(seed))
        put(root / f"labels{split}" / f"{name}_seg.nii.gz", labels())
    return root


def msd(root: Path, names: tuple[str, ...] = ("a", "b"), **more: Any) -> Path:
    """A decathlon task."""
    for seed, name in enumerate(names):
        put(root / "imagesTr" / f"{name}.nii.gz", image(seed))
        put(root / "labelsTr" / f"{name}.nii.gz", labels())
    items = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    told = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "tumour"}, "training": items}
    return describe(root, {**told, **more})


def nnunet(root: Path, names: tuple[str, ...] = ("a", "b"), channels: tuple[str, ...] = ("T1", "T2")) -> Path:
    """An nnU-Net version 2 raw dataset."""
    for seed, name in enumerate(names):
        for number in range(len(channels)):
            put(root / "imagesTr" / f"{name}_{number:04d}.nii.gz", image(10 * seed + number))
        put(root / "labelsTr" / f"{name}.nii.gz", labels())
    put(root / "imagesTs" / "unlabelled_0000.nii.gz", image(99))
    told = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "file_ending": ".nii.gz",
    }
    return describe(root, told)


def describe(root: Path, told: Any) -> Path:
    """Write dataset.json."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(told))
    return root


def bids(root: Path) -> Path:
    """Two subjects, one of them seen twice."""
    for seed, (subject, session) in enumerate((("01", ""), ("02", "1"), ("02", "2"))):
        below = f"sub-{subject}/" + (f"ses-{session}/" if session else "") + "anat"
        name = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        put(root / below / f"{name}_T1w.nii.gz", image(seed))
        put(root / "derivatives" / "manual" / below / f"{name}_desc-manual_dseg.nii.gz", labels())
    (root / "derivatives" / "manual" / "dseg.tsv").write_text("index\tname\n1\tliver\n2\ttumour\n")
    return root


def table(root: Path, rows: list[dict[str, str]]) -> Path:
    """Write cases.csv."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (root / "cases.csv").write_text("\n".join(lines) + "\n")
    return root / "cases.csv"


def in_splits(root: Path, splits: tuple[str, ...], **columns: tuple[str, ...]) -> Path:
    """A CSV with one case a split, and further columns."""
    rows = []
    for seed, split in enumerate(splits):
        put(root / f"i{seed}.nii.gz", image(seed))
        put(root / f"l{seed}.nii.gz", labels())
        row = {"image": f"i{seed}.nii.gz", "label": f"l{seed}.nii.gz", "split": split}
        rows.append(row | {name: values[seed] for name, values in columns.items()})
    return table(root, rows)


DICOM_AFFINE = ras_affine((0.8, 0.9, 2.0), None, (5, -6, 7))


def dicom(folder: Path, seed: int = 0, **overrides: Any) -> list[Path]:
    """A CT series of noise."""
    return write_series(folder, image(seed).astype(np.float32), DICOM_AFFINE, **overrides)


AFFINE = oblique()
"""Of the NIfTI files, unless another is given."""
