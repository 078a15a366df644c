"""Register one pair or a cohort: scans in, a field that other programs apply, pictures and figures out."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from monai_attention import __version__, bundles
from monai_attention.bundles import LoadedRegistration
from monai_attention.cohort import ledger
from monai_attention.cohort.outcome import Outcome, outcome
from monai_attention.cohort.run import Cohort, RunCase
from monai_attention.io.volume import ReadOptions
from monai_attention.io.write import check_writable
from monai_attention.registration import SIMILARITIES
from monai_attention.registration.pairs import Pair, find_pairs
from monai_attention.report.page import write_report


@dataclass(frozen=True)
class PairResult(Outcome):
    """What became of one pair; see `Outcome`, whose files by kind are those of `registration.case.OUTPUTS`.

    Args:
        figures: how good it is: similarity, folds, Dice, landmarks.
    """

    figures: Mapping[str, Any] = field(default_factory=dict)


def register(
    fixed: str | Path,
    moving: str | Path | None = None,
    output: str | Path = "registered",
    *,
    labels: str | Path | None = None,
    fixed_labels: str | Path | None = None,
    landmarks: str | Path | None = None,
    similarity: str = "auto",
    spacing: float = 2.0,
    optimize: int = 50,
    bundle: str | Path | None = None,
    inverse: bool = False,
    device: str | None = None,
    options: ReadOptions | None = None,
    overwrite: bool = False,
    trust_bundle: bool = False,
    progress: bool = False,
) -> list[PairResult]:
    """Register scans of any grids, formats and contrasts.

    Each pair gets a folder in `output` with `warped.nii.gz` (the moving scan, resampled once, on the fixed grid),
    `field.nii.gz` (the whole transformation as ITK, ANTs and Slicer apply it), `affine.mat` and `affine.tfm` (its
    affine part), `jacobian.nii.gz`, `preview.png` and `run.json`; over all pairs there is `report.html`. Finished pairs
    are kept.

    Args:
        fixed: file or DICOM folder; or a CSV of pairs, see `monai_attention.registration.pairs.find_pairs`.
        moving: file or DICOM folder; None with a CSV.
        output: folder, made if needed.
        labels: label map of the moving scan, written as `warped_labels.nii.gz`.
        fixed_labels: label map of the fixed scan; then figures have the Dice before and after.
        landmarks: CSV of corresponding points, see `monai_attention.registration.pairs.read_landmarks`.
        similarity: `lncc` (scans of one kind), `mi` or `mind` (of different kinds), or `auto`.
        spacing: mm of the grid that the field is sought on; finer is slower and more detailed.
        optimize: steps on that grid; 0: none, the affine registration or the network has the last word.
        bundle: name of a packaged bundle that registers, or path of a folder or zip; its network's field is what the
            optimisation begins from, unless it is dropped (`pair.register_pair`). None: no network.
        inverse: also write `inverse_field.nii.gz`, on the moving grid.
        device: torch device; None takes CUDA if there is one, else the CPU.
        options: choices about inputs that cannot be read unambiguously; they hold for all scans of a pair that need
            them, `series` for those that have it.
        overwrite: do finished pairs again.
        trust_bundle: run the bundle's configuration whatever code it names.
        progress: show bars on standard error.

    Returns:
        One result a pair.

    Raises:
        Refusal: the pairs cannot be listed, the output cannot be written, the bundle cannot be loaded, or there is no
            such device.
    """
    options = options or ReadOptions()
    if isinstance(options.series, str):
        options = replace(options, series=(options.series,))
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}; got {similarity!r}")
    if not 0.1 <= spacing <= 20:
        raise ValueError(f"spacing must be from 0.1 to 20 mm; got {spacing}")
    output = Path(output).absolute()
    pairs = find_pairs(fixed, moving, labels=labels, fixed_labels=fixed_labels, landmarks=landmarks)
    check_writable(output)
    choices = {"similarity": similarity, "spacing": spacing, "steps": optimize}
    read_as = {key: value for key, value in asdict(options).items() if key != "max_memory"}
    identity = None if bundle is None else bundles.identity(bundle)
    parameters = {"program": __version__, "options": read_as, "inverse": inverse, "bundle": identity, **choices}
    fingerprints = {pair.id: _fingerprint(pair, parameters) for pair in pairs}
    model = None if bundle is None else functools.partial(bundles.load_registration, bundle, trust=trust_bundle)
    prepare = functools.partial(_prepared, choices, model, device, options, inverse, progress)
    cohort = Cohort(prepare, 1, progress, overwrite)
    records = cohort.work_off(pairs, output, fingerprints)
    ordered = [records[pair.id] for pair in pairs]
    seconds = sum(sum(record.get("seconds", {}).values()) for record in ordered)
    summary = {"similarity": similarity, "field sought at": f"{spacing:g} mm", "seconds in all": round(seconds, 1)}
    if identity is not None:
        summary = {"bundle": f"{identity[0]} {identity[1]}", **summary}
    write_report(output / "report.html", ordered, summary, title="Registration report")
    return [_result(records[pair.id], output, pair.id in cohort.done) for pair in pairs]


def _prepared(
    choices: Mapping[str, Any],
    load: Callable[[], LoadedRegistration] | None,
    device: str | None,
    options: ReadOptions,
    inverse: bool,
    progress: bool,
    stopped: threading.Event,
) -> RunCase:
    """The function that registers a pair; imports torch, which takes seconds."""
    from monai_attention.cohort.device import device_of
    from monai_attention.registration.case import PairSettings, run_pair
    from monai_attention.registration.network import network_of, recognise_of
    from monai_attention.registration.pair import Plan

    place = device_of(device, float64=True)
    bundle = None if load is None else load()
    network = None if bundle is None else network_of(bundle.model.to(place), bundle.spacing_mm)
    recognise = None if bundle is None else recognise_of(bundle.model, bundle.spacing_mm)
    plan = Plan(**choices, network=network, recognise=recognise)
    settings = PairSettings(plan, place, options, bundle, inverse, stopped)
    return functools.partial(run_pair, settings=settings, progress=progress)


def _fingerprint(pair: Pair, parameters: Mapping[str, Any]) -> str:
    """See `ledger.fingerprint`; which file plays which role counts, and one that vanished has one too."""
    roles = {**parameters, "roles": {role: str(path) for role, path in pair.files.items()}}
    try:
        return ledger.fingerprint(pair.files.values(), roles)
    except FileNotFoundError:
        return ledger.fingerprint([], {**roles, "missing": True})


def _result(record: Mapping[str, Any], output: Path, done_now: bool) -> PairResult:
    return outcome(PairResult, record, output, done_now, figures=record.get("figures", {}))
