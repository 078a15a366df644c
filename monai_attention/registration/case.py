"""One pair of a run: read, register, write, and the record of how it went."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from monai_attention.bundles import LoadedRegistration
from monai_attention.cohort.phases import Phases
from monai_attention.cohort.verdict import judged
from monai_attention.errors import Refusal
from monai_attention.io.fields import write_affine, write_field
from monai_attention.io.geometry import spacing
from monai_attention.io.read import read
from monai_attention.io.volume import Note, ReadOptions, Requirements, Volume
from monai_attention.io.write import write_nifti
from monai_attention.registration.affine import SMALLEST_MM
from monai_attention.registration.label_maps import read_label_map, smallest_type
from monai_attention.registration.metrics import mean_dice
from monai_attention.registration.pair import Plan, Registered, register_pair
from monai_attention.registration.pairs import Pair, read_landmarks
from monai_attention.registration.progress import OnStep
from monai_attention.registration.scan import Scan, part_of
from monai_attention.registration.transformation import (
    Transformation,
    displacement,
    inverse,
    jacobian_of,
    percent_folded,
    resample,
    sd_of_log,
    usable,
)
from monai_attention.report.manifest import describe_grid
from monai_attention.report.preview import write_preview
from monai_attention.report.registration import Look, registration_sheet

OUTPUTS = {
    "warped": "warped.nii.gz",
    "field": "field.nii.gz",
    "affine": "affine.mat",
    "affine_text": "affine.tfm",
    "jacobian": "jacobian.nii.gz",
    "inverse": "inverse_field.nii.gz",
    "labels": "warped_labels.nii.gz",
    "preview": "preview.png",
}
"""Files of a pair by kind."""

MOST_FOLDS_UNSEEN = 0.5
"""Percent of voxels; a field that folds at more is flagged."""

LEAST_INFORMATION = 0.15
"""Nats that one scan tells about the other after the affine registration; heads of two people tell 0.5 to 1."""

SIZES = (0.7, 1.45)
"""Of the moving scan against the fixed one, along any axis, that are believed without a look."""


FIELD = {"affine": "affine registration", "network": "network's field", "optimised": "optimised field"}
"""Stages in messages."""


@dataclass(frozen=True)
class PairSettings:
    """What all pairs of a run share.

    Args:
        plan: how they are registered.
        device: where.
        options: choices about inputs that cannot be read unambiguously.
        bundle: whose network the plan has; for what it accepts, and for the record.
        with_inverse: also write the inverse field, on the moving scan's grid.
        stopped: set when no more results are wanted.
    """

    plan: Plan
    device: torch.device
    options: ReadOptions
    bundle: LoadedRegistration | None = None
    with_inverse: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)


def run_pair(pair: Pair, folder: Path, settings: PairSettings, *, progress: bool = False) -> dict[str, Any]:
    """Register one pair into its folder; whatever goes wrong with it becomes its verdict.

    Returns:
        The record, see `monai_attention.report.manifest.CaseRecord`.
    """
    phases = Phases(settings.device)
    plan = settings.plan
    record: dict[str, Any] = {
        "case_id": pair.id,
        "device": str(settings.device),
        "parameters": {"similarity": plan.similarity, "spacing_mm": plan.spacing, "steps": plan.steps},
    }
    if (bundle := settings.bundle) is not None:
        record["bundle"] = {"name": bundle.name, "version": bundle.version, "weights_sha256": bundle.weights_sha256}

    def work() -> dict[str, Any]:
        return _register(pair, folder, settings, phases, progress)

    return record | judged(work, path=pair.moving, folder=folder, files=OUTPUTS, phases=phases)


def _register(pair: Pair, folder: Path, settings: PairSettings, phases: Phases, progress: bool) -> dict[str, Any]:
    with phases.phase("read"):
        accepted = None if settings.bundle is None else settings.bundle.requirements
        fixed, moving = (_read(path, settings.options, accepted) for path in (pair.fixed, pair.moving))
        counted = pair.fixed_labels is not None
        labels, fixed_labels = (
            None if path is None else read_label_map(path, settings.options, counted=counted)
            for path in (pair.labels, pair.fixed_labels)
        )
        landmarks = None if pair.landmarks is None else read_landmarks(pair.landmarks)
    _expect_series(pair, (fixed, moving), settings.options)
    for path, volume in ((pair.fixed, fixed), (pair.moving, moving)):
        extent = spacing(volume.affine) * volume.shape
        if extent.max() < SMALLEST_MM or min(volume.shape) < 3:
            message = f"expected at least 3 voxels along every axis and {SMALLEST_MM:g} mm along one"
            raise Refusal("E-TOO-SMALL", message, path=path, remedy="give the whole scan")
    still, moved = (scan_of(volume, settings.device) for volume in (fixed, moving))
    with _step_bar(pair.id, progress, settings.stopped) as on_step:
        found = register_pair(still, moved, settings.plan, phases, on_step=on_step)
    named = {"fixed": fixed, "moving": moving, "labels": labels, "fixed labels": fixed_labels}
    notes = [
        replace(note, message=f"{name}: {note.message}")
        for name, volume in named.items()
        if volume is not None
        for note in volume.notes
    ]
    with phases.phase("write"):
        result = _Result(folder, fixed, moving, still, moved, found, notes)
        result.write_field_and_affine()
        if settings.with_inverse:
            result.write_inverse()
        if labels is not None:
            result.write_labels(labels, fixed_labels)
        if landmarks is not None:
            result.measure_landmarks(*landmarks)
        result.write_picture()
    return result.record()


def _expect_series(pair: Pair, volumes: Sequence[Volume], options: ReadOptions) -> None:
    """Refuse DICOM scans of which none is of a series that was asked for: the UID may be mistyped."""
    found = {volume.series_uid for volume in volumes} - {None}
    if options.series and found and found.isdisjoint(options.series):
        message = f"expected a scan of series {' or '.join(options.series)}, got {' and '.join(map(str, found))}"
        remedy = "pass --series with a UID that the fixed or the moving folder holds"
        raise Refusal("E-SERIES", message, path=pair.moving, remedy=remedy)


def _read(path: Path, options: ReadOptions, requirements: Requirements | None) -> Volume:
    with tempfile.TemporaryDirectory(prefix="monai-attention-") as scratch:
        return read(path, options, requirements, scratch=Path(scratch))


def scan_of(volume: Volume, device: torch.device) -> Scan:
    """A volume, of one channel as the gate gives it, on a device."""
    return Scan(torch.from_numpy(volume.array[:1])[None].to(device), torch.from_numpy(volume.affine))


class _Result:
    """Writes what came of a pair, and gathers its figures and doubts."""

    def __init__(
        self,
        folder: Path,
        fixed: Volume,
        moving: Volume,
        still: Scan,
        moved: Scan,
        found: Registered,
        notes: Sequence[Note],
    ) -> None:
        self.folder = folder
        self.fixed = fixed
        self.moving = moving
        self.scans = still, moved
        self.found = found
        self.outputs: dict[str, str] = {}
        self.figures: dict[str, Any] = {
            "similarity": found.similarity,
            "information, nats": round(found.affine.information, 3),
        }
        for name, stages in (("unlike", found.figures), ("recognised", found.overlaps)):
            for stage, value in stages.items():
                self.figures[f"{name}, {stage}"] = "n/a" if math.isnan(value) else round(value, 5)
        self.notes = [*notes, *_doubts(found)]

    def write_field_and_affine(self) -> None:
        """The warped scan, the field, its Jacobian, and the affine part."""
        still, moved = self.scans
        transformation = self.found.transformation
        self.write("warped", resample(moved, transformation, still)[0, 0].cpu().numpy())
        total = displacement(transformation, still)
        self.write_displacement("field", total, self.fixed.affine, "F-NO-FIELD")
        for kind in ("affine", "affine_text"):
            write_affine(self.folder / OUTPUTS[kind], transformation.matrix.numpy())
            self.outputs[kind] = OUTPUTS[kind]
        self.jacobian = jacobian_of(total, self.fixed.affine)
        self.write("jacobian", self.jacobian)
        folds = percent_folded(self.jacobian)
        self.figures |= {
            "folds, %": round(folds, 4),
            "SD of log Jacobian": round(sd_of_log(self.jacobian), 4),
            "Jacobian from, to": [round(float(x), 3) for x in (self.jacobian.min(), self.jacobian.max())],
        }
        if folds > MOST_FOLDS_UNSEEN:
            self.notes.append(Note("flag", "F-FOLDS", f"the field folds at {folds:.2g} % of voxels"))

    def write_inverse(self) -> None:
        """On the grid of the moving scan."""
        back = inverse(self.found.transformation, start=self.found.start)
        self.figures["inverse off by at most, mm"] = round(back.residual_mm, 3)
        if not usable(back, float(self.scans[1].spacing.max())):
            message = (
                f"the field has no inverse, none is written: {back.residual_mm:.1f} mm off, {back.folds:.2g} % folds"
            )
            self.notes.append(Note("flag", "F-NO-INVERSE", message))
            return
        mm = displacement(back.transformation, self.scans[1])
        self.write_displacement("inverse", mm, self.moving.affine, "F-NO-INVERSE")

    def write_labels(self, labels: Volume, fixed_labels: Volume | None) -> None:
        """Labels of the moving scan on the fixed grid, and how well they lie on the fixed one's."""
        still, device = self.scans[0], self.scans[0].values.device
        source = scan_of(labels, device)
        warped = resample(source, self.found.transformation, still, mode="nearest", outside=0.0)
        self.write("labels", smallest_type(warped[0, 0].cpu().numpy()))
        if fixed_labels is None:
            return
        target = scan_of(fixed_labels, device)
        for stage, mapping in self.stages():
            found = resample(source, mapping, target, mode="nearest", outside=0.0)
            dice = float(mean_dice(found, target.values))
            self.figures[f"Dice, {stage}"] = "n/a" if math.isnan(dice) else round(dice, 4)

    def measure_landmarks(self, fixed: np.ndarray, moving: np.ndarray) -> None:
        """How far corresponding points are apart, in mm, on average."""
        points = torch.from_numpy(fixed.T[None, :, :, None, None]).to(self.scans[0].values)
        for stage, mapping in self.stages():
            far = np.linalg.norm(mapping(points)[0, :, :, 0, 0].cpu().numpy().T - moving, axis=1)
            self.figures[f"landmarks, {stage}, mm"] = round(float(far.mean()), 3)

    def stages(self) -> Iterator[tuple[str, Transformation]]:
        """What is compared: the affine part alone, and all of it."""
        yield "affine", Transformation(self.found.transformation.matrix)
        yield "registered", self.found.transformation

    def write_picture(self) -> None:
        """See `report.registration`."""
        still, moved = self.scans
        whole = self.found.transformation
        deformation = replace(whole, matrix=torch.eye(4, dtype=torch.float64))

        def under(mapping: Transformation) -> Look:
            return lambda box: resample(moved, mapping, part_of(still, box))[0, 0].cpu().numpy()

        picture = registration_sheet(
            self.fixed.array[0],
            under(Transformation(whole.matrix)),
            under(whole),
            lambda box: displacement(deformation, part_of(still, box)),
            self.jacobian,
            self.fixed.affine,
            {name: str(value) for name, value in self.figures.items()},
        )
        write_preview(self.folder / OUTPUTS["preview"], picture)
        self.outputs["preview"] = OUTPUTS["preview"]

    def write_displacement(self, kind: str, mm: np.ndarray, affine: np.ndarray, code: str) -> None:
        """A field, or a flag where its grid is one that no file can hold; the rest of the result stays."""
        try:
            write_field(self.folder / OUTPUTS[kind], mm, affine)
        except Refusal as refusal:
            if refusal.code != "E-TRANSFORM":
                raise
            self.notes.append(Note("flag", code, f"{OUTPUTS[kind]} is not written: {refusal.message}"))
        else:
            self.outputs[kind] = OUTPUTS[kind]

    def write(self, kind: str, array: np.ndarray) -> None:
        """An array on the fixed grid."""
        write_nifti(self.folder / OUTPUTS[kind], array, self.fixed.affine)
        self.outputs[kind] = OUTPUTS[kind]

    def record(self) -> dict[str, Any]:
        """The part of the record that this fills."""
        flags = [note for note in self.notes if note.kind == "flag"]
        return {
            "verdict": "flagged" if flags else "ok",
            **({"code": flags[0].code, "message": flags[0].message} if flags else {}),
            "notes": [asdict(note) for note in self.notes],
            "geometry": describe_grid(self.fixed.shape, self.fixed.affine),
            "figures": self.figures,
            "outputs": self.outputs,
        }


def _doubts(found: Registered) -> list[Note]:
    """Flags for a result that somebody should look at."""
    notes = []
    sizes = torch.linalg.svdvals(found.transformation.matrix[:3, :3])
    if not SIZES[0] <= float(sizes.min()) <= float(sizes.max()) <= SIZES[1]:
        low, high = float(sizes.min()), float(sizes.max())
        message = f"the affine registration scales by {low:.2g} to {high:.2g}: is it the same anatomy?"
        notes.append(Note("flag", "F-SCALE", message))
    if found.affine.information < LEAST_INFORMATION:
        message = "the two scans tell next to nothing about each other: do they show the same anatomy?"
        notes.append(Note("flag", "F-UNLIKE", message))
    if found.affine.overlap < 0.5:
        message = f"only {found.affine.overlap:.0%} of the smaller field of view is seen in both scans"
        notes.append(Note("flag", "F-OVERLAP", message))
    if found.affine.mirrored:
        notes.append(
            Note("flag", "F-MIRRORED", "the moving scan fits better when it is mirrored: check left and right")
        )
    for stage in found.dropped:
        compared = ("affine",) if stage == "network" else ("affine", found.kept)
        if math.isnan(found.figures[stage]):
            wrong = "holds NaN or infinity"
        elif all(found.figures[stage] <= found.figures[before] for before in compared):
            wrong = "parts structures that are recognised in both"
        else:
            wrong = "did not bring the images together"
        message = f"the {FIELD[stage]} {wrong} and was dropped; the result is the {FIELD[found.kept]}"
        notes.append(Note("flag", "F-NOT-IMPROVED", message))
    if found.figures[found.kept] > found.figures["affine"]:
        likeness, together = (
            f"{one['affine']:.4f} to {one[found.kept]:.4f}" for one in (found.figures, found.overlaps)
        )
        message = (
            f"the deformation makes the images less alike ({likeness}), but brings structures together ({together})"
        )
        notes.append(Note("info", "I-LESS-ALIKE", message))
    return notes


@contextmanager
def _step_bar(name: str, progress: bool, stopped: threading.Event) -> Iterator[OnStep]:
    """A bar for each stage that disappears when it is done, and ends the work when it is stopped."""
    with tqdm(unit="step", leave=False, disable=not progress) as bar:
        stage = ""

        def advance(of: str, total: int) -> None:
            nonlocal stage
            if stopped.is_set():
                raise KeyboardInterrupt
            if of != stage:
                stage = of
                bar.reset(total)
                bar.set_description(f"{name[-30:]}, {of}")
            bar.update()

        yield advance
