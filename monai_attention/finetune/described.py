"""Datasets with a `dataset.json`: the Medical Segmentation Decathlon's (MSD) and nnU-Net's raw ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_attention.errors import Refusal
from monai_attention.finetune.folders import cases_of, pair
from monai_attention.finetune.labelled import LabelledCase, LabelledData, expect_classes, group_in, listed
from monai_attention.io.cases import SUFFIXES, safe_name, strip_suffix

REMEDY = "correct the file; MSD's and nnU-Net's documentations describe it"


def described(path: Path) -> LabelledData:
    """The dataset that a `dataset.json` describes: MSD if it lists images that are there, else nnU-Net.

    nnU-Net's first version also lists its images, but without the channel's number that their names end with.

    Raises:
        Refusal: E-DATASET, E-LAYOUT, E-FORMAT, and those of `folders.pair`.
    """
    description = _parsed(path)
    root = path.parent
    classes = _classes(description, path)
    channels = _channels(description, path)
    for name in ("training", "validation"):
        if not isinstance(description.setdefault(name, []), list):
            raise Refusal("E-DATASET", f"expected a list of cases as `{name}`", path=path, remedy=REMEDY)
    items = description["training"]
    there = (os.path.exists(image) for item in items for image in _images(item, path))  # noqa: PTH110
    if any(there):
        return LabelledData(root, "MSD", tuple(_msd_cases(description, path, len(channels))), classes, channels)
    images, labels = root / "imagesTr", root / "labelsTr"
    if not (images.is_dir() and labels.is_dir()):
        message = "it lists no training image that is there, and the folders imagesTr and labelsTr are not beside it"
        raise Refusal("E-LAYOUT", message, path=path, remedy="check that the dataset is whole")
    ending = str(description.get("file_ending", ""))
    if ending and ending.lower() not in SUFFIXES:
        message = f"expected files that end with {', '.join(SUFFIXES)}, got file_ending {ending}"
        raise Refusal("E-FORMAT", message, path=path, remedy="convert the images and labels to .nii.gz")
    cases = cases_of(pair(images, labels, numbered=True, ending=ending), range(len(channels)), images)
    return LabelledData(root, "nnU-Net", tuple(cases), classes, channels)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        message = f"the file cannot be read: {error.strerror}"
        raise Refusal("E-UNREADABLE", message, path=path, remedy="check its permissions") from error
    except ValueError as error:
        raise Refusal("E-DATASET", f"this is no JSON: {error}", path=path, remedy=REMEDY) from error
    if not isinstance(description, dict):
        raise Refusal("E-DATASET", "expected an object with `labels`", path=path, remedy=REMEDY)
    return description


def _classes(description: Mapping[str, Any], path: Path) -> dict[int, str]:
    """From value -> name (MSD, nnU-Net 1) or name -> value (nnU-Net 2)."""
    labels = description.get("labels")
    if not isinstance(labels, dict):
        raise Refusal("E-DATASET", "expected `labels` with names and values", path=path, remedy=REMEDY)
    if several := [name for name, value in labels.items() if isinstance(value, list)]:
        message = f"regions made of several values are not supported: {listed(several)}"
        raise Refusal("E-DATASET", message, path=path, remedy="list one value a class")
    if "ignore" in labels:
        remedy = "label those voxels, or leave the cases out"
        raise Refusal("E-DATASET", "voxels to be ignored are not supported", path=path, remedy=remedy)
    try:
        if all(str(key).lstrip("-").isdigit() for key in labels):
            classes = {int(value): str(name) for value, name in labels.items()}
        else:
            classes = {int(value): str(name) for name, value in labels.items()}
    except (TypeError, ValueError) as error:
        raise Refusal(
            "E-DATASET", "expected `labels` with whole numbers as values", path=path, remedy=REMEDY
        ) from error
    if len(classes) < len(labels):
        raise Refusal("E-DATASET", "two of the `labels` have one value", path=path, remedy=REMEDY)
    return expect_classes(classes, path)


def _channels(description: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Names in the order of their numbers."""
    given = description.get("channel_names", description.get("modality"))
    if isinstance(given, str):
        return (given,)
    if isinstance(given, dict) and given and sorted(given) == sorted(str(i) for i in range(len(given))):
        return tuple(str(given[str(i)]) for i in range(len(given)))
    message = 'expected `channel_names` or `modality` like {"0": "CT"}'
    raise Refusal("E-DATASET", message, path=path, remedy=REMEDY)


def _images(item: Any, path: Path) -> list[Path]:
    """The image files of an item of a list of cases."""
    given = item.get("image") if isinstance(item, dict) else None
    names = given if isinstance(given, list) else [given]
    paths = [(path.parent / name).absolute() for name in names if isinstance(name, str) and name]
    if not paths or len(paths) < len(names):
        raise Refusal("E-DATASET", "a training case names no image", path=path, remedy=REMEDY)
    return paths


def _msd_cases(description: Mapping[str, Any], path: Path, channels: int) -> list[LabelledCase]:
    """Those listed; that a listed file is missing is the verdict of its own case."""
    validation = description["validation"]
    cases = []
    for split, items in (("train", description["training"]), ("validation", validation)):
        for item in items:
            images = _images(item, path)
            name = strip_suffix(images[0]).name
            if not isinstance(item.get("label"), str):
                message = f"the case {name} of the {split} list has no label map"
                raise Refusal("E-UNPAIRED", message, path=path, remedy="leave it out, or move it to the `test` list")
            if len(images) not in (1, channels):
                message = f"expected {channels} images, one a channel, of {name}; got {len(images)}"
                raise Refusal("E-CHANNEL-MISSING", message, path=path, remedy="list an image for every channel")
            label = (path.parent / item["label"]).absolute()
            chosen = split if validation else None
            group = group_in(Path(os.path.relpath(images[0], path.parent)).as_posix()) or ""
            cases.append(LabelledCase(safe_name(name), tuple(images), label, group, chosen))
    return cases
