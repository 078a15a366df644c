"""Who is trained on and who is held out: people, never cases, are divided."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from monai_attention.errors import Refusal
from monai_attention.finetune.labelled import LabelledCase

FOLDS = 5
"""One of which is held out where the dataset says nothing itself."""


def folds_of(cases: Sequence[LabelledCase], count: int = FOLDS) -> dict[str, int]:
    """A fold for each case, by id: all cases of a person are in one, and all folds are about as large.

    Where the dataset itself says which cases are for validation, these are fold 0 and those for training fold 1. The
    same cases are divided in the same way each time, in whatever order they come.

    Raises:
        ValueError: `count` is less than 2.
        Refusal: E-TOO-FEW, there are fewer people than folds, or none for training or validation.
    """
    if count < 2:
        raise ValueError(f"people must be divided into at least 2 folds; got {count}")
    if any(case.split == "validation" for case in cases):
        given = {case.id: 0 if case.split == "validation" else 1 for case in cases}
        if len(set(given.values())) < 2:
            message = f"the dataset's own splits put all {len(given)} cases on one side"
            remedy = "name cases for `train` as well, or leave the splits away"
            raise Refusal("E-TOO-FEW", message, remedy=remedy)
        return given
    people: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        people[case.group].append(case.id)
    if len(people) < count:
        message = f"{len(people)} people cannot be divided into {count} folds"
        remedy = "give cases of more people, or fewer --folds"
        raise Refusal("E-TOO-FEW", message, remedy=remedy)
    sizes = [0] * count
    found: dict[str, int] = {}
    for members in sorted(people.values(), key=lambda ids: (-len(ids), _shuffled(ids))):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(members)
        found |= dict.fromkeys(members, smallest)
    return found


def _shuffled(ids: Sequence[str]) -> str:
    """A key in whose order people come that has nothing to do with how their cases are numbered."""
    return hashlib.sha256(min(ids).encode()).hexdigest()
