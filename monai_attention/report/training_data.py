"""One page over the cases of a training set: what is labelled where, how much of it, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from monai_attention.report.page import write_report
from monai_attention.report.preview import preview

WIDEST = 1000
"""Of a picture, in pixels."""


def picture_of(image: np.ndarray, labels: np.ndarray, affine: np.ndarray, classes: Mapping[int, str]) -> bytes:
    """JPEG of three planes through the middle of what is labelled, plain and with the labels.

    Args:
        image: one channel, shape (X, Y, Z).
        labels: uint8, same shape.
        affine: voxel index -> RAS mm.
        classes: label -> name, of those to name in the legend.
    """
    picture = preview(image, labels, affine, classes)
    picture.thumbnail((WIDEST, WIDEST))
    encoded = BytesIO()
    picture.save(encoded, format="JPEG", quality=80)
    return encoded.getvalue()


def write_training_data(path: str | Path, found: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
    """Write the page; it holds its pictures and needs no other file.

    Args:
        path: of the page, .html.
        found: `finetune.preflight.Preflight.to_json()`; nothing else is told of the cases.
        pictures: by case, see `picture_of`; cases may lack one.
    """
    usable = sum(case["verdict"] != "refused" for case in found["cases"])
    classes = [
        (told["label"], name, f"in {told['cases']} of {usable} cases{_volumes(told['ml'])}")
        for name, told in found["classes"].items()
    ]
    summary = {
        "dataset": found["source"],
        "layout": found["layout"],
        "channels": found["channels"],
        "people": f"{found['people']}, as far as the dataset tells",
        **({"splits": found["splits"]} if found["splits"] else {}),
        **{note["code"]: note["message"] for note in found["warnings"]},
    }
    records = [_record(case, pictures.get(case["case_id"], b"")) for case in found["cases"]]
    write_report(path, records, summary, title="Training data", classes=classes)


def _record(case: Mapping[str, Any], picture: bytes) -> dict[str, Any]:
    """A case in the keys of the page."""
    kept = ("case_id", "verdict", "code", "message", "remedy", "notes", "volumes")
    record = {key: case[key] for key in kept if key in case} | {"picture": picture}
    if case["verdict"] == "refused":
        record["path"] = case["path"]
    if case["shape"]:
        record["geometry"] = {key: case[key] for key in ("shape", "spacing_mm", "orientation")}
    facts = {"split": case["split"]} if case["split"] else {}
    for name in ("intensities", "foreground"):
        for number, one in enumerate(case.get(name, ())):
            told = f"{one['low']:.4g} to {one['high']:.4g}, median {one['median']:.4g}"
            facts[f"{name} {number}" if len(case[name]) > 1 else name] = told
    return record | {"facts": facts}


def _volumes(ml: list[float] | None) -> str:
    return "" if ml is None else ", {0:,.1f} to {2:,.1f} mL, median {1:,.1f} mL".format(*ml)
