"""Every labelled case read once and judged before anything is trained on it."""

from __future__ import annotations

import logging
import statistics as numbers
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from monai_attention.errors import Refusal
from monai_attention.finetune.labelled import LabelledCase, LabelledData, expect_names, same_name
from monai_attention.finetune.load import LoadedCase, load
from monai_attention.finetune.statistics import measure
from monai_attention.finetune.together import CheckedCase, absent_anywhere, keep_images_apart, keep_people_apart
from monai_attention.io.check import Verdict
from monai_attention.io.read import DEFAULTS
from monai_attention.io.volume import Note, ReadOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preflight:
    """A dataset after a look at all of it.

    Args:
        data: the dataset; its classes are named now, and cases with equal images share a group.
        cases: in the dataset's order.
        warnings: about the dataset as a whole.
    """

    data: LabelledData
    cases: tuple[CheckedCase, ...]
    warnings: tuple[Note, ...]

    @property
    def usable(self) -> tuple[CheckedCase, ...]:
        """Those that may be trained on."""
        return tuple(one for one in self.cases if one.usable)

    @property
    def classes(self) -> dict[int, str]:
        """Value -> name, without background; those of the dataset's description, else those found."""
        return dict(self.data.classes or {})

    def volumes_ml(self) -> dict[str, list[float]]:
        """By class, mL in each usable case that has it."""
        found = [one.statistics.ml for one in self.usable if one.statistics]
        return {name: [ml[value] for ml in found if value in ml] for value, name in self.classes.items()}

    def reach_mm(self) -> dict[str, list[float]]:
        """By class, how far from its middle it lies in each usable case that has it, see `io.reach`."""
        found = [one.statistics.reach_mm for one in self.usable if one.statistics]
        return {name: [mm[value] for mm in found if value in mm] for value, name in self.classes.items()}

    def to_json(self) -> dict[str, Any]:
        """All of it but pictures and groups, as plain strings, numbers, lists and dictionaries."""
        volumes = self.volumes_ml()
        splits = [one.case.split for one in self.cases if one.case.split]
        return {
            "source": str(self.data.source),
            "layout": self.data.layout,
            "channels": list(self.data.channels),
            "people": len({one.case.group for one in self.cases}),
            "splits": {split: splits.count(split) for split in dict.fromkeys(splits)},
            "classes": {
                name: {"label": value, "cases": len(volumes[name]), "ml": _spread(volumes[name])}
                for value, name in self.classes.items()
            },
            "warnings": [{"code": note.code, "message": note.message} for note in self.warnings],
            "cases": [self._case(one) for one in self.cases],
        }

    def _case(self, one: CheckedCase) -> dict[str, Any]:
        told = {
            **one.verdict.to_json(),
            "images": [str(path) for path in one.case.images],
            "label": str(one.case.label),
            "split": one.case.split,
        }
        if one.statistics is None:
            return told
        found = one.statistics
        volumes = {
            self.classes.get(value, f"class_{value}"): {"label": value, "voxels": voxels, "ml": found.ml[value]}
            for value, voxels in found.voxels.items()
        }
        return {**told, "volumes": volumes, **found.to_json()}


def preflight(
    data: LabelledData, *, options: ReadOptions = DEFAULTS, pictures: bool = False, progress: bool = False
) -> Preflight:
    """Read and judge all cases, one at a time; one that is refused never stops the others.

    Args:
        data: see `dataset.find_labelled`.
        options: the user's choices about what cannot be read unambiguously.
        pictures: also draw every case, for the page.
        progress: show a bar on standard error.

    Returns:
        A verdict and statistics a case, and the names of the classes.

    Raises:
        Refusal: E-DATASET, names of classes differ in spelling at most, see `labelled.expect_names`.
    """
    names = dict(data.classes or {})
    checked = []
    for case in tqdm(data.cases, desc="cases", unit="case", disable=not progress):
        checked.append(_judged(case, data, names, options, pictures))
    checked = keep_people_apart(keep_images_apart(checked))  # an image may tell who is who
    found = {value for one in checked if one.usable and one.statistics for value in one.statistics.voxels}
    classes = data.classes or _named(sorted(found), names)
    expect_names(classes, data.source)
    whole = replace(data, classes=classes, cases=tuple(one.case for one in checked))
    return Preflight(whole, tuple(checked), tuple(absent_anywhere(classes, checked)))


def format_classes(found: Preflight) -> str:
    """A line a class: in how many cases, and how large; then what is to be said of the dataset as a whole."""
    told_of_all = found.to_json()
    people = f"{told_of_all['people']} people as far as the dataset tells"
    lines = [f"{found.data.layout}: {len(found.cases)} cases, {people}"]
    for name, told in told_of_all["classes"].items():
        low, median, high = told["ml"] or (None, None, None)
        size = f"{low:.1f} to {high:.1f} mL, median {median:.1f}" if told["ml"] else "n/a"
        lines.append(f"{told['label']:4}  {name:32} in {told['cases']} of {len(found.usable)} cases  {size}")
    return "\n".join([*lines, *(f"{note.code} {note.message}" for note in found.warnings)])


def _judged(
    case: LabelledCase, data: LabelledData, names: dict[int, str], options: ReadOptions, pictures: bool
) -> CheckedCase:
    path = case.images[0]
    try:
        loaded = load(case, len(data.channels), classes=data.classes, options=options)
        _learn_names(loaded.names, names, case)
        return _passed(case, loaded, names, pictures)
    except Refusal as error:
        verdict = Verdict(case.id, error.path or path, "refused", error.code, error.message, error.remedy)
    except MemoryError:
        remedy = "crop or downsample the image, or close other programs"
        verdict = Verdict(case.id, path, "refused", "E-SIZE", "there is not enough memory for this case", remedy)
    except Exception as error:
        # A fault of ours, not of the input's; the text of a foreign error may quote the file, so only its type is told.
        logger.debug("%s", path, exc_info=True)
        message = f"reading failed in an unforeseen way ({type(error).__name__})"
        verdict = Verdict(case.id, path, "refused", "E-INTERNAL", message, "report this, with the program's version")
    return CheckedCase(case, verdict)


def _passed(case: LabelledCase, loaded: LoadedCase, names: Mapping[int, str], pictures: bool) -> CheckedCase:
    found = measure(loaded.image, loaded.labels, loaded.counts)
    notes = loaded.image.notes
    if not found.voxels:
        notes += (Note("flag", "F-EMPTY", "nothing is labelled"),)
    flags = [note for note in notes if note.kind == "flag"]
    picture = b""
    if pictures:
        from monai_attention.report.sheet import LEGEND_ENTRIES
        from monai_attention.report.training_data import picture_of

        largest = sorted(found.voxels, key=lambda value: -found.voxels[value])[:LEGEND_ENTRIES]
        classes = {value: names.get(value, f"class_{value}") for value in largest}
        picture = picture_of(loaded.image.array[0], loaded.labels, loaded.image.affine, classes)
    x, y, z = found.spacing_mm
    verdict = Verdict(
        case.id,
        case.images[0],
        "flagged" if flags else "ok",
        code=flags[0].code if flags else "",
        message="; ".join(flag.message for flag in flags),
        notes=notes,
        shape=loaded.image.shape,
        spacing_mm=(x, y, z),
        orientation=found.orientation,
        modality=loaded.image.modality,
    )
    return CheckedCase(case, verdict, found, picture)


def _learn_names(found: Mapping[int, str], names: dict[int, str], case: LabelledCase) -> None:
    """Names that a label file gives, which must be those of the others."""
    for value, name in found.items():
        if same_name(names.setdefault(value, name)) != same_name(name):
            message = f"it calls the value {value} {name}; elsewhere it is {names[value]}"
            remedy = "number the segments alike in all cases"
            raise Refusal("E-LABELS", message, path=case.label, remedy=remedy)


def _named(values: list[int], names: Mapping[int, str]) -> dict[int, str]:
    """A name of its own for every value."""
    named = {value: names.get(value, f"class_{value}") for value in values}
    times = Counter(map(same_name, (*named.values(), "background")))
    return {value: f"{name}_{value}" if times[same_name(name)] > 1 else name for value, name in named.items()}


def _spread(ml: list[float]) -> list[float] | None:
    """Smallest, median and largest."""
    return [min(ml), numbers.median(ml), max(ml)] if ml else None
