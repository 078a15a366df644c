"""What is written of an evaluation: a table of scores, and a page with the worst cases first."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_attention.io.write import write_text
from monai_attention.report.page import write_report

METRICS = {"dice": "Dice", "surface_dice": "surface Dice", "hd95_mm": "HD95, mm"}
COLUMNS = ("case_id", "class", "label", *METRICS, "tolerance_mm", "truth_ml", "found_ml", "remark")


def spelled(one: Mapping[str, Any]) -> str:
    """A mean with its interval, the fields of `finetune.intervals.Estimate`, as a text."""
    if one["mean"] is None:
        return "n/a"
    interval = "n/a" if one["interval"] is None else "{:.3f} to {:.3f}".format(*one["interval"])
    return f"{one['mean']:.3f} ({interval})"


def write_scores(path: str | Path, records: Sequence[Mapping[str, Any]], classes: Mapping[int, str]) -> None:
    """Write `scores.csv`: a row a case and class; what has no number says n/a, and why.

    Args:
        path: of the table.
        records: see `report.manifest.CaseRecord`; refused cases have rows as well.
        classes: of the dataset, value -> name.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        for value, name in classes.items():
            one = record.get("scores", {}).get(name, {})
            refused = record["verdict"] == "refused"
            remark = f"refused: {record['code']}" if refused else one.get("where", "the bundle has no such class")
            numbers = [one.get(key) for key in METRICS]
            numbers += [record.get("parameters", {}).get("tolerance_mm"), one.get("truth_ml"), one.get("found_ml")]
            cells = ["n/a" if number is None else f"{number:.6g}" for number in numbers]
            writer.writerow([record["case_id"], name, value, *cells, remark])
    write_text(path, table.getvalue())


def write_evaluation(
    path: str | Path, found: Mapping[str, Any], records: Sequence[Mapping[str, Any]], *, large: int = 5
) -> None:
    """Write the page.

    Args:
        path: of the page, in the folder that holds the folder of every case.
        found: `finetune.evaluation.Evaluation.to_json()`.
        records: see `report.manifest.CaseRecord`, in the order to show them.
        large: how many of the first have large pictures.
    """
    rows: list[list[Any]] = [[one["label"], name, *_cells(one)] for name, one in found["classes"].items()]
    if rows:
        rows.append([None, "mean over classes", *_cells(found["mean_over_classes"])])
    summary = {
        "bundle": found["bundle"],
        "dataset": found["dataset"],
        **({"split": found["split"]} if found["split"] else {}),
        "people": f"{found['people']}, as far as the dataset tells",
        "intervals": "95 %, of the mean, by drawing people again; n/a with fewer than three",
        **{note["code"]: note["message"] for note in found["remarks"]},
    }
    shown = [{**record, "large": place < large} for place, record in enumerate(records)]
    titles = (*METRICS.values(), "cases")
    write_report(path, shown, summary, title="Evaluation", classes=rows, columns=titles, in_order=True)


def _cells(one: Mapping[str, Any]) -> list[str]:
    if isinstance(one.get("bundle"), str):
        return [one["bundle"]]
    where = one.get("cases", {})
    places = [f"{count} {place}" for place, count in where.items()] or [str(one["dice"]["cases"])]
    return [*(spelled(one[key]) for key in METRICS), ", ".join(places)]
