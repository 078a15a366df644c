"""What only all cases together can tell: a person or an image in two splits, and classes that nobody has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from monai_attention.finetune.labelled import SPLITS, LabelledCase, listed
from monai_attention.finetune.statistics import CaseStatistics
from monai_attention.io.check import Verdict
from monai_attention.io.volume import Note


@dataclass(frozen=True)
class CheckedCase:
    """A case and what was found out about it.

    Args:
        case: as the dataset lists it; cases with equal images are put into one group.
        verdict: as for any input.
        statistics: None where it was refused before they could be made.
        picture: JPEG of three planes with the labels, or empty.
    """

    case: LabelledCase
    verdict: Verdict
    statistics: CaseStatistics | None = None
    picture: bytes = b""

    @property
    def usable(self) -> bool:
        """Whether it may be trained on."""
        return self.verdict.verdict != "refused"


def keep_people_apart(checked: Sequence[CheckedCase]) -> list[CheckedCase]:
    """Refuse, E-LEAK, cases of a person of whom there are cases in an earlier split: train, validation, test."""
    return _apart(checked, lambda one: one.case.group, "the same person is in the {split} split, as {names}")


def keep_images_apart(checked: Sequence[CheckedCase]) -> list[CheckedCase]:
    """Refuse, E-LEAK, images that are in an earlier split as well; flag others that are there twice.

    All cases of their people get one group, so that no split parts them.
    """
    found = _apart(checked, _digest, "the same image is in the {split} split, as {names}")
    for places in _places(found, _digest).values():
        for place in places:
            if names := listed(found[other].case.id for other in places if other != place):
                found[place] = _flagged(found[place], "F-DUPLICATE-IMAGE", f"the same image is there as {names}")
    for places in _places(checked, _digest).values():
        joined = {found[place].case.group for place in places}
        if len(places) > 1:
            found = [_regrouped(one, min(joined)) if one.case.group in joined else one for one in found]
    return found


def absent(classes: Mapping[int, str], statistics: Iterable[CaseStatistics]) -> list[str]:
    """Names of the classes that none of these cases has, whose scores can only be n/a."""
    there = {value for one in statistics for value in one.voxels}
    return [name for value, name in sorted(classes.items()) if value not in there]


def absent_anywhere(classes: Mapping[int, str], checked: Sequence[CheckedCase]) -> list[Note]:
    """A warning for every split in which a class is in no case."""
    members: dict[str | None, list[CaseStatistics]] = defaultdict(list)
    for one in checked:
        if one.usable and one.statistics:
            members[one.case.split].append(one.statistics)
    notes = []
    for split, statistics in members.items():
        if names := absent(classes, statistics):
            where = f"the {split} split" if split else "the dataset"
            message = f"no case of {where} holds {listed(names)}; a score of it there can only be n/a"
            notes.append(Note("flag", "F-CLASS-ABSENT", message))
    return notes


def _apart(checked: Sequence[CheckedCase], key: Callable[[CheckedCase], Hashable], message: str) -> list[CheckedCase]:
    """Refuse cases that share a key with one of an earlier split."""
    found = list(checked)
    for places in _places(checked, key).values():
        splits = {checked[place].case.split for place in places}
        first = next((split for split in SPLITS if split in splits), None)
        if len(splits) < 2 or first is None:
            continue
        names = listed(checked[place].case.id for place in places if checked[place].case.split == first)
        for place in places:
            if checked[place].case.split != first:
                remedy = "move all of them into one split, or leave this one out"
                found[place] = _refused(checked[place], message.format(split=first, names=names), remedy)
    return found


def _places(checked: Sequence[CheckedCase], key: Callable[[CheckedCase], Hashable]) -> dict[Hashable, list[int]]:
    """Where the usable cases of each key are."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, one in enumerate(checked):
        if one.usable:
            places[key(one)].append(place)
    return places


def _digest(one: CheckedCase) -> Hashable:
    return one.statistics.digest if one.statistics else one.case.id


def _refused(one: CheckedCase, message: str, remedy: str) -> CheckedCase:
    path = one.case.images[0]
    return replace(
        one,
        verdict=replace(one.verdict, verdict="refused", code="E-LEAK", path=path, message=message, remedy=remedy),
    )


def _flagged(one: CheckedCase, code: str, message: str) -> CheckedCase:
    old = one.verdict
    return replace(
        one,
        verdict=replace(
            old,
            verdict="flagged",
            code=old.code or code,
            message="; ".join(text for text in (old.message, message) if text),
            notes=(*old.notes, Note("flag", code, message)),
        ),
    )


def _regrouped(one: CheckedCase, group: str) -> CheckedCase:
    return replace(one, case=replace(one.case, group=group))
