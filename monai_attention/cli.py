"""The command `monai-attention`: parse, call one public function, print. Heavy imports happen inside the verbs."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from monai_attention import DEFAULT_BUNDLE, __version__, cli_finetune, cli_registration
from monai_attention.cli_options import OK, SOME_REFUSED, WRONG_ARGUMENTS, add_read_options, read_options
from monai_attention.cohort.pages import keep_pages
from monai_attention.errors import Refusal

if TYPE_CHECKING:
    from monai_attention.bundles import BundleInfo
    from monai_attention.inference.segment import CaseResult


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 all fine, 1 some cases refused or failed, 2 wrong arguments."""
    options = _parser().parse_args(arguments)
    if arguments is None:  # this is the process's one job
        keep_pages()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("monai_attention").setLevel(logging.DEBUG if options.verbose else logging.WARNING)
    try:
        return options.verb(options)
    except Refusal as refusal:
        if not refusal.told:
            print(f"monai-attention: {refusal}", file=sys.stderr)
        return SOME_REFUSED if refusal.code in ("E-DISK-FULL", "E-LOSS") else WRONG_ARGUMENTS
    except KeyboardInterrupt:
        print("stopped; the same command (finetune: with --resume) goes on with what is not finished", file=sys.stderr)
        return SOME_REFUSED
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


# The verbs


def segment(options: argparse.Namespace) -> int:
    """Segment cases and print their verdicts."""
    from monai_attention.bundle_config import parse_override
    from monai_attention.inference.segment import segment as run

    results = run(
        options.inputs,
        options.output,
        bundle=options.bundle,
        device=options.device,
        options=read_options(options),
        formats=options.format,
        uncertainty=options.uncertainty,
        overwrite=options.overwrite,
        part=options.part,
        trust_bundle=options.trust_bundle,
        overrides=dict(parse_override(setting) for setting in options.set),
        progress=not options.quiet,
    )
    return _print_results(results, options.output)


def check(options: argparse.Namespace) -> int:
    """Judge inputs without segmenting them."""
    if options.labels:
        return cli_finetune.check_labelled(
            options.inputs, read_options(options), page=options.output, as_json=options.json
        )
    if options.output:
        print("monai-attention: -o is the page of `check --labels`; add --labels", file=sys.stderr)
        return WRONG_ARGUMENTS
    from monai_attention import bundles
    from monai_attention.io.check import check as run
    from monai_attention.io.check import format_table

    requirements = bundles.requirements(options.bundle) if options.bundle else None
    verdicts = run(
        options.inputs, requirements=requirements, options=read_options(options), headers_only=not options.full
    )
    if options.json:
        print(json.dumps([verdict.to_json() for verdict in verdicts], indent=2, ensure_ascii=False))
    else:
        print(format_table(verdicts))
    return SOME_REFUSED if any(verdict.verdict == "refused" for verdict in verdicts) else OK


def list_bundles(options: argparse.Namespace) -> int:
    """List the packaged bundles."""
    from monai_attention import bundles

    for info in bundles.list_bundles():
        print(f"{info.name:32} {info.version:8} {'trained' if info.trained else 'NO WEIGHTS':10} {info.task}")
    return OK


def bundle_info(options: argparse.Namespace) -> int:
    """Describe a bundle."""
    from monai_attention import bundles

    print(_description(bundles.info(options.bundle)))
    return OK


def bundle_verify(options: argparse.Namespace) -> int:
    """Check a bundle."""
    from monai_attention.bundle_verify import verify

    verification = verify(options.bundle, full=options.full)
    for one in verification.checks:
        print(f"{'ok  ' if one.ok else 'FAIL'} {one.name}: {one.detail}")
    return OK if verification.ok else SOME_REFUSED


def demo(options: argparse.Namespace) -> int:
    """Make a phantom head, segment it, say where to look."""
    from monai_attention.inference.demo import make_phantom
    from monai_attention.inference.segment import segment as run

    output = Path(options.output)
    print("making a phantom head (formulas, no patient) ...", flush=True)
    phantom = make_phantom(output / "phantom_head.nii.gz")
    print("segmenting it with the packaged bundle ...", flush=True)
    results = run(phantom, output / "segmentation", progress=not options.quiet)
    return _print_results(results, output / "segmentation")


def _description(info: BundleInfo) -> str:
    """What a bundle does and accepts, a line a fact."""
    accepted = info.requirements
    low, high = accepted.spacing_mm
    lines = [
        ("bundle", f"{info.name} {info.version}"),
        ("task", info.task),
        ("", info.description),
        ("use", f"monai-attention {info.purpose} --bundle {info.name}"),
        ("network", info.network),
        ("spacing", " x ".join(f"{mm:g}" for mm in info.spacing_mm) + " mm" if info.spacing_mm else "of the input"),
        ("accepts", f"{' or '.join(accepted.modalities) or 'any modality'}, {accepted.channels} channel(s)"),
        ("", f"voxels of {low:g} to {high:g} mm, at least {accepted.min_extent_mm:g} mm along every axis"),
        *(("" if i else "labels", f"{label:3}  {name}") for i, (label, name) in enumerate(info.classes.items())),
        ("weights", f"{info.weights_bytes} bytes, sha256 {info.weights_sha256}" if info.trained else "NONE"),
        ("folder", str(info.folder)),
    ]
    return "\n".join(f"{name:8} {text}".rstrip() for name, text in lines if text)


def _print_results(results: Sequence[CaseResult], output: str | Path) -> int:
    for result in results:
        again = " (finished before)" if result.resumed else ""
        print(f"{result.verdict:8} {result.case_id}{again}")
        if result.code:
            print(f"         {result.code} {result.message}" + (f" ({result.remedy})" if result.remedy else ""))
        for name, ml in result.volumes_ml.items():
            print(f"         {name:32} {ml:10.1f} mL")
    counts = ", ".join(
        f"{sum(result.verdict == verdict for result in results)} {verdict}" for verdict in ("ok", "flagged", "refused")
    )
    print(f"{len(results)} case{'' if len(results) == 1 else 's'}: {counts}\nlook at {Path(output) / 'report.html'}")
    return SOME_REFUSED if any(result.verdict == "refused" for result in results) else OK


# Arguments

_WholeLines = argparse.RawDescriptionHelpFormatter  # an example that was broken in two cannot be pasted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="monai-attention",
        description="Attention networks for 3-D medical volumes.\nFor research; not a medical device.",
        epilog="example: monai-attention segment t1.nii.gz -o results",
        formatter_class=_WholeLines,
    )
    parser.add_argument("--version", action="version", version=f"monai_attention {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    one = _verb(
        verbs,
        "segment",
        segment,
        "segment files, DICOM folders, zips or whole cohorts",
        "monai-attention segment study/ scans/*.nii.gz -o results --format nifti,dicom-seg",
    )
    _add_inputs(one)
    one.add_argument("-o", "--output", required=True, help="folder for the results; finished cases there are kept")
    one.add_argument("--bundle", default=DEFAULT_BUNDLE, help="name, folder or zip (default: %(default)s)")
    one.add_argument("--device", help="cpu, cuda, or several: cuda:0,cuda:1 (default: cuda if there is one)")
    one.add_argument(
        "--format", type=_formats, default=("nifti",), help="nifti, dicom-seg or both with a comma (default: nifti)"
    )
    one.add_argument("--uncertainty", action="store_true", help="also write how unsure the network is of each voxel")
    one.add_argument("--overwrite", action="store_true", help="do finished cases again")
    one.add_argument("--part", type=_part, default=(1, 1), metavar="i/n", help="only the i-th of n parts of the cases")
    one.add_argument("--trust-bundle", action="store_true", help="run whatever code the bundle's configuration names")
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: inferer::overlap=0.25"
    )
    one.add_argument("-q", "--quiet", action="store_true", help="no progress bars")

    example = f"monai-attention check scans/ --bundle {DEFAULT_BUNDLE} --json"
    one = _verb(verbs, "check", check, "judge inputs in seconds, without segmenting them", example)
    _add_inputs(one)
    either = one.add_mutually_exclusive_group()
    either.add_argument("--bundle", help="also compare with what this bundle accepts")
    either.add_argument("--labels", action="store_true", help="IN is a dataset of images and label maps: judge both")
    one.add_argument("--full", action="store_true", help="read the voxels too, not only the headers")
    one.add_argument("-o", "--output", metavar="PAGE.html", help="with --labels: a page with a picture of every case")
    one.add_argument("--json", action="store_true", help="print JSON")

    cli_finetune.add_verbs(functools.partial(_verb, verbs))
    cli_registration.add_verbs(functools.partial(_verb, verbs))

    text = "list, describe and verify bundles"
    several = verbs.add_parser(
        "bundles",
        help=text,
        description=text,
        epilog="example: monai-attention bundles list",
        formatter_class=_WholeLines,
    )
    actions = several.add_subparsers(metavar="ACTION", required=True)
    _verb(actions, "list", list_bundles, "the packaged bundles", "monai-attention bundles list")
    for name, verb, text in (
        ("info", bundle_info, "what a bundle does, and what it accepts"),
        ("verify", bundle_verify, "check a bundle's files, hashes and configuration"),
    ):
        one = _verb(actions, name, verb, text, f"monai-attention bundles {name} {DEFAULT_BUNDLE}")
        one.add_argument("bundle", help="name, folder or zip")
    one.add_argument("--full", action="store_true", help="also load the weights and run the network")

    one = _verb(verbs, "demo", demo, "segment a phantom head, to see what comes out", "monai-attention demo")
    one.add_argument("-o", "--output", default="demo_output", help="folder for the results (default: %(default)s)")
    one.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    return parser


def _verb(
    verbs: argparse._SubParsersAction, name: str, verb: Callable[[argparse.Namespace], int], text: str, example: str
) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text, epilog=f"example: {example}", formatter_class=_WholeLines
    )
    one.add_argument("-v", "--verbose", action="store_true", help="log what is being done")
    one.set_defaults(verb=verb)
    return one


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    text = "file, DICOM folder, zip, folder of cases, or CSV; for a bundle of several channels a file a channel, with "
    text += "commas between them, or files NAME_0000, NAME_0001, ... of a folder, or columns image_... of a CSV"
    parser.add_argument("inputs", nargs="+", metavar="IN", help=text)
    add_read_options(parser)


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(text.split(","))
    if unknown := set(formats) - {"nifti", "dicom-seg"}:
        raise argparse.ArgumentTypeError(f"expected nifti, dicom-seg or both; got {', '.join(sorted(unknown))}")
    return formats


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected i/n with i from 1 to n, for example 2/8; got {text!r}")
    return int(match[1]), int(match[2])
