"""What fine-tuning was good for: the held-out cases, segmented by the new bundle, by its source, and from scratch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai_attention import bundles
from monai_attention.errors import Refusal
from monai_attention.finetune.comparison import comparison
from monai_attention.finetune.evaluate import Way, expect_channels, score_cases, summarised
from monai_attention.finetune.evaluation import Evaluation
from monai_attention.finetune.preflight import Preflight
from monai_attention.io.write import check_writable, write_json

SOURCE = "source as it was"
"""The contender that may fail without harm: its classes or channels may be others."""
CANNOT = re.compile("E-(CLASSES$|CHANNELS$|BUNDLE-|WEIGHTS-)")
"""Codes that say so; what else is refused, a full disk for example, is not the source's fault."""


def judge(
    folder: Path,
    found: Preflight,
    folds: Mapping[str, int],
    contenders: Mapping[str, Mapping[int, Path | str]],
    way: Way,
    *,
    source_sha256: str | None,
) -> dict[str, Any]:
    """Score every held-out case by bundles that did not train on it, and compare.

    Each contender gets a folder of that name in `folder`, see `evaluate.evaluate`; `comparison.json` is beside them.
    Cases that have scores are not scored again.

    Args:
        folder: for the results; made if needed.
        found: the cohort.
        folds: by the name of a case, its fold.
        contenders: by name, for every fold the bundle that is to segment it; the first is compared with the others.
        way: how.
        source_sha256: of the weights that the source had when the training began; other ones are not compared with.

    Returns:
        See `comparison.comparison`.

    Raises:
        Refusal: what evaluating, but for the source, raises.
    """
    evaluations: dict[str, Evaluation] = {}
    lacking: dict[str, str] = {}
    for name, by_fold in contenders.items():
        try:
            if name == SOURCE:
                _expect_unchanged(by_fold.values(), source_sha256)
            evaluations[name] = _evaluated(folder / name.replace(" ", "_"), found, folds, by_fold, way)
        except Refusal as refusal:
            if name != SOURCE or not CANNOT.match(refusal.code):
                raise
            lacking[name] = refusal.message
    told = comparison(evaluations, lacking)
    write_json(folder / "comparison.json", told)
    return told


def _expect_unchanged(places: Iterable[Path | str], sha256: str | None) -> None:
    """Refuse another bundle than the training began with."""
    for place in places:
        if bundles.identity(place)[2] != sha256:
            message, remedy = "its weights are not those that the training began with", "put these back, and --resume"
            raise Refusal("E-WEIGHTS-CHANGED", message, path=Path(place), remedy=remedy)


def _evaluated(
    output: Path, found: Preflight, folds: Mapping[str, int], by_fold: Mapping[int, Path | str], way: Way
) -> Evaluation:
    """All folds as one evaluation."""
    check_writable(output)
    told, wanted = [], []
    for fold, bundle in by_fold.items():
        info = bundles.info(bundle)
        expect_channels(found.data, info)
        cases = [one for one in found.cases if folds.get(one.case.id) == fold]
        told += score_cases(bundle, found, cases, output, way)
        wanted += cases
    return summarised(told, found, wanted, info, way, output)
