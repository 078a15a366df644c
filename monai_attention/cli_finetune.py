"""The verbs of labelled cases: parse, call one public function, print. Heavy imports happen inside."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_attention import DEFAULT_BUNDLE
from monai_attention.cli_options import OK, SOME_REFUSED, AddVerb, add_read_options, read_options
from monai_attention.columns import in_columns

if TYPE_CHECKING:
    from monai_attention.io.volume import ReadOptions


def add_verbs(add: AddVerb) -> None:
    """Declare `finetune` and `evaluate`."""
    example = "monai-attention finetune data/ -o liver_ct_mine --time 4h"
    one = add("finetune", finetune, "fine-tune a bundle on labelled cases; the result is a bundle", example)
    one.add_argument("inputs", nargs="+", metavar="DATA", help="dataset: folder, CSV or dataset.json; or two folders")
    one.add_argument("-o", "--output", required=True, metavar="BUNDLE", help="folder of the new bundle")
    text = "to begin with, or `none` for random weights (default: %(default)s)"
    one.add_argument("--from", dest="source", default=DEFAULT_BUNDLE, metavar="BUNDLE", help=text)
    text = "train all weights, low-rank adapters beside them, or the last layer (default: full)"
    one.add_argument("--method", choices=("full", "lora", "head"), default="full", help=text)
    text = (
        "cross-validate: hold out each of N parts of the people in turn, then train on all (default: hold out one of 5)"
    )
    one.add_argument("--folds", type=_from(2), metavar="N", help=text)
    text = "hold out only part K, from 0; with --resume, do only this training"
    one.add_argument("--fold", type=_from(0), metavar="K", help=text)
    text = "also train as long from random weights, to see what the source's are good for"
    one.add_argument("--compare", choices=("scratch",), help=text)
    length = one.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_from(1), metavar="N", help="length of each training (default: by a rule)")
    length.add_argument("--time", type=_seconds, metavar="TIME", help="that all training may take: 45m, 4h, 2d")
    one.add_argument("--plan-only", action="store_true", help="stop before the training; the plan may be edited")
    one.add_argument("--resume", action="store_true", help="go on with a training that was stopped, or planned")
    one.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add_read_options(one)
    one.add_argument("-q", "--quiet", action="store_true", help="no progress bars")

    example = f"monai-attention evaluate {DEFAULT_BUNDLE} data/ -o evaluation --split test"
    one = add("evaluate", evaluate, "measure how well a bundle segments labelled cases", example)
    one.add_argument("bundle", metavar="BUNDLE", help="name, folder or zip")
    one.add_argument("inputs", nargs="+", metavar="DATA", help="dataset: folder, CSV or dataset.json; or two folders")
    one.add_argument("-o", "--output", required=True, help="folder for the results; finished cases there are kept")
    one.add_argument("--split", choices=("train", "validation", "test"), help="only the cases of this split")
    one.add_argument(
        "--map", type=_names, default={}, metavar="BUNDLE=DATA,...", help="classes that are not called alike"
    )
    one.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add_read_options(one)
    one.add_argument("--overwrite", action="store_true", help="do finished cases again")
    one.add_argument("--trust-bundle", action="store_true", help="run whatever code the bundle's configuration names")
    one.add_argument("-q", "--quiet", action="store_true", help="no progress bars")


def finetune(options: argparse.Namespace) -> int:
    """Fine-tune a bundle and print what was decided and what came out."""
    from monai_attention.finetune.processes import rank
    from monai_attention.finetune.run import finetune as run

    settled = {
        "source": None if options.source == "none" else options.source,
        "method": options.method,
        "epochs": options.epochs,
        "seconds": options.time,
        "fold": options.fold,
        "folds": options.folds,
        "compare": options.compare,
        "device": options.device,
        "options": read_options(options),
        "progress": not options.quiet,
    }
    found = run(options.inputs, options.output, **settled, resume=options.resume, plan_only=True)
    if rank() == 0:
        return _go_on(options, settled, found.story)
    with contextlib.redirect_stdout(None):  # the first process tells, and has the exit code
        _go_on(options, settled, found.story)
    return OK


def _go_on(options: argparse.Namespace, settled: dict[str, Any], story: Mapping[str, Any]) -> int:
    """Tell the plan, train, tell what came out."""
    from monai_attention.finetune.begin import plan_now
    from monai_attention.finetune.comparison import refusals, table
    from monai_attention.finetune.run import NEW
    from monai_attention.finetune.run import finetune as run

    _print_story(story, plan_now(Path(options.output), story))
    refused = bool(story["refused"])
    if options.plan_only:
        print(f"look at {Path(options.output) / 'configs/train.json'}; give --resume instead of --plan-only to train")
        return SOME_REFUSED if refused else OK
    if not options.resume:
        settled["fold"] = None  # it is in the plan now; with `resume` it would mean this training only
    found = run(options.inputs, options.output, **settled, resume=True)
    if found.judged is None:
        print(f"fold {options.fold} is done; when all are, --resume without --fold trains on all cases, and judges")
        return SOME_REFUSED if refused else OK
    print("\n".join(in_columns(table(found.judged))))
    print("Dice of held-out cases; in brackets 95 % intervals of the mean, by person, where there are three or more")
    for line in refusals(found.judged):
        print(f"without scores of {line}")
    worst = [one for one in found.judged["contenders"][NEW]["worst"] if one["dice"] is not None]
    if worst:
        print("worst of this bundle: " + ", ".join(f"{one['case_id']} {one['dice']:.3f}" for one in worst))
    for name, why in found.judged["lacking"].items():
        print(f"not compared with {name}: {why}")
    print(f"look at {found.bundle / 'evaluation/this_bundle/report.html'}, and {found.bundle / 'docs/README.md'}")
    print(f"monai-attention segment SCAN -o results --bundle {options.output}")
    return SOME_REFUSED if refused or found.judged["contenders"][NEW]["refused"] else OK


def _print_story(story: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """What was found, and what will be done, before hours go into it."""
    from monai_attention.finetune.processes import count, crops_each

    refused = ", ".join(f"{case} ({code})" for case, code in story["refused"].items())
    print(f"{story['cases']} cases of {story['people']} people" + (f"; refused: {refused}" if refused else ""))
    if story["source_saw"]:
        print(
            f"    {story['source_saw']} of the cases were in the source's own training, which flatters it and this one"
        )
    for line in story["weights"]:
        print(f"    {line}")
    for name, value in plan.items():
        print(f"    {name.replace('_', ' '):16} {_spelled(value)}")
    held_out = [fold for fold in story["trainings"] if fold is not None]
    trainings = len(story["trainings"]) + (len(held_out) if story["compare"] else 0)
    each = crops_each(plan["batch_size"])
    if count() > 1:
        print(f"    {'processes':16} {count()}, each with {each} of a batch's {each * count()} crops")
    crops = each * plan["epoch_length"] * plan["max_epochs"]
    minutes = trainings * crops * story["costs"]["seconds"] / 60
    steps = "its steps take" if trainings == 1 else f"the steps of {trainings} trainings take"
    print(f"    {steps} about {minutes:.0f} minutes as measured, without reading and validation", flush=True)


def _spelled(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(name.replace("_", " ") for name in value) or "as it is"
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate a bundle and print its scores."""
    from monai_attention.finetune.evaluate import evaluate as run
    from monai_attention.finetune.evaluation import format_evaluation

    found = run(
        options.bundle,
        options.inputs,
        options.output,
        split=options.split,
        names=options.map,
        device=options.device,
        options=read_options(options),
        overwrite=options.overwrite,
        trust_bundle=options.trust_bundle,
        progress=not options.quiet,
    )
    print(f"{format_evaluation(found.to_json())}\nlook at {Path(options.output) / 'report.html'}")
    return SOME_REFUSED if found.refused else OK


def check_labelled(inputs: Sequence[str], options: ReadOptions, *, page: str | None, as_json: bool) -> int:
    """Judge images with their label maps."""
    from monai_attention.finetune.dataset import find_labelled
    from monai_attention.finetune.preflight import format_classes, preflight
    from monai_attention.io.check import format_table
    from monai_attention.report.training_data import write_training_data

    found = preflight(find_labelled(inputs), options=options, pictures=page is not None, progress=not as_json)
    if page is not None:
        write_training_data(page, found.to_json(), {one.case.id: one.picture for one in found.cases})
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        print(format_table([one.verdict for one in found.cases]))
        print(f"\n{format_classes(found)}" + (f"\nlook at {page}" if page else ""))
    return OK if len(found.usable) == len(found.cases) else SOME_REFUSED


def _names(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(theirs.strip() and ours.strip() for theirs, _, ours in pairs):
        raise argparse.ArgumentTypeError(f"expected bundle's=dataset's,... for example liver=Liver; got {text!r}")
    return {theirs.strip(): ours.strip() for theirs, _, ours in pairs}


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.lower())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected a time, for example 45m or 4h; got {text!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _from(least: int) -> Callable[[str], int]:
    """Reads whole numbers that are not smaller."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got {text!r}")
        return int(text)

    return number
