"""Labelled cases, before anything of them is read: what every layout of a dataset comes down to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_attention.errors import Refusal

SPLITS = ("train", "validation", "test")
"""What a dataset may say a case is for."""

MOST_NAMES = 5
"""In a message; it says how many more there are."""

MOST_LABEL = 255
"""Largest value of a class: labels are bytes."""

CLASSES_REMEDY = (
    "list each class once, with a value from 1 to 255 and a name of its own, in more than case, blanks, hyphens and "
    "underscores; 0 is background"
)

_ENDS = r"(?=$|[-_./ ])"
PERSON = (
    re.compile(rf"(?:^|/|__)(sub-[a-z0-9]+|(?:patient|subject|subj|pat)[-_ ]?\d+){_ENDS}", re.IGNORECASE),
    re.compile(rf"(?:^|/)([^/]+[-_](?:sub-[a-z]*\d[a-z0-9]*|(?:patient|subject|subj)[-_ ]?\d+)){_ENDS}", re.IGNORECASE),
)
"""The part of a name that can only mean a person: `patient017_frame01`, `sub-03_ses-1`. `case_12` may mean a scan.

Where something else comes first it belongs to it: `siteA_patient001` and `siteB_patient001` are two.
"""


@dataclass(frozen=True)
class LabelledCase:
    """An image and its label map.

    Args:
        id: unique in its dataset, safe as a folder name.
        images: a file or DICOM folder a channel; or one file that holds all channels.
        label: the label map, or a DICOM Segmentation.
        group: the same for all cases of one person, who may not be in training and validation both. It may be made of
            a DICOM PatientID: never written out.
        split: one of `SPLITS` where the dataset says, else None.
    """

    id: str
    images: tuple[Path, ...]
    label: Path
    group: str
    split: str | None = None


@dataclass(frozen=True)
class LabelledData:
    """A dataset.

    Args:
        source: what the user gave.
        layout: `paired folders`, `MSD`, `nnU-Net`, `BIDS` or `CSV`.
        cases: in a stable order.
        classes: value -> name without background, 0; None where the dataset does not say.
        channels: names of the image channels.
    """

    source: Path
    layout: str
    cases: tuple[LabelledCase, ...]
    classes: Mapping[int, str] | None
    channels: tuple[str, ...]


def group_in(name: str) -> str | None:
    """The person that a case's name or relative path tells, where it can mean nothing else."""
    found = next((match for pattern in PERSON if (match := pattern.search(name))), None)
    return found[1].casefold() if found else None


def listed(names: Iterable[object]) -> str:
    """At most `MOST_NAMES` of them, and how many more there are."""
    texts = [str(name) for name in names]
    more = len(texts) - MOST_NAMES
    return ", ".join(texts[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def expect_unique_ids(cases: Sequence[LabelledCase], source: Path) -> None:
    """E-DUPLICATE-CASE if two cases have one name; some file systems do not tell A from a."""
    counts = Counter(case.id.casefold() for case in cases)
    if twice := [case.id for case in cases if counts[case.id.casefold()] > 1]:
        remedy = "rename the files, or give a .csv with a column `id`"
        raise Refusal("E-DUPLICATE-CASE", f"several cases are called {listed(twice)}", path=source, remedy=remedy)


def expect_classes(classes: Mapping[int, str], source: Path) -> dict[int, str]:
    """Classes by value, without background.

    Raises:
        Refusal: E-DATASET, values beyond 0 to 255, no class at all, or two of one name, see `expect_names`.
    """
    remedy = CLASSES_REMEDY
    if wrong := sorted(value for value in classes if not 0 <= value <= MOST_LABEL):
        raise Refusal("E-DATASET", f"class values beyond 0 to 255: {listed(wrong)}", path=source, remedy=remedy)
    named = {value: classes[value] for value in sorted(classes) if value}
    if not named:
        raise Refusal("E-DATASET", "no class but background is listed", path=source, remedy=remedy)
    expect_names(named, source)
    return named


def expect_names(classes: Mapping[int, str], source: Path) -> None:
    """Refuse names that weights could not be carried over by, see `same_name`.

    Args:
        classes: value -> name, without background.
        source: of the dataset, for messages.

    Raises:
        Refusal: E-DATASET, two names, or one and `background`, differ in spelling at most.
    """
    known = {same_name("background"): (0, "background")}
    for value, name in classes.items():
        other, spelled = known.setdefault(same_name(name), (value, name))
        if other != value:
            message = f"the classes {other} and {value} are called {spelled} and {name}, which is the same name"
            raise Refusal("E-DATASET", message, path=source, remedy=CLASSES_REMEDY)


def same_name(name: str) -> str:
    """What the spellings of a name have in common: case, and blanks, hyphens or underscores, make no difference."""
    return re.sub(r"[\s_-]+", " ", name.strip()).casefold()
