"""A folder of images and a folder of labels -> pairs, by the files' names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_attention.errors import Refusal
from monai_attention.finetune.labelled import LabelledCase, group_in, listed
from monai_attention.io.cases import CHANNEL, SUFFIXES, kind_of, safe_name, strip_suffix
from monai_attention.io.files import files_below

_PART = r"[-_]?(?P<split>tr|train|training|val|valid|validation|ts|test)?$"
IMAGES = re.compile(rf"(images?|imgs?|scans?|volumes?){_PART}", re.IGNORECASE)
LABELS = re.compile(rf"(labels?|masks?|segs?|segmentations?|annotations?){_PART}", re.IGNORECASE)
SPLIT_OF = {
    **dict.fromkeys(("tr", "train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("ts", "test"), "test"),
}
LABEL_ENDING = re.compile(r"[-_.](seg|segmentation|label|labels|mask|masks|gt|dseg)$", re.IGNORECASE)
IMAGE_ENDING = re.compile(r"[-_.](image|img|scan)$", re.IGNORECASE)

Pair = tuple[dict[int, Path], Path]
"""Images by channel number, and the label map."""


def folder_pairs(root: Path) -> dict[str | None, tuple[Path, Path]]:
    """The folders of images and of labels in a folder, by split; None where there is one pair only.

    `imagesTs` without labels is left aside.

    Raises:
        Refusal: E-LAYOUT, two folders could hold the images, or the labels, of one split.
    """
    found: dict[str | None, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        for side, pattern in enumerate((IMAGES, LABELS)):
            if match := pattern.match(folder.name):
                found[SPLIT_OF.get((match["split"] or "").lower())][side].append(folder)
    whole = {split: sides for split, sides in found.items() if all(sides)}
    for sides in whole.values():
        for folders, what in zip(sides, ("images", "labels"), strict=True):
            if len(folders) > 1:
                names = listed(folder.name for folder in folders)
                remedy = "give the two folders: the one of the images, then the one of the labels"
                raise Refusal("E-LAYOUT", f"several folders may hold the {what}: {names}", path=root, remedy=remedy)
    pairs = {split: (images[0], labels[0]) for split, (images, labels) in whole.items()}
    if None in pairs and len(pairs) > 1:
        names = listed(images.name for images, _ in pairs.values())
        remedy = "name the folders imagesTr, imagesVal, imagesTs, or give a .csv with a column `split`"
        raise Refusal("E-LAYOUT", f"the splits of these folders are unclear: {names}", path=root, remedy=remedy)
    return pairs if len(pairs) > 1 else dict.fromkeys((None,), next(iter(pairs.values()))) if pairs else {}


def pair(images: Path, labels: Path, *, numbered: bool = False, ending: str = "") -> dict[str, Pair]:
    """Pair files by their paths below two folders.

    A label map has the image's name, or that name with `_seg`, `_label`, `_mask` or the like; an image may end with
    `_0000`, `_0001`, ...: its channel. A DICOM folder is one image.

    Args:
        images: folder of images.
        labels: folder of label maps.
        numbered: every image ends with its channel's number (nnU-Net).
        ending: of the files that count; any without it.

    Returns:
        Pairs by the name they share, in the order of names.

    Raises:
        Refusal: E-EMPTY, E-UNPAIRED (an image without label, a label without image, two for one), E-DUPLICATE-CASE.
    """
    by_name = _labels_below(labels, ending)
    found: dict[str, Pair] = {}
    alone = []
    for name, path in _images_below(images, ending).items():
        match = CHANNEL.search(name)
        channel = int(match[1]) if match else 0
        short = name[: match.start()] if match else name
        plain = [] if numbered else [(name, 0), (IMAGE_ENDING.sub("", name), 0)]
        wanted = [*plain, *([(short, channel), (IMAGE_ENDING.sub("", short), channel)] if match else [])]
        known = next(((key, number) for key, number in wanted if key in by_name), None)
        if known is None:
            alone.append(path.name)
            continue
        key, number = known
        channels, _ = found.setdefault(key, ({}, _only(by_name[key], key)))
        if number in channels:
            message = f"two images for one label map: {channels[number].name}, {path.name}"
            raise Refusal("E-UNPAIRED", message, path=path, remedy="leave one of them in the folder")
        channels[number] = path
    if alone:
        remedy = "name the label map as its image, or move the images without labels elsewhere"
        raise Refusal(
            "E-UNPAIRED", f"{len(alone)} images have no label map: {listed(alone)}", path=images, remedy=remedy
        )
    used = {label for _, label in found.values()}
    if orphans := sorted({path for paths in by_name.values() for path in paths} - used):
        names = listed(path.name for path in orphans)
        remedy = "name the label map as its image, or move it elsewhere"
        raise Refusal("E-UNPAIRED", f"{len(orphans)} label maps have no image: {names}", path=labels, remedy=remedy)
    return dict(sorted(found.items()))


def cases_of(
    pairs: Mapping[str, Pair], channels: Sequence[int], folder: Path, *, split: str | None = None
) -> list[LabelledCase]:
    """Cases of pairs.

    Args:
        pairs: see `pair`.
        channels: the numbers that every case must have.
        folder: of the images, for messages.
        split: of all these cases.

    Raises:
        Refusal: E-CHANNEL-MISSING.
    """
    odd = [name for name, (images, _) in pairs.items() if sorted(images) != sorted(channels)]
    if odd:
        numbers = ", ".join(f"{number:04d}" for number in channels)
        message = f"expected the channels {numbers} of every case; it is not so in {listed(odd)}"
        remedy = "add the missing channels, or move these cases elsewhere"
        raise Refusal("E-CHANNEL-MISSING", message, path=folder, remedy=remedy)
    return [
        LabelledCase(safe_name(name), tuple(images[number] for number in channels), label, group_in(name) or "", split)
        for name, (images, label) in pairs.items()
    ]


def _images_below(folder: Path, ending: str) -> dict[str, Path]:
    """Volume files and DICOM folders by their paths below a folder, without suffix."""
    found: dict[str, Path] = {}
    series: set[Path] = set()
    for path in files_below(folder):
        if path.parent in series or not path.name.lower().endswith(ending.lower()):
            continue
        kind = kind_of(path)
        if kind is None:
            continue
        image = path.parent if kind == "dicom" and path.parent != folder else path
        series.add(image)
        name = (image if image.is_dir() else strip_suffix(image)).relative_to(folder).as_posix()
        if name in found:
            message = f"{found[name].name} and {image.name} are two images of one name"
            raise Refusal("E-DUPLICATE-CASE", message, path=image, remedy="leave one of them in the folder")
        found[name] = image
    return _some(found, folder)


def _labels_below(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Label maps by the names that their images may have: exact ones, and where no file has those, shortened ones."""
    exact: dict[str, list[Path]] = defaultdict(list)
    short: dict[str, list[Path]] = defaultdict(list)
    for path in files_below(folder):
        kind = kind_of(path)
        if kind is None or not path.name.lower().endswith(ending.lower()):
            continue
        name = strip_suffix(path).relative_to(folder).as_posix()
        exact[name].append(path)
        if LABEL_ENDING.search(name):
            short[LABEL_ENDING.sub("", name)].append(path)
        if kind == "dicom" and path.parent != folder:  # a Segmentation is often called by a UID, in a case's folder
            short[path.parent.relative_to(folder).as_posix()].append(path)
    return _some({**short, **exact}, folder)


def _only(paths: Sequence[Path], name: str) -> Path:
    if len(paths) > 1:
        message = f"several label maps for {name}: {listed(path.name for path in paths)}"
        raise Refusal("E-UNPAIRED", message, path=paths[0], remedy="leave one of them in the folder")
    return paths[0]


def _some(found: dict, folder: Path) -> dict:
    if not found:
        known = ", ".join(SUFFIXES)
        raise Refusal("E-EMPTY", f"expected {known} or DICOM", path=folder, remedy="check the path")
    return found
