"""Everything before the training: the plan, the new bundle, its prepared data, and the story of what was decided."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import monai
import torch

from monai_attention import DEFAULT_BUNDLE, __version__, bundles
from monai_attention.bundle_config import read_config
from monai_attention.errors import Refusal
from monai_attention.finetune.folds import FOLDS, folds_of
from monai_attention.finetune.handlers import whole_checkpoints
from monai_attention.finetune.labelled import LabelledCase
from monai_attention.finetune.labelled import listed as named
from monai_attention.finetune.new_bundle import Wishes, expect_usable, make_bundle, preparation, write_data
from monai_attention.finetune.preflight import Preflight
from monai_attention.finetune.prepared import expect_labelled
from monai_attention.finetune.together import CheckedCase
from monai_attention.io.volume import ReadOptions
from monai_attention.io.write import write_json
from monai_attention.report.training_data import write_training_data

STORY = "finetune.json"
"""In the new bundle: where it came from and what was decided, for the card, and for going on."""


def trainings_of(fold: int | None, folds: int | None) -> list[int | None]:
    """The fold that each training holds out, None for none; the last one's weights are the new bundle's.

    Args:
        fold: the only one that is held out.
        folds: number of parts; without `fold`, each is held out in turn.

    Raises:
        Refusal: E-FOLD.
        ValueError: less than two folds.
    """
    if folds is not None and folds < 2:
        raise ValueError(f"expected at least two folds, got {folds}")
    if fold is None:
        return [0] if folds is None else [*range(folds), None]
    count = folds or FOLDS
    if not 0 <= fold < count:
        raise Refusal("E-FOLD", f"expected a fold from 0 to {count - 1}, got {fold}", remedy="folds are counted from 0")
    return [fold]


def scratch_of(folder: Path) -> Path:
    """Where in a new bundle there is another one, trained from random weights for the comparison."""
    return folder / "from_scratch"


def begin(
    found: Preflight,
    folder: Path,
    source: str | Path | None,
    wishes: Wishes,
    *,
    fold: int | None,
    folds: int | None,
    compare: str | None,
    options: ReadOptions,
    progress: bool,
) -> None:
    """Make the new bundle; the story is written last, so that half a beginning is none.

    Args:
        found: the cohort.
        folder: of the new bundle.
        source: bundle to begin with; None: from scratch.
        wishes: of the user; its seconds are divided among all trainings.
        fold: see `trainings_of`.
        folds: see `trainings_of`.
        compare: see `run.finetune`.
        options: choices about inputs that cannot be read unambiguously.
        progress: show bars on standard error.

    Raises:
        Refusal: the cohort, the source or the fold cannot be used.
    """
    trainings = trainings_of(fold, folds)
    write_json(folder / STORY, {"begun": True})
    write_training_data(folder / "preflight.html", found.to_json(), {one.case.id: one.picture for one in found.cases})
    found = _without_tests(found)
    expect_usable(found)
    _expect_own_folds(found, fold, folds)
    if _is_split(one.case for one in found.cases) and not _is_split(one.case for one in found.usable):
        message = "every case that the dataset names for validation was refused"
        remedy = "correct them (`monai-attention check --labels` says what is wrong), or leave the splits away"
        raise Refusal("E-TOO-FEW", message, path=found.data.source, remedy=remedy)
    divided = folds_of([one.case for one in found.usable], folds or FOLDS)
    held_out = [one for one in trainings if one is not None]
    count = len(trainings) + (len(held_out) if compare else 0)
    wishes = replace(wishes, seconds=wishes.seconds and wishes.seconds / count)
    origin = DEFAULT_BUNDLE if source is None else source
    own = source is None
    made = make_bundle(found, folder, origin, wishes, own_preprocessing=own, fold=trainings[-1])
    if compare:
        other = replace(wishes, method="scratch")
        make_bundle(found, scratch_of(folder), origin, other, like=made, fold=held_out[-1], data="../data")
    listed = write_data(found, folder, divided, options=options, progress=progress)
    for one in held_out:
        expect_labelled(listed, folder / "data", one, alone=len(held_out) == 1)
    contents = {one.case.id: content_of(one) for one in found.usable}
    write_json(
        folder / STORY,
        {
            "source": None if source is None else str(source),
            "source_sha256": bundles.identity(origin)[2],
            "source_saw": _seen_before(bundles.find(origin), contents),
            "trainings": trainings,
            "compare": compare,
            "plan": asdict(made.plan),
            "costs": asdict(made.costs),
            "preparation": preparation(folder),
            "weights": made.weights,
            "program": {"monai_attention": __version__, "monai": monai.__version__, "torch": torch.__version__},
            "device": made.device,
            "fingerprint": _fingerprint(found),
            "classes": {name: found.volumes_ml()[name] for name in found.classes.values()},
            "channels": list(found.data.channels),
            "cases": len(listed),
            "people": len({one.case.group for one in found.usable}),
            "refused": {one.verdict.case_id: one.verdict.code for one in found.cases if not one.usable},
            "folds": divided,
            "contents": contents,
        },
    )


def plan_now(folder: Path, story: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a story, with what was edited since in `configs/train.json`."""
    recipe = read_config(folder / "configs/train.json").tree
    plan = dict(story["plan"])
    written = {name: recipe[name] for name in plan if name in recipe and name != "network"}
    return plan | {name: value for name, value in written.items() if not isinstance(value, str)}  # no expressions


def prepare_again(
    found: Preflight, folder: Path, story: Mapping[str, Any], options: ReadOptions, progress: bool
) -> None:
    """Prepare the cases anew, as the preprocessing in `inference.json` has them after it was edited.

    Raises:
        Refusal: E-PLAN-CHANGED, a training has begun with them as they were; E-DATA-CHANGED.
    """
    inference = folder / "configs/inference.json"
    if any(whole_checkpoints(runs) for runs in folder.glob("**/runs/*/")):
        remedy = f"undo that (it was as in {folder / STORY}), or begin anew in another folder"
        message = "its preprocessing was edited after the training's first epoch"
        raise Refusal("E-PLAN-CHANGED", message, path=inference, remedy=remedy)
    found = _without_tests(found)
    expect_same(found, story)
    write_json(folder / STORY, {**story, "preparation": None})  # neither the old nor the new, until all is written
    listed = write_data(found, folder, story["folds"], options=options, progress=progress)
    for one in story["trainings"]:
        if one is not None:
            expect_labelled(listed, folder / "data", one, alone=len(story["trainings"]) == 1)
    if story["compare"]:
        other = scratch_of(folder) / "configs/inference.json"
        write_json(other, json.loads(other.read_text(encoding="utf-8")) | preparation(folder))
    write_json(folder / STORY, {**story, "preparation": preparation(folder)})


def expect_same(found: Preflight, story: Mapping[str, Any]) -> None:
    """Refuse to go on with other cases, other voxels or other classes than were begun with; more cases do no harm.

    Raises:
        Refusal: E-DATA-CHANGED.
    """
    now = {one.case.id: content_of(one) for one in found.usable}
    changed = [case for case, content in story["contents"].items() if now.get(case) != content]
    if changed or list(story["classes"]) != list(found.classes.values()):
        what = f"cases {named(changed)} are missing or others" if changed else "its classes are others"
        message = f"this is not the dataset that was begun with: {what}"
        remedy = "give the same data, or begin anew in another folder"
        raise Refusal("E-DATA-CHANGED", message, path=found.data.source, remedy=remedy)


def content_of(one: CheckedCase) -> str:
    """Equal for equal voxels of the image and of the labels."""
    assert one.statistics is not None
    return hashlib.sha256(f"{one.statistics.digest} {one.statistics.labels_digest}".encode()).hexdigest()


def _without_tests(found: Preflight) -> Preflight:
    """The part of a cohort that may be looked at: cases for testing are for `evaluate`, when all is done."""
    kept = [one for one in found.cases if one.case.split != "test"]
    return replace(found, data=replace(found.data, cases=tuple(one.case for one in kept)), cases=tuple(kept))


def _seen_before(source: Path, contents: Mapping[str, str]) -> int:
    """Of the cases, how many the source was itself fine-tuned on, as far as its own story tells."""
    story = source / STORY
    told = json.loads(story.read_text(encoding="utf-8")) if story.is_file() else {}
    learned = {one: content for one, content in told.get("contents", {}).items() if _learned(told, one)}
    return len(set(learned.values()) & set(contents.values()))


def _learned(story: Mapping[str, Any], case: str) -> bool:
    """Whether the weights that a bundle was given learned from a case."""
    last = story["trainings"][-1]
    return last is None or story["folds"].get(case) != last


def _expect_own_folds(found: Preflight, fold: int | None, folds: int | None) -> None:
    """Refuse to divide what the dataset has divided itself."""
    if _is_split(one.case for one in found.cases) and (fold or folds):
        remedy = "leave --fold and --folds away, or the splits"
        message = "the dataset says itself which cases are for validation"
        raise Refusal("E-FOLD", message, path=found.data.source, remedy=remedy)


def _is_split(cases: Iterable[LabelledCase]) -> bool:
    return any(case.split == "validation" for case in cases)


def _fingerprint(found: Preflight) -> dict[str, list[float]]:
    """The smallest and the largest number of anything that cases may differ in; no names."""
    seen = [one.statistics for one in found.usable if one.statistics]
    values: dict[str, list[float]] = {
        "voxels along an axis": [n for one in seen for n in one.shape],
        "spacing, mm": [mm for one in seen for mm in one.spacing_mm],
        "0.5th percentile of intensities": [channel.low for one in seen for channel in one.intensities],
        "median intensity of labelled voxels": [channel.median for one in seen for channel in one.foreground],
        "99.5th percentile of intensities": [channel.high for one in seen for channel in one.intensities],
    }
    return {name: [min(numbers), max(numbers)] for name, numbers in values.items()}
