"""Everything before the training: the plan, the new bundle, its prepared data, and the story of what was decided."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import monai
import torch

from monai_attention import DEFAULT_BUNDLE, __version__, bundles
from monai_attention.errors import Refusal
from monai_attention.finetune.folds import FOLDS
from monai_attention.finetune.new_bundle import Wishes, expect_usable, make_bundle, preparation, write_data
from monai_attention.finetune.preflight import Preflight
from monai_attention.finetune.prepared import expect_labelled
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
    """
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
    _expect_own_folds(found, fold, folds)
    write_json(folder / STORY, {"begun": True})
    write_training_data(folder / "preflight.html", found.to_json(), {one.case.id: one.picture for one in found.cases})
    expect_usable(found)
    held_out = [one for one in trainings if one is not None]
    count = len(trainings) + (len(held_out) if compare else 0)
    wishes = replace(wishes, seconds=wishes.seconds and wishes.seconds / count)
    first, keep = held_out[0], "best" if len(trainings) == 1 else "last"
    origin = DEFAULT_BUNDLE if source is None else source
    made = make_bundle(found, folder, origin, wishes, own_preprocessing=source is None, fold=first, keep=keep)
    if compare:
        same = replace(wishes, method="scratch", epochs=made.plan.max_epochs, seconds=None)
        make_bundle(found, scratch_of(folder), origin, same, fold=first, keep=keep, data="../data")
    listed = write_data(found, folder, folds=folds or FOLDS, options=options, progress=progress)
    if keep == "best":  # what the held-out cases like
        expect_labelled(listed, folder / "data", first)
    write_json(
        folder / STORY,
        {
            "source": None if source is None else str(source),
            "trainings": trainings,
            "parts": folds or FOLDS,
            "keep": keep,
            "preparation": preparation(folder),
            "compare": compare,
            "plan": asdict(made.plan),
            "costs": asdict(made.costs),
            "weights": made.weights,
            "source_sha256": None if wishes.method == "scratch" else bundles.info(origin).weights_sha256,
            "program": {"monai_attention": __version__, "monai": monai.__version__, "torch": torch.__version__},
            "device": made.device,
            "fingerprint": _fingerprint(found),
            "classes": {name: found.volumes_ml()[name] for name in found.classes.values()},
            "channels": list(found.data.channels),
            "cases": len(listed),
            "people": len({one.case.group for one in found.usable}),
            "refused": {one.verdict.case_id: one.verdict.code for one in found.cases if not one.usable},
            "folds": {entry["id"]: entry["fold"] for entry in listed},
        },
    )


def prepare_again(
    found: Preflight, folder: Path, story: Mapping[str, Any], options: ReadOptions, progress: bool
) -> None:
    """Prepare the cases anew, as the preprocessing in `inference.json` has them after it was edited.

    Raises:
        Refusal: E-PLAN-CHANGED, a training has begun with them as they were.
    """
    inference = folder / "configs/inference.json"
    if any(folder.glob("**/runs/*/checkpoint_epoch=*.pt")):
        remedy = f"undo that (it was as in {folder / STORY}), or begin anew in another folder"
        message = "its preprocessing was edited after the training's first epoch"
        raise Refusal("E-PLAN-CHANGED", message, path=inference, remedy=remedy)
    write_data(found, folder, folds=story["parts"], options=options, progress=progress)
    if story["compare"]:
        other = scratch_of(folder) / "configs/inference.json"
        write_json(other, json.loads(other.read_text(encoding="utf-8")) | preparation(folder))
    write_json(folder / STORY, {**story, "preparation": preparation(folder)})


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


def _expect_own_folds(found: Preflight, fold: int | None, folds: int | None) -> None:
    """Refuse to divide what the dataset has divided itself."""
    if any(one.case.split in ("train", "validation") for one in found.cases) and (fold or folds):
        remedy = "leave --fold and --folds away, or the splits"
        message = "the dataset says itself which cases are for validation"
        raise Refusal("E-FOLD", message, path=found.data.source, remedy=remedy)
