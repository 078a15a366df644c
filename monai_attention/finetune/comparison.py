"""Several bundles on the same cases, side by side: means, and paired differences to the first of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from monai_attention.finetune.evaluation import NO_SUCH_CLASS, Evaluation, compare
from monai_attention.report.evaluation import METRICS, spelled

MEAN = "mean over classes"


def comparison(evaluations: Mapping[str, Evaluation], lacking: Mapping[str, str]) -> dict[str, Any]:
    """What is to be told of them, as plain strings, numbers, lists and dictionaries.

    Args:
        evaluations: by what the contender is called; the others are compared with the first.
        lacking: contenders that could not be evaluated, and why.

    Returns:
        `contenders` (see `Evaluation.to_json`), `differences` (by contender, metric and class; the first less that
        one) and `lacking`.
    """
    names = list(evaluations)
    first = evaluations[names[0]]
    kept = ("bundle", "scored", "people", "classes", "mean_over_classes", "worst")
    told: dict[str, Any] = {"contenders": {}, "differences": {}, "lacking": dict(lacking)}
    for name, one in evaluations.items():
        whole = one.to_json()
        refused = sorted({case["code"] for case in whole["refused"]})
        told["contenders"][name] = {key: whole[key] for key in kept} | {
            "refused": {code: sum(case["code"] == code for case in whole["refused"]) for code in refused}
        }
    for name in names[1:]:
        if {one.case_id for one in first.cases} & {one.case_id for one in evaluations[name].cases}:
            told["differences"][name] = {metric: _paired(evaluations[name], first, metric) for metric in METRICS}
        else:
            told["lacking"][name] = f"no case has scores of both: {_reasons(told['contenders'].pop(name))}"
    return told


def table(told: Mapping[str, Any], metric: str = "dice") -> list[tuple[str, ...]]:
    """Heading and rows: a class each, then their mean; by contender its mean, then the differences.

    Where a contender has numbers for some classes only, the mean says of how many.

    Args:
        told: see `comparison`.
        metric: one of `METRICS`.
    """
    contenders, differences = told["contenders"], told["differences"]
    names = list(contenders)
    rows = [("class", *names, *(f"{names[0]} less {name}" for name in differences))]
    classes = contenders[names[0]]["classes"]
    for one in (*classes, MEAN):
        means = [_cell(contenders[name], one, metric) for name in names]
        rows.append((one, *means, *(_change(differences[name][metric][one]) for name in differences)))
    return rows


def refusals(told: Mapping[str, Any]) -> list[str]:
    """Of which contenders how many cases have no scores, and why; a line each."""
    return [f"{name}: {_reasons(one)}" for name, one in told["contenders"].items() if one["refused"]]


def _paired(before: Evaluation, after: Evaluation, metric: str) -> dict[str, Any]:
    single, overall = compare(before, after, metric)
    return {name: asdict(one) for name, one in (*single.items(), (MEAN, overall))}


def _cell(contender: Mapping[str, Any], name: str, metric: str) -> str:
    classes = contender["classes"]
    if name != MEAN:
        return "no such class" if classes[name]["bundle"] == NO_SUCH_CLASS else _number(classes[name][metric])
    there = sum(one[metric]["mean"] is not None for one in classes.values())
    of = "" if there == len(classes) else f", of {there}"
    return f"{_number(contender['mean_over_classes'][metric])}{of}"


def _number(one: Mapping[str, Any]) -> str:
    """A mean, with its interval if it has one."""
    return spelled(one) if one["mean"] is None or one["interval"] is not None else f"{one['mean']:.3f}"


def _change(one: Mapping[str, Any]) -> str:
    """A difference, and in how many cases it is up and down."""
    if one["estimate"]["mean"] is None:
        return "n/a"
    counts = f"higher in {one['higher']}, lower in {one['lower']}"
    interval = one["estimate"]["interval"]
    within = "" if interval is None else " ({:+.3f} to {:+.3f})".format(*interval)
    return f"{one['estimate']['mean']:+.3f}{within}; {counts}"


def _reasons(contender: Mapping[str, Any]) -> str:
    refused = contender["refused"]
    return ", ".join(f"{count} refused, {code}" for code, count in refused.items()) or "no case was scored"
