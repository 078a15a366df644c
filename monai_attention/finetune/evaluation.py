"""What an evaluation found over all cases: means with intervals, the worst cases, one evaluation beside another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from monai_attention.columns import in_columns
from monai_attention.finetune.intervals import Difference, Estimate, differences, estimates
from monai_attention.finetune.labelled import listed
from monai_attention.report.evaluation import METRICS, spelled

WORST = 5
"""Cases that are named, and shown in large pictures."""

NO_SUCH_CLASS = "n/a: the bundle has no such class"


@dataclass(frozen=True)
class ScoredCase:
    """The scores of a case.

    Args:
        case_id: its name in the dataset.
        group: the same for all cases of one person; never written out.
        scores: by name of the class, the fields of `scores.Scores`; without those that the bundle lacks.
    """

    case_id: str
    group: str
    scores: Mapping[str, Mapping[str, Any]]

    @property
    def dice(self) -> float | None:
        """Mean over the classes that the truth or the prediction has; None if there are none."""
        found = [one["dice"] for one in self.scores.values() if one["dice"] is not None]
        return float(np.mean(found)) if found else None


@dataclass(frozen=True)
class Evaluation:
    """How well a bundle segments a dataset.

    Args:
        bundle: its name and version.
        source: of the dataset.
        split: that was evaluated; None: all of it.
        classes: of the dataset, value -> name.
        meant_by: by name of the class, the bundle's classes that mean it; none where the bundle has no such class.
        cases: that have scores, in the dataset's order.
        refused: case, code, message and remedy of those that have none.
        remarks: code and message of what is to be said of the dataset as a whole.
    """

    bundle: str
    source: str
    split: str | None
    classes: Mapping[int, str]
    meant_by: Mapping[str, tuple[str, ...]]
    cases: tuple[ScoredCase, ...]
    refused: tuple[Mapping[str, str], ...]
    remarks: tuple[Mapping[str, str], ...] = ()

    @property
    def worst(self) -> list[ScoredCase]:
        """The cases from the worst to the best by Dice; those that have none are last."""
        return sorted(self.cases, key=lambda one: (2.0 if one.dice is None else one.dice, one.case_id))

    def values(self, metric: str) -> np.ndarray:
        """Shape (cases, classes), NaN where it is n/a."""
        names = list(self.classes.values())
        rows = [[one.scores.get(name, {}).get(metric) for name in names] for one in self.cases]
        return np.array(rows, dtype=float).reshape(len(rows), len(names))

    def estimates(self, metric: str) -> tuple[dict[str, Estimate], Estimate]:
        """By class, and of the mean over the classes; see `intervals.estimates`."""
        single, overall = estimates(self.values(metric), [one.group for one in self.cases])
        return dict(zip(self.classes.values(), single, strict=True)), overall

    def to_json(self) -> dict[str, Any]:
        """All of it but groups and the scores of single cases."""
        found = {metric: self.estimates(metric) for metric in METRICS}
        classes = {}
        for value, name in self.classes.items():
            where = Counter(one.scores[name]["where"] for one in self.cases if name in one.scores)
            classes[name] = {
                "label": value,
                "bundle": list(self.meant_by[name]) or NO_SUCH_CLASS,
                **{metric: asdict(single[name]) for metric, (single, _) in found.items()},
                "cases": {place or "in both": where[place] for place in sorted(where)},
            }
        return {
            "bundle": self.bundle,
            "dataset": self.source,
            "split": self.split,
            "scored": len(self.cases),
            "people": len({one.group for one in self.cases}),
            "classes": classes,
            "mean_over_classes": {metric: asdict(overall) for metric, (_, overall) in found.items()},
            "worst": [{"case_id": one.case_id, "dice": one.dice} for one in self.worst[:WORST]],
            "refused": [dict(one) for one in self.refused],
            "remarks": [dict(one) for one in self.remarks],
        }


def compare(before: Evaluation, after: Evaluation, metric: str = "dice") -> tuple[dict[str, Difference], Difference]:
    """Paired differences on the cases and classes of both evaluations, `after` less `before`.

    Args:
        before: of one bundle.
        after: of another, on the same dataset.
        metric: `dice`, `surface_dice` or `hd95_mm`.

    Returns:
        By class, and of the mean over the classes; see `intervals.differences`. A class that either bundle lacks has
        none.

    Raises:
        ValueError: the evaluations share no case, or number classes otherwise.
    """
    if dict(before.classes) != dict(after.classes):
        message = f"{listed(before.classes.values())} and {listed(after.classes.values())}"
        raise ValueError(f"expected two evaluations of the same classes, got {message}")
    earlier = {one.case_id: place for place, one in enumerate(before.cases)}
    later = [place for place, one in enumerate(after.cases) if one.case_id in earlier]
    if not later:
        raise ValueError("expected two evaluations of the same cases, got none that is in both")
    rows = [earlier[after.cases[place].case_id] for place in later]
    lacking = [not (before.meant_by[name] and after.meant_by[name]) for name in after.classes.values()]
    earlier_values, later_values = before.values(metric)[rows], after.values(metric)[later]
    earlier_values[:, lacking] = later_values[:, lacking] = np.nan
    people = [after.cases[place].group for place in later]
    single, overall = differences(earlier_values, later_values, people)
    return dict(zip(after.classes.values(), single, strict=True)), overall


def format_evaluation(found: Mapping[str, Any]) -> str:
    """A line a class, then the worst cases and those that were refused.

    Args:
        found: `Evaluation.to_json()`.
    """
    rows = [("class", "cases", *METRICS.values())]
    for name, one in (*found["classes"].items(), ("mean over classes", found["mean_over_classes"])):
        lacking = one.get("bundle") == NO_SUCH_CLASS
        cells = [NO_SUCH_CLASS] if lacking else [spelled(one[metric]) for metric in METRICS]
        rows.append((name, str(one["dice"]["cases"]), *cells, *[""] * (3 - len(cells))))
    lines = in_columns(rows)
    people = f"{found['people']} people as far as the dataset tells"
    lines.append(f"{found['scored']} cases of {people}; in brackets 95 % intervals of the mean, by person")
    if worst := [f"{one['case_id']} {one['dice']:.3f}" for one in found["worst"] if one["dice"] is not None]:
        lines.append(f"worst by Dice: {', '.join(worst)}")
    for one in found["refused"]:
        lines.append(f"refused  {one['case_id']}: {one['code']} {one['message']}")
        lines += [f"         -> {one['remedy']}"] if one["remedy"] else []
    return "\n".join([*lines, *(f"{one['code']} {one['message']}" for one in found["remarks"])])
