"""The verbs of registration: parse, call one public function, print. Heavy imports happen inside the verbs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_attention.cli_options import OK, SOME_REFUSED, AddVerb, add_field_options, add_read_options, read_options
from monai_attention.registration import SIMILARITIES

if TYPE_CHECKING:
    from monai_attention.registration.register import PairResult


def add_verbs(add: AddVerb) -> None:
    """Declare `register`, `warp`, `invert` and `jacobian`."""
    example = "monai-attention register fixed.nii.gz moving.nii.gz -o registered --inverse"
    one = add("register", register, "register scans: affine, then deformable; or a CSV of pairs", example)
    one.add_argument("fixed", metavar="FIXED", help="scan on whose grid the results lie; or a CSV of pairs")
    one.add_argument("moving", metavar="MOVING", nargs="?", help="scan that is warped; none with a CSV")
    one.add_argument("-o", "--output", required=True, help="folder for the results; finished pairs there are kept")
    one.add_argument("--labels", metavar="FILE", help="label map of the moving scan, to be warped")
    one.add_argument("--fixed-labels", metavar="FILE", help="label map of the fixed scan: Dice before and after")
    one.add_argument("--landmarks", metavar="CSV", help="columns fixed_x,fixed_y,fixed_z,moving_x,... in mm, RAS")
    one.add_argument("--similarity", choices=SIMILARITIES, default="auto", help="(default: by how alike they are)")
    one.add_argument("--spacing", type=_spacing, default=2.0, metavar="MM", help="of the field's search (default: 2)")
    one.add_argument("--bundle", help="one that registers: name, folder or zip (default: no network)")
    one.add_argument("--optimize", type=_steps, default=50, metavar="N", help="steps, or none (default: 50)")
    one.add_argument("--inverse", action="store_true", help="also write the inverse field, on the moving grid")
    add_read_options(one, pairs=True)
    one.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    one.add_argument("--overwrite", action="store_true", help="do finished pairs again")
    one.add_argument("--trust-bundle", action="store_true", help="run whatever code the bundle's configuration names")
    one.add_argument("-q", "--quiet", action="store_true", help="no progress bars")

    example = "monai-attention warp moving.nii.gz --field registered/a_to_b/field.nii.gz -o warped.nii.gz"
    one = add("warp", warp, "apply a displacement field to a scan or a label map", example)
    one.add_argument("moving", metavar="MOVING", help="file, DICOM folder or zip")
    one.add_argument("--field", required=True, metavar="FILE", help="as `register`, ITK and ANTs write it")
    one.add_argument("-o", "--output", required=True, metavar="FILE", help=".nii.gz")
    one.add_argument("--mode", choices=("linear", "cubic", "nearest"), default="linear", help="nearest for labels")
    add_read_options(one)

    example = "monai-attention invert field.nii.gz --grid moving.nii.gz -o inverse_field.nii.gz"
    one = add("invert", invert, "invert a displacement field, or say that it has no inverse", example)
    one.add_argument("field", metavar="FIELD", help="as `register`, ITK and ANTs write it")
    one.add_argument("-o", "--output", required=True, metavar="FILE", help=".nii.gz")
    one.add_argument("--grid", metavar="MOVING", help="scan on whose grid the inverse lies (default: the field's)")
    add_read_options(one)

    example = "monai-attention jacobian field.nii.gz -o jacobian.nii.gz"
    one = add("jacobian", jacobian, "write how a displacement field changes volume", example)
    one.add_argument("field", metavar="FIELD", help="as `register`, ITK and ANTs write it")
    one.add_argument("-o", "--output", required=True, metavar="FILE", help=".nii.gz")
    add_field_options(one)


def register(options: argparse.Namespace) -> int:
    """Register pairs and print their verdicts."""
    from monai_attention.registration.register import register as run

    results = run(
        options.fixed,
        options.moving,
        options.output,
        labels=options.labels,
        fixed_labels=options.fixed_labels,
        landmarks=options.landmarks,
        similarity=options.similarity,
        spacing=options.spacing,
        optimize=options.optimize,
        bundle=options.bundle,
        inverse=options.inverse,
        device=options.device,
        options=read_options(options),
        overwrite=options.overwrite,
        trust_bundle=options.trust_bundle,
        progress=not options.quiet,
    )
    for result in results:
        _print_result(result)
    print(f"look at {Path(options.output) / 'report.html'}")
    return SOME_REFUSED if any(result.verdict == "refused" for result in results) else OK


def warp(options: argparse.Namespace) -> int:
    """Apply a field."""
    from monai_attention.registration import apply

    apply.warp(options.moving, options.field, options.output, mode=options.mode, options=read_options(options))
    print(options.output)
    return OK


def invert(options: argparse.Namespace) -> int:
    """Invert a field."""
    from monai_attention.registration import apply

    worst = apply.invert(options.field, options.output, grid=options.grid, options=read_options(options))
    print(f"{options.output}: there and back is off by at most {worst:.3f} mm")
    return OK


def jacobian(options: argparse.Namespace) -> int:
    """Write a Jacobian."""
    from monai_attention.registration import apply

    found = apply.jacobian(options.field, options.output, options=read_options(options))
    print(f"{options.output}: {found['min']:.3f} to {found['max']:.3f}, folds at {found['folds']:.3g} % of voxels")
    return OK


def _print_result(result: PairResult) -> None:
    print(f"{result.verdict:8} {result.case_id}" + (" (finished before)" if result.resumed else ""))
    if result.code:
        print(f"         {result.code} {result.message}" + (f" ({result.remedy})" if result.remedy else ""))
    for name, value in result.figures.items():
        print(f"         {name:28} {_spelled(value)}")


def _spelled(value: Any) -> str:
    return " to ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _spacing(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 20:
        raise argparse.ArgumentTypeError(f"expected 0.1 to 20 mm, got {text!r}")
    return value


def _steps(text: str) -> int:
    if text == "none":
        return 0
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of steps or none, got {text!r}")
    return int(text)
