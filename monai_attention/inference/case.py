"""One case of a run: read, predict, write, and the record of how it went."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from monai_attention.bundles import LoadedBundle
from monai_attention.cohort.phases import Phases
from monai_attention.cohort.verdict import judged
from monai_attention.inference.doubts import doubts
from monai_attention.inference.predict import Prediction, predict
from monai_attention.io import write
from monai_attention.io.cases import Case
from monai_attention.io.channels import read_channels
from monai_attention.io.volume import Note, ReadOptions, Volume
from monai_attention.report.manifest import describe_grid
from monai_attention.report.preview import preview, write_preview
from monai_attention.report.tables import measure, write_volumes

OUTPUTS = {
    "labels": "labels.nii.gz",
    "classes": "labels.json",
    "volumes": "volumes.csv",
    "preview": "preview.png",
    "dicom_seg": "labels.dcm",
    "entropy": "entropy.nii.gz",
    "disagreement": "disagreement.nii.gz",
}
"""Files of a case by kind."""


@dataclass(frozen=True)
class CaseSettings:
    """What all cases of a run share.

    Args:
        bundle: its network is on `device`.
        device: where the network runs.
        options: choices about inputs that cannot be read unambiguously.
        formats: see `monai_attention.inference.segment.segment`.
        uncertainty: see `monai_attention.inference.predict.predict`.
        replicas: of the network, see there.
        overrides: of the bundle's settings, for the record.
        network_turn: held by the case whose turn it is on the device; meanwhile others are read and written.
        stopped: set when no more results are wanted.
    """

    bundle: LoadedBundle
    device: torch.device
    options: ReadOptions
    formats: tuple[str, ...] = ("nifti",)
    uncertainty: bool = False
    replicas: Sequence[tuple[nn.Module, torch.device]] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    network_turn: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)


def run_case(case: Case, folder: Path, settings: CaseSettings, *, progress: bool = False) -> dict[str, Any]:
    """Segment one case into its folder; whatever goes wrong with it becomes its verdict.

    Returns:
        The record, see `monai_attention.report.manifest.CaseRecord`.
    """
    bundle, phases = settings.bundle, Phases(settings.device)
    record: dict[str, Any] = {
        "case_id": case.id,
        "device": ", ".join(str(device) for device in (phases.device, *(other for _, other in settings.replicas))),
        "bundle": {"name": bundle.name, "version": bundle.version, "weights_sha256": bundle.weights_sha256},
        "parameters": {"formats": list(settings.formats), "overrides": dict(settings.overrides)},
    }

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="monai-attention-") as scratch:
            return _segment_case(case, folder, settings, phases, Path(scratch), progress)

    return record | judged(work, path=case.path, folder=folder, files=OUTPUTS, phases=phases)


def predict_in_turn(name: str, volume: Volume, settings: CaseSettings, phases: Phases, *, progress: bool) -> Prediction:
    """Predict as soon as it is this case's turn on the device; `name` is for the bar."""
    with settings.network_turn, _window_bar(name, progress, settings.stopped) as on_window:
        if settings.stopped.is_set():
            raise KeyboardInterrupt
        return predict(
            volume,
            settings.bundle,
            phases,
            replicas=settings.replicas,
            uncertainty=settings.uncertainty,
            max_memory=settings.options.max_memory,
            on_window=on_window,
        )


def _segment_case(
    case: Case, folder: Path, settings: CaseSettings, phases: Phases, scratch: Path, progress: bool
) -> dict[str, Any]:
    bundle, options = settings.bundle, settings.options
    with phases.phase("read"):
        volume = read_channels(case.paths, options, bundle.requirements, scratch=scratch)
    prediction = predict_in_turn(case.id, volume, settings, phases, progress=progress)
    with phases.phase("write"):
        return _write_case(case, folder, settings, volume, prediction)


def _write_case(
    case: Case, folder: Path, settings: CaseSettings, volume: Volume, prediction: Prediction
) -> dict[str, Any]:
    """Write the outputs of a case; the part of its record that they fill."""
    bundle, labels = settings.bundle, prediction.labels
    kinds = ["labels", "classes", "volumes", "preview"]
    volumes = measure(labels, volume.affine, bundle.classes)
    volumes_ml = {name: found["ml"] for name, found in volumes.items()}
    notes = [*volume.notes, *doubts(labels, volume.affine, volumes_ml, bundle)]
    write.write_labels(folder / OUTPUTS["labels"], labels, volume.affine)
    write.write_json(folder / OUTPUTS["classes"], {str(label): name for label, name in bundle.classes.items()})
    write_volumes(folder / OUTPUTS["volumes"], [{"case_id": case.id, "volumes": volumes}])
    write_preview(folder / OUTPUTS["preview"], preview(volume.array[0], labels, volume.affine, bundle.classes))
    for kind, found in prediction.maps.items():
        write.write_map(folder / OUTPUTS[kind], found, volume.affine)
        kinds.append(kind)
    if "dicom-seg" in settings.formats:
        if volume.slice_files:
            from monai_attention.io.dicom_seg import Segment, write_segmentation

            segments = [Segment(label, name) for label, name in bundle.classes.items() if label]
            write_segmentation(
                folder / OUTPUTS["dicom_seg"],
                labels,
                volume,
                segments,
                algorithm_name=bundle.name,
                algorithm_version=bundle.version,
            )
            kinds.append("dicom_seg")
        else:
            notes.append(Note("info", "I-NO-SEG", "the input is not DICOM, so there is no DICOM SEG"))
    flags = [note for note in notes if note.kind == "flag"]
    return {
        "verdict": "flagged" if flags else "ok",
        **({"code": flags[0].code, "message": flags[0].message} if flags else {}),
        "notes": [asdict(note) for note in notes],
        "geometry": describe_grid(volume.shape, volume.affine),
        "volumes": volumes,
        "outputs": {kind: OUTPUTS[kind] for kind in kinds},
    }


@contextmanager
def _window_bar(name: str, progress: bool, stopped: threading.Event) -> Iterator[Callable[[int, int | None], None]]:
    """A bar that counts windows of one case, disappears when they are done, and ends the work when it is stopped."""
    with tqdm(desc=name[-30:], unit="window", leave=False, disable=not progress) as bar:

        def advance(done: int, total: int | None) -> None:
            if stopped.is_set():
                raise KeyboardInterrupt
            bar.total = total
            bar.update(done - bar.n)

        yield advance
