"""Fine-tune a bundle on a labelled cohort: look at the data, plan, prepare, train; the result is a bundle again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monai_attention import DEFAULT_BUNDLE
from monai_attention.errors import Refusal
from monai_attention.finetune.card import write_card
from monai_attention.finetune.dataset import find_labelled
from monai_attention.finetune.folds import FOLDS
from monai_attention.finetune.preflight import preflight
from monai_attention.io.read import DEFAULTS
from monai_attention.io.volume import ReadOptions
from monai_attention.io.write import check_writable, write_json
from monai_attention.report.training_data import write_training_data

STORY = "finetune.json"
"""In the new bundle: where it came from and what was decided, for the card, and for going on."""


@dataclass(frozen=True)
class Finetuned:
    """What became of it.

    Args:
        bundle: folder of the new bundle.
        story: plan, what became of the weights, cases and classes.
        score: mean Dice over the held-out cases, None if nothing was trained.
        epoch: of the weights that were kept.
    """

    bundle: Path
    story: dict[str, Any]
    score: float | None = None
    epoch: int | None = None


def finetune(
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    source: str | Path = DEFAULT_BUNDLE,
    method: str = "full",
    epochs: int | None = None,
    seconds: float | None = None,
    fold: int = 0,
    folds: int = FOLDS,
    device: str | None = None,
    options: ReadOptions = DEFAULTS,
    resume: bool = False,
    plan_only: bool = False,
    progress: bool = False,
) -> Finetuned:
    """Fine-tune a bundle on labelled cases.

    The new bundle has the source's architecture and preprocessing, the cohort's classes and channels, and everything
    that was decided in `configs/train.json`, which plain MONAI runs as well. In it are also `preflight.html` (a picture
    of every case), `data/` (the cases as the network sees them) and `runs/` (checkpoints and `epochs.csv`); these may
    be deleted when the training is done.

    Args:
        data: see `dataset.find_labelled`.
        output: folder of the new bundle; must be empty, but with `resume`.
        source: packaged name, folder or zip of the bundle to begin with.
        method: `full` trains all weights, `lora` adapters of the attention, `head` the last layer.
        epochs: of the training; None: by `seconds`, or a rule, see `plan`.
        seconds: that the training may take.
        fold: which part of the people is held out for validation, from 0.
        folds: parts that the people are divided into.
        device: torch device; None takes CUDA if there is one, else the CPU.
        options: choices about inputs that cannot be read unambiguously.
        resume: go on in a bundle that a stopped run has begun, by the configurations in it; what is given here of the
            plan does not count then. `configs/train.json` may be edited before the first epoch, not after it.
        plan_only: stop before the training.
        progress: show bars on standard error.

    Raises:
        Refusal: the cohort, the source or the fold cannot be used, the output is not empty, or the loss became NaN.
    """
    folder = Path(output).absolute()
    story = folder / STORY
    if not 0 <= fold < folds:
        raise Refusal("E-FOLD", f"expected a fold from 0 to {folds - 1}, got {fold}", remedy="folds are counted from 0")
    there = folder.is_dir() and any(folder.iterdir())
    begun = json.loads(story.read_text(encoding="utf-8")) if story.is_file() else {}
    if resume and not begun:
        remedy = "leave --resume away to begin"
        raise Refusal("E-NOTHING-TO-RESUME", "no fine-tuning was begun here", path=folder, remedy=remedy)
    if there and not resume:
        remedy = "add --resume to go on with it, or name another folder"
        raise Refusal("E-OUTPUT-EXISTS", "the folder of the new bundle is not empty", path=folder, remedy=remedy)
    if "plan" not in begun:  # a beginning that was stopped is begun again; cases that were prepared are kept
        check_writable(folder)
        _begin(data, folder, source, method, epochs, seconds, fold, folds, device, options, progress)
    told = json.loads(story.read_text(encoding="utf-8"))
    if plan_only:
        return Finetuned(folder, told)
    from monai_attention.finetune.training import train

    trained = train(folder, device=device, progress=progress)
    write_card(folder, told, trained.folder, trained.score, trained.epoch)
    return Finetuned(folder, told, trained.score, trained.epoch)


def _begin(
    data: str | Path | Sequence[str | Path],
    folder: Path,
    source: str | Path,
    method: str,
    epochs: int | None,
    seconds: float | None,
    fold: int,
    folds: int,
    device: str | None,
    options: ReadOptions,
    progress: bool,
) -> None:
    """Everything before the training; the story is written last, so that half a beginning is none."""
    from monai_attention.finetune.new_bundle import expect_usable, make_bundle, write_data

    write_json(folder / STORY, {"begun": True})
    given = [data] if isinstance(data, str | Path) else data
    found = preflight(find_labelled(given), options=options, pictures=True, progress=progress)
    write_training_data(folder / "preflight.html", found.to_json(), {one.case.id: one.picture for one in found.cases})
    expect_usable(found)
    made = make_bundle(found, folder, source, method=method, epochs=epochs, seconds=seconds, fold=fold, device=device)
    listed = write_data(found, folder, folds=folds, options=options, progress=progress)
    if fold not in {entry["fold"] for entry in listed}:
        remedy = "the dataset says itself what is for validation: leave --fold away"
        raise Refusal("E-FOLD", f"no case is in fold {fold}", path=found.data.source, remedy=remedy)
    refused = [one.verdict for one in found.cases if not one.usable]
    write_json(
        folder / STORY,
        {
            "source": Path(source).name,
            "fold": fold,
            "plan": asdict(made.plan),
            "costs": asdict(made.costs),
            "weights": made.adaptation.lines(),
            "classes": {name: found.volumes_ml()[name] for name in found.classes.values()},
            "channels": list(found.data.channels),
            "cases": len(listed),
            "people": len({one.case.group for one in found.usable}),
            "refused": {verdict.case_id: verdict.code for verdict in refused},
            "folds": {entry["id"]: entry["fold"] for entry in listed},
        },
    )
