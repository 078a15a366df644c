"""What the user typed -> labelled cases: the layout is recognised by looking, and never guessed."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from monai_attention.errors import Refusal
from monai_attention.finetune.bids import bids, is_bids
from monai_attention.finetune.described import described
from monai_attention.finetune.folders import Pair, cases_of, folder_pairs, pair
from monai_attention.finetune.labelled import (
    SPLITS,
    LabelledCase,
    LabelledData,
    expect_unique_ids,
    group_in,
    listed,
)
from monai_attention.io.cases import kind_of, safe_name, strip_suffix

LAYOUTS = (
    "a folder with images/ and labels/; an MSD or nnU-Net dataset with its dataset.json; BIDS with derivatives/; "
    "two folders, images then labels; or a .csv with columns image and label"
)
COLUMNS = ("label", "id", "group", "split")


def find_labelled(inputs: Sequence[str | Path]) -> LabelledData:
    """The labelled cases of a dataset, by its files' names and its own description; no voxel is read.

    - Paired folders: `images/` and `labels/` (or `imagesTr`, `labelsTr`, ...), or two folders; see `folders.pair`.
    - MSD and nnU-Net raw: a `dataset.json`; see `described.described`.
    - BIDS: `sub-*/[ses-*/]anat/*_T1w.nii.gz` and `derivatives/**/*_dseg.nii.gz`; names from `dseg.tsv`.
    - A CSV with columns `image` (or `image_T1`, `image_T2`, ...: the channels) and `label`, and `id`, `group` (the
      person) and `split` (train, validation or test) if there are any. Paths are relative to it.

    Where the dataset does not say whose a case is, it is the DICOM PatientID, or a `sub-...` or `patient...` in the
    name; else every case is a person of its own.

    Args:
        inputs: a folder, a .csv or a dataset.json; or two folders.

    Raises:
        Refusal: E-NOT-FOUND, E-LAYOUT (none of these, or several), E-UNPAIRED, E-CHANNEL-MISSING, E-DATASET, E-CSV,
            E-EMPTY, E-DUPLICATE-CASE, E-UNREADABLE.
    """
    paths = [Path(os.path.abspath(given)) for given in inputs]  # noqa: PTH100 - `..`, but not links
    for path in paths:
        if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a name that is too long
            raise Refusal("E-NOT-FOUND", "there is no such file or folder", path=path, remedy="check the path")
    if len(paths) == 2 and all(path.is_dir() for path in paths):
        data = _paired(paths[0], {None: (paths[0], paths[1])})
    elif len(paths) == 1:
        try:
            data = _looked_at(paths[0])
        except OSError as error:
            message = f"it cannot be listed: {error.strerror}"
            raise Refusal("E-UNREADABLE", message, path=paths[0], remedy="check its permissions") from error
    else:
        message = f"expected one dataset or two folders, got {len(paths)} paths"
        raise Refusal("E-LAYOUT", message, path=paths[0] if paths else None, remedy=f"give {LAYOUTS}")
    if not data.cases:
        raise Refusal("E-EMPTY", "the dataset has no labelled case", path=data.source, remedy="check the path")
    expect_unique_ids(data.cases, data.source)
    return replace(data, cases=tuple(replace(case, group=_group(case)) for case in data.cases))


def _looked_at(path: Path) -> LabelledData:
    if path.suffix.lower() == ".csv":
        return _table(path)
    if path.name == "dataset.json":
        return described(path)
    pairs = folder_pairs(path) if path.is_dir() else {}
    description = path / "dataset.json"
    # The folders of MSD and nnU-Net are pairs as well: there the description decides.
    found = [description.is_file() and "dataset.json", is_bids(path) and "BIDS"]
    found.append(bool(pairs) and not found[0] and "paired folders")
    names = [name for name in found if name]
    if len(names) != 1:
        got = f"several layouts fit: {', '.join(names)}" if names else "no layout of labelled cases was recognised"
        raise Refusal("E-LAYOUT", got, path=path, remedy=f"give {LAYOUTS}")
    if found[0]:
        return described(description)
    return bids(path) if found[1] else _paired(path, pairs)


def _paired(source: Path, folders: dict[str | None, tuple[Path, Path]]) -> LabelledData:
    found: dict[str | None, dict[str, Pair]] = {split: pair(*both) for split, both in folders.items()}
    channels = sorted({number for pairs in found.values() for images, _ in pairs.values() for number in images})
    cases = [
        case for split, pairs in found.items() for case in cases_of(pairs, channels, folders[split][0], split=split)
    ]
    names = ("image",) if len(channels) == 1 else tuple(f"channel_{number}" for number in channels)
    return LabelledData(source, "paired folders", tuple(cases), None, names)


def _table(table: Path) -> LabelledData:
    rows, columns = _rows(table)
    images = [name for name in columns if name == "image" or name.startswith("image_")]
    if not images or "label" not in columns or _unknown(columns, images) or ("image" in images and len(images) > 1):
        message = f"expected the columns image (or image_T1, image_T2, ...) and label, got {', '.join(columns)}"
        raise Refusal("E-CSV", message, path=table, remedy=f"further columns may be {', '.join(COLUMNS[1:])}")
    cases = [_row(number, row, images, table) for number, row in enumerate(rows, start=1)]
    if len({case.split is None for case in cases}) > 1:
        message = "some rows name a split, others none"
        raise Refusal("E-CSV", message, path=table, remedy="fill the column `split` in every row, or leave it out")
    if len({bool(row["group"]) for row in rows if "group" in row}) > 1:
        message = "some rows name a group, others none, and whose these are would be guessed"
        raise Refusal("E-CSV", message, path=table, remedy="fill the column `group` in every row, or leave it out")
    channels = tuple(name.removeprefix("image_") for name in images)
    return LabelledData(table, "CSV", tuple(cases), None, channels)


def _unknown(columns: Sequence[str], images: Sequence[str]) -> list[str]:
    """Columns that mean nothing here: a misspelt `group` must not be passed over."""
    return [name for name in columns if name not in (*images, *COLUMNS)]


def _rows(table: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            rows, columns = [dict(row) for row in reader], list(reader.fieldnames or [])
    except OSError as error:
        message = f"the table cannot be read: {error.strerror}"
        raise Refusal("E-UNREADABLE", message, path=table, remedy="check its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refusal("E-CSV", "this is no table in UTF-8", path=table, remedy="save it as CSV, UTF-8") from error
    if wide := [number for number, row in enumerate(rows, start=1) if None in row]:
        message = f"row {wide[0]} has more cells than there are columns"
        raise Refusal("E-CSV", message, path=table, remedy="put names that hold commas into quotes")
    return [{name: value.strip() for name, value in row.items()} for row in rows], columns


def _row(number: int, row: dict[str, str], images: Sequence[str], table: Path) -> LabelledCase:
    if missing := [name for name in images if not row[name]]:
        code, remedy = ("E-CHANNEL-MISSING", "fill the column, or drop the row") if len(images) > 1 else ("E-CSV", "")
        raise Refusal(code, f"row {number} has no {listed(missing)}", path=table, remedy=remedy or "drop the row")
    if not row["label"]:
        raise Refusal("E-UNPAIRED", f"row {number} has no label map", path=table, remedy="fill it, or drop the row")
    split = row.get("split") or None
    if split not in (None, *SPLITS):
        message = f"row {number} has the split {split!r}"
        raise Refusal("E-CSV", message, path=table, remedy=f"write one of {', '.join(SPLITS)}")
    paths = [Path(os.path.abspath(table.parent / row[name])) for name in images]  # noqa: PTH100 - as above
    label = Path(os.path.abspath(table.parent / row["label"]))  # noqa: PTH100
    name = strip_suffix(paths[0]).name
    group = row.get("group") or group_in(row[images[0]]) or ""
    return LabelledCase(safe_name(row.get("id") or name), tuple(paths), label, group, split)


def _group(case: LabelledCase) -> str:
    """Whose the case is, as far as can be known; a missing file is the verdict of its own case."""
    if case.group:
        return case.group
    for path in (case.images[0], case.label):
        if os.path.exists(path) and kind_of(path) in ("dicom", "zip"):  # noqa: PTH110
            from monai_attention.io.dicom_patient import patient_key

            if key := patient_key(path):
                return key
    return case.id
