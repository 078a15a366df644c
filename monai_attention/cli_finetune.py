"""The verbs of labelled cases: parse, call one public function, print. Heavy imports happen inside."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from monai_attention import DEFAULT_BUNDLE
from monai_attention.cli_options import add_read_options, read_options

if TYPE_CHECKING:
    from monai_attention.io.volume import ReadOptions

OK, SOME_REFUSED = 0, 1

AddVerb = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
"""From name, function, text and example to a parser."""


def add_verbs(add: AddVerb) -> None:
    """Declare `evaluate`."""
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
