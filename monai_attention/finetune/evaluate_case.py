"""One labelled case of an evaluation: read, predict, score, draw, and the record of how it went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_attention.cohort.phases import Phases
from monai_attention.cohort.verdict import judged
from monai_attention.finetune.labelled import LabelledCase
from monai_attention.finetune.load import load
from monai_attention.finetune.scores import Scores, scores, tolerance_of
from monai_attention.inference.case import CaseSettings, predict_in_turn
from monai_attention.io.content import examine, unstated_orientation
from monai_attention.io.volume import Requirements, Volume
from monai_attention.report.disagreement import disagreement
from monai_attention.report.manifest import describe_grid
from monai_attention.report.preview import write_preview

OUTPUTS = {"preview": "preview.png"}


@dataclass(frozen=True)
class Task:
    """What all cases of an evaluation share.

    Args:
        channels: of the images.
        classes: of the dataset, value -> name.
        labels: by value, the bundle's labels that mean it; see `correspondence.corresponding`.
    """

    channels: int
    classes: Mapping[int, str]
    labels: Mapping[int, tuple[int, ...]]


def run_case(
    case: LabelledCase, folder: Path, settings: CaseSettings, task: Task, *, progress: bool = False
) -> dict[str, Any]:
    """Score one case; whatever goes wrong with it becomes its verdict.

    Returns:
        The record, see `monai_attention.report.manifest.CaseRecord`.
    """
    bundle, phases = settings.bundle, Phases(settings.device)
    record = {
        "case_id": case.id,
        "device": str(phases.device),
        "bundle": {"name": bundle.name, "version": bundle.version, "weights_sha256": bundle.weights_sha256},
    }

    def work() -> dict[str, Any]:
        with phases.phase("read"):
            loaded = load(case, task.channels, classes=task.classes, options=settings.options)
            image = admitted(loaded.image, bundle.requirements)
        found = predict_in_turn(case.id, image, settings, phases, progress=progress).labels
        return _scored(image, loaded.labels, found, folder, task, phases)

    return record | judged(work, path=case.images[0], folder=folder, files=OUTPUTS, phases=phases)


def admitted(image: Volume, requirements: Requirements) -> Volume:
    """An image, of which was asked only what holds for any, through a bundle's own gate, with what was noticed there.

    Raises:
        Refusal: E-NO-ORIENTATION and those of `io.content.examine`.
    """
    if any(note.code == "F-NO-ORIENTATION" for note in image.notes):
        unstated_orientation(image.source, requirements)
    examined = examine(replace(image, notes=()), requirements)
    return replace(examined, notes=(*image.notes, *(note for note in examined.notes if note not in image.notes)))


def renumbered(found: np.ndarray, labels: Mapping[int, tuple[int, ...]]) -> np.ndarray:
    """A bundle's labels as the dataset's values; what means none of these becomes 0.

    Args:
        found: uint8, any shape.
        labels: by value of the dataset, the bundle's labels.
    """
    table = np.zeros(256, np.uint8)
    for value, meaning in labels.items():
        table[list(meaning)] = value
    return table[found]


def _scored(
    image: Volume, truth: np.ndarray, found: np.ndarray, folder: Path, task: Task, phases: Phases
) -> dict[str, Any]:
    """Score, draw and write; the part of the record that this fills."""
    known = {value: name for value, name in task.classes.items() if task.labels[value]}
    with phases.phase("score"):
        found = renumbered(found, task.labels)
        truth = np.where(np.isin(truth, list(known)), truth, np.uint8(0))
        tolerance_mm = tolerance_of(image.affine)
        by_value = scores(truth, found, image.affine, known, tolerance_mm=tolerance_mm)
    with phases.phase("write"):
        legend = {value: f"{_told(by_value[value])} {name}" for value, name in known.items()}
        picture = disagreement(image.array[0], truth, found, image.affine, legend)
        write_preview(folder / OUTPUTS["preview"], picture)
    flags = [note for note in image.notes if note.kind == "flag"]
    return {
        "verdict": "flagged" if flags else "ok",
        **({"code": flags[0].code, "message": flags[0].message} if flags else {}),
        "notes": [asdict(note) for note in image.notes],
        "geometry": describe_grid(image.shape, image.affine),
        "scores": {name: {"label": value, **asdict(by_value[value])} for value, name in known.items()},
        "parameters": {"tolerance_mm": round(tolerance_mm, 6)},
        "outputs": dict(OUTPUTS),
    }


def _told(one: Scores) -> str:
    return "n/a" if one.dice is None else f"{one.dice:.2f}"
