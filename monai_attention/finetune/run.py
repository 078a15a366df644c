"""Fine-tune a bundle on a labelled cohort: look at the data, plan, prepare, train, judge; the result is a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_attention import DEFAULT_BUNDLE, bundles
from monai_attention.bundle_config import read_config
from monai_attention.cohort import ledger
from monai_attention.cohort.device import device_of
from monai_attention.errors import Refusal
from monai_attention.finetune.begin import STORY, begin, expect_same, prepare_again, scratch_of, trainings_of
from monai_attention.finetune.card import write_card
from monai_attention.finetune.dataset import find_labelled
from monai_attention.finetune.evaluate import Way
from monai_attention.finetune.judge import SOURCE, judge
from monai_attention.finetune.new_bundle import Wishes, for_fold, preparation
from monai_attention.finetune.plan import METHODS
from monai_attention.finetune.preflight import Preflight, preflight
from monai_attention.finetune.processes import everywhere, led
from monai_attention.finetune.training import is_over, output_of, train
from monai_attention.io.read import DEFAULTS
from monai_attention.io.volume import ReadOptions
from monai_attention.io.write import check_writable

NEW, SCRATCH = "this bundle", "from scratch"
"""Contenders, see `judge`."""


@dataclass(frozen=True)
class Finetuned:
    """What became of it.

    Args:
        bundle: folder of the new bundle.
        story: plan, what became of the weights, cases and classes.
        judged: scores of held-out cases, see `comparison.comparison`; None until all trainings are done.
    """

    bundle: Path
    story: dict[str, Any]
    judged: dict[str, Any] | None = None

    @property
    def score(self) -> float | None:
        """Mean Dice over classes of the held-out cases, on their own grids."""
        return None if self.judged is None else self.judged["contenders"][NEW]["mean_over_classes"]["dice"]["mean"]


@led
def finetune(
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    source: str | Path | None = DEFAULT_BUNDLE,
    method: str = "full",
    epochs: int | None = None,
    seconds: float | None = None,
    fold: int | None = None,
    folds: int | None = None,
    compare: str | None = None,
    device: str | None = None,
    options: ReadOptions = DEFAULTS,
    resume: bool = False,
    plan_only: bool = False,
    progress: bool = False,
) -> Finetuned:
    """Fine-tune a bundle on labelled cases.

    The new bundle has the source's architecture and preprocessing, the cohort's classes and channels, and everything
    that was decided in `configs/train.json`, which plain MONAI runs as well. In it are also `preflight.html` (a picture
    of every case), `data/` (the cases as the network sees them), `runs/` (checkpoints and `epochs.csv`) and
    `evaluation/` (scores and pictures of held-out cases), and where asked for `from_scratch/`. They, and
    `finetune.json`, name and show cases: delete them when all is done, before the bundle is given away.

    One fold of the people is held out, unless `folds` asks for cross-validation: then each fold is held out in turn,
    and the new bundle's weights come from one more training, on all cases, which is as long.

    Several processes that torchrun started with the same arguments train together, each with its share of a batch; see
    `processes`. All get the result.

    Args:
        data: see `dataset.find_labelled`.
        output: folder of the new bundle; must be empty, or of a run that ended before its plan, but with `resume`.
        source: packaged name, folder or zip of the bundle to begin with; None: from scratch, with the architecture of
            `DEFAULT_BUNDLE` and preprocessing planned by the cohort.
        method: `full` trains all weights, `lora` low-rank adapters of them, `head` the last layer; `scratch` takes the
            source's architecture and preprocessing, but no weights.
        epochs: of each training; None: by `seconds`, or a rule, see `plan`.
        seconds: that all trainings together may take.
        fold: hold out only this part of the people, from 0. With `resume`: do only this training, and judge nothing.
        folds: parts that the people are divided into, five if nothing is said; without `fold`: cross-validate.
        compare: `scratch` also trains, as long, the same network from random weights, for the comparison.
        device: torch device; None takes CUDA if there is one, else the CPU. Of several processes each has its own GPU.
        options: choices about inputs that cannot be read unambiguously.
        resume: go on in a bundle that a stopped run has begun, by the configurations in it; what is given here of the
            plan does not count then. They may be edited before the first epoch, not after it: `train.json`, and the
            preprocessing in `inference.json`, by which cases are then prepared again.
        plan_only: stop before the training.
        progress: show bars on standard error.

    Raises:
        Refusal: the cohort, the source or the fold cannot be used, the output is not empty, the loss became NaN, or
            what is resumed was changed: its plan, or the data.
        ValueError: an unknown `method` or `compare`.
    """
    folder = Path(output).absolute()
    story = folder / STORY
    there = folder.is_dir() and any(folder.iterdir())
    begun = json.loads(story.read_text(encoding="utf-8")) if story.is_file() else {}
    if resume and not begun:
        remedy = "leave --resume away to begin"
        raise Refusal("E-NOTHING-TO-RESUME", "no fine-tuning was begun here", path=folder, remedy=remedy)
    if there and not resume and (not begun or "plan" in begun):  # half a beginning holds nothing that could be lost
        remedy = "add --resume to go on with it, or name another folder"
        raise Refusal("E-OUTPUT-EXISTS", "the folder of the new bundle is not empty", path=folder, remedy=remedy)
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}; got {method!r}")
    if compare not in (None, "scratch"):
        raise ValueError(f"expected compare to be 'scratch' or None, got {compare!r}")
    if source is None and (method != "full" or compare):
        message = "from scratch all is trained, and there is nothing else to compare with"
        raise Refusal("E-METHOD", message, remedy="leave --method and --compare away, or name a bundle to begin with")
    found = None
    if "plan" not in begun:  # a beginning that was stopped is begun again; cases that were prepared are kept
        # what can be refused before hours go into reading a cohort
        trainings_of(fold, folds)
        device_of(device)
        info = bundles.info(DEFAULT_BUNDLE if source is None else source)
        bundles.expect_purpose(info.purpose, "segment", info.folder)
        check_writable(folder)
        found = _look(data, options, pictures=True, progress=progress)
        wishes = Wishes("scratch" if source is None else method, epochs, seconds, device)
        place = source if source is None or str(source) in bundles.packaged_names() else Path(source).absolute()
        begin(found, folder, place, wishes, fold=fold, folds=folds, compare=compare, options=options, progress=progress)
    elif preparation(folder) != begun["preparation"]:
        found = _look(data, options, pictures=False, progress=progress)
        with _alone(folder / "data", "is preparing the cases anew", "wait for it"):
            begun = json.loads(story.read_text(encoding="utf-8"))
            if preparation(folder) != begun["preparation"]:
                prepare_again(found, folder, begun, options, progress)
    told = json.loads(story.read_text(encoding="utf-8"))
    if plan_only:
        return Finetuned(folder, told)
    judged_later = resume and fold is not None and len(told["trainings"]) > 1
    if not (found or judged_later):
        find_labelled([data] if isinstance(data, str | Path) else data)  # refused now, not after hours
    _train(folder, told, fold if resume else None, device, progress)
    if judged_later:
        return Finetuned(folder, told)
    found = found or _look(data, options, pictures=False, progress=progress)
    expect_same(found, told)
    way = Way(device=device, options=options, progress=progress)
    judged = judge(
        folder / "evaluation", found, told["folds"], _contenders(folder, told), way, source_sha256=told["source_sha256"]
    )
    write_card(folder, told, judged)
    return Finetuned(folder, told, judged)


def _look(
    data: str | Path | Sequence[str | Path], options: ReadOptions, *, pictures: bool, progress: bool
) -> Preflight:
    given = [data] if isinstance(data, str | Path) else data
    return preflight(find_labelled(given), options=options, pictures=pictures, progress=progress)


def _train(folder: Path, story: Mapping[str, Any], only: int | None, device: str | None, progress: bool) -> None:
    """All trainings that are not done, or only one."""
    if only is not None and only not in story["trainings"]:
        message = f"expected one of the trainings that were planned, got fold {only}"
        raise Refusal("E-FOLD", message, path=folder, remedy=f"planned are {story['trainings']}")
    made = [folder, *([scratch_of(folder)] if story["compare"] else [])]
    _expect_as_long(made)
    for fold in [only] if only is not None else story["trainings"]:
        for bundle in made if fold is not None else made[:1]:
            target = _target(bundle, fold, story)
            with _alone(output_of(bundle, fold), "is at this training", "wait for it, or name another --fold"):
                if not is_over(bundle, fold):
                    for_fold(bundle, target)
                everywhere(train, bundle, fold, target, device=device, progress=progress)


@contextmanager
def _alone(place: Path, does: str, remedy: str) -> Iterator[None]:
    """Refuse while another process is at a folder."""
    with ledger.claim(place) as mine:
        if not mine:
            raise Refusal("E-BUSY", f"another process {does}", path=place, remedy=remedy)
        yield


def _expect_as_long(made: Sequence[Path]) -> None:
    """Refuse to compare trainings of which one was edited to be longer than the other."""
    told = [read_config(bundle / "configs/train.json").tree for bundle in made]
    for key in ("roi_size", "batch_size", "epoch_length", "max_epochs"):
        if any(one[key] != told[0][key] for one in told):
            paths = " and ".join(str(bundle / "configs/train.json") for bundle in made)
            message = f"what is compared would not be trained alike: {key} differs"
            raise Refusal("E-PLAN-CHANGED", message, path=made[0] / "configs/train.json", remedy=f"edit both, {paths}")


def _target(bundle: Path, fold: int | None, story: Mapping[str, Any]) -> Path:
    """Which bundle gets the weights of a training: the last one's are the new bundle's."""
    return bundle if fold == story["trainings"][-1] else bundle / f"runs/fold_{fold}" / bundle.name


def _contenders(folder: Path, story: Mapping[str, Any]) -> dict[str, dict[int, Path | str]]:
    """See `judge`."""
    held_out = [fold for fold in story["trainings"] if fold is not None]
    found: dict[str, dict[int, Path | str]] = {NEW: {fold: _target(folder, fold, story) for fold in held_out}}
    if story["source"] is not None:
        found[SOURCE] = dict.fromkeys(held_out, story["source"])
    if story["compare"]:
        found[SCRATCH] = {fold: _target(scratch_of(folder), fold, story) for fold in held_out}
    return found
