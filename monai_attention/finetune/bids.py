"""BIDS: raw images in `sub-*/[ses-*/]anat/`, their label maps (`_dseg`) below `derivatives/`."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from monai_attention.errors import Refusal
from monai_attention.finetune.labelled import LabelledCase, LabelledData, expect_classes, group_in, listed
from monai_attention.io.cases import safe_name, strip_suffix
from monai_attention.io.files import files_below

OF_DERIVATIVES = {"space", "res", "den", "label", "desc", "atlas", "seg"}
"""Entities that a derivative's name adds to its source's."""


def is_bids(root: Path) -> bool:
    """Whether a folder has subjects and derivatives."""
    return (root / "derivatives").is_dir() and any(path.is_dir() for path in root.glob("sub-*"))


def bids(root: Path) -> LabelledData:
    """T1-weighted images (or, where there is none, those of the only other contrast) and the label maps made of them.

    Raises:
        Refusal: E-LAYOUT (images of several contrasts and none T1-weighted), E-UNPAIRED, E-DATASET, E-EMPTY.
    """
    images = _images(root)
    labels: dict[str, list[Path]] = defaultdict(list)
    for path in files_below(root / "derivatives"):
        if path.name.endswith(("_dseg.nii.gz", "_dseg.nii")):
            labels[_source(path)].append(path)
    alone = [name for name in images if name not in labels]
    if alone:
        remedy = "name label maps as their image with _dseg, or give a .csv of the labelled ones"
        raise Refusal("E-UNPAIRED", f"{len(alone)} images have no _dseg: {listed(alone)}", path=root, remedy=remedy)
    if orphans := [paths[0].name for name, paths in labels.items() if name not in images]:
        message = f"{len(orphans)} label maps have no image: {listed(orphans)}"
        raise Refusal("E-UNPAIRED", message, path=root, remedy="name label maps as their image, with _dseg")
    if several := [path.name for paths in labels.values() if len(paths) > 1 for path in paths]:
        remedy = "leave one pipeline's in derivatives/, or give a .csv"
        raise Refusal("E-UNPAIRED", f"several label maps for one image: {listed(several)}", path=root, remedy=remedy)
    cases = [
        LabelledCase(safe_name(name), (image,), labels[name][0], group_in(name) or "") for name, image in images.items()
    ]
    contrast = strip_suffix(cases[0].images[0]).name.rpartition("_")[2]
    return LabelledData(root, "BIDS", tuple(cases), _classes(root), (contrast,))


def _images(root: Path) -> dict[str, Path]:
    """By the entities of their names, in that order."""
    paths = [*root.glob("sub-*/anat/*.nii*"), *root.glob("sub-*/ses-*/anat/*.nii*")]
    by_contrast: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(paths, key=lambda one: one.name):
        source, _, contrast = strip_suffix(path).name.rpartition("_")
        if contrast.lower() not in ("dseg", "probseg", "mask"):
            by_contrast[contrast][source] = path
    if not by_contrast:
        message = "expected images like sub-01/anat/sub-01_T1w.nii.gz"
        raise Refusal("E-EMPTY", message, path=root, remedy="check the path")
    if "T1w" in by_contrast:
        return by_contrast["T1w"]
    if len(by_contrast) > 1:
        message = f"expected T1-weighted images, or those of one contrast; got {listed(sorted(by_contrast))}"
        raise Refusal("E-LAYOUT", message, path=root, remedy="give a .csv with columns image_T2w, label, ...")
    return next(iter(by_contrast.values()))


def _source(path: Path) -> str:
    """The entities that a label map's image has, in the order of the name."""
    *entities, _ = strip_suffix(path).name.split("_")
    return "_".join(one for one in entities if one.partition("-")[0] not in OF_DERIVATIVES)


def _classes(root: Path) -> dict[int, str] | None:
    """What all `dseg.tsv` say, which must not contradict each other; None without any."""
    classes: dict[int, str] = {}
    tables = [path for path in files_below(root) if path.name == "dseg.tsv" or path.name.endswith("_dseg.tsv")]
    remedy = "write columns `index` and `name`, separated by tabs, the same in all tables"
    for table in tables:
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                found = {int(row["index"]): row["name"].strip() for row in csv.DictReader(file, delimiter="\t")}
        except (KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
            message = "expected whole numbers in a column `index` and words in a column `name`"
            raise Refusal("E-DATASET", message, path=table, remedy=remedy) from error
        if odd := sorted(value for value, name in found.items() if classes.get(value, name) != name):
            message = f"it names the values {listed(odd)} otherwise than another table"
            raise Refusal("E-DATASET", message, path=table, remedy=remedy)
        classes |= found
    return expect_classes(classes, root) if tables else None
