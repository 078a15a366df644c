"""What the verbs share: exit codes, and the choices about inputs that refusals name as their remedy."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_attention.io.volume import ReadOptions


OK, SOME_REFUSED, WRONG_ARGUMENTS = 0, 1, 2
"""Exit codes."""

AddVerb = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
"""From name, function, text and example to a parser."""


def add_read_options(parser: argparse.ArgumentParser, *, pairs: bool = False) -> None:
    """Declare the choices of `ReadOptions`; with `pairs`, `--series` may be given for each of the scans."""
    if pairs:
        text = "the DICOM series to take where a folder has several; may be given once for each scan"
        parser.add_argument("--series", metavar="UID", action="append", help=text)
    else:
        parser.add_argument("--series", metavar="UID", help="the DICOM series to take where there are several")
    parser.add_argument("--allow-gaps", action="store_true", help="fill missing DICOM slices, flagged")
    parser.add_argument("--volume", type=int, metavar="k", help="which volume of a 4-D image, counted from 0")
    add_field_options(parser)


def add_field_options(parser: argparse.ArgumentParser) -> None:
    """Declare those choices that a displacement field can need."""
    parser.add_argument("--affine", choices=("sform", "qform"), help="which to believe where a NIfTI has two")
    parser.add_argument("--max-memory", type=_bytes, metavar="SIZE", help="refuse what needs more, for example 6GB")


def read_options(options: argparse.Namespace) -> ReadOptions:
    """What was typed of the options above."""
    from monai_attention.io.volume import ReadOptions

    series = getattr(options, "series", None)
    return ReadOptions(
        series=tuple(series) if isinstance(series, list) else series,
        allow_gaps=getattr(options, "allow_gaps", False),
        affine=options.affine,
        volume=getattr(options, "volume", None),
        max_memory=options.max_memory,
    )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size, for example 6GB; got {text!r}")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2] or " "))
