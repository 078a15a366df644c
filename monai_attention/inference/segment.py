"""Segment one case or a cohort: volumes in, labels, tables, pictures and verdicts out."""

from __future__ import annotations

import copy
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_attention import DEFAULT_BUNDLE, __version__, bundles
from monai_attention.bundle_config import plain_value
from monai_attention.cohort import ledger
from monai_attention.cohort.outcome import Outcome, outcome
from monai_attention.cohort.run import Cohort, RunCase
from monai_attention.errors import Refusal
from monai_attention.io.cases import Case, find_cases
from monai_attention.io.volume import ReadOptions
from monai_attention.io.write import check_writable
from monai_attention.report.page import write_report
from monai_attention.report.tables import write_volumes

if TYPE_CHECKING:
    from monai_attention.inference.case import CaseSettings

FORMATS = ("nifti", "dicom-seg")
CASES_AT_A_TIME = 3
"""One that is read, one on the device, one that is written."""


@dataclass(frozen=True)
class CaseResult(Outcome):
    """What became of one case; see `Outcome`.

    Files by kind are `labels`, `classes`, `volumes`, `preview`, `dicom_seg`, `entropy`, `disagreement`.

    Args:
        volumes_ml: class name -> mL.
    """

    volumes_ml: Mapping[str, float] = field(default_factory=dict)


def segment(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    bundle: str | Path = DEFAULT_BUNDLE,
    device: str | None = None,
    options: ReadOptions | None = None,
    formats: Sequence[str] = ("nifti",),
    uncertainty: bool = False,
    overwrite: bool = False,
    part: tuple[int, int] = (1, 1),
    trust_bundle: bool = False,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[CaseResult]:
    """Segment files, DICOM folders, zips, folders of cases or tables of them.

    Each case gets a folder in `output` with `labels.nii.gz` (uint8, on the grid of the input), `labels.json` (class
    names), `volumes.csv`, `preview.png`, `run.json`, and `labels.dcm` if asked for and the input is DICOM. Over all
    cases there are `volumes.csv` and `report.html`. Cases that have a result (same input, bundle and options) are not
    done again, refused ones are; several processes may work on one output folder.

    Args:
        inputs: see `monai_attention.io.cases.find_cases`.
        output: folder, made if needed.
        bundle: name of a packaged bundle, or path of a folder or zip.
        device: torch device; None takes CUDA if there is one, else the CPU. Several, with commas between them
            (`cuda:0,cuda:1`), share the sliding windows of each case.
        options: choices about inputs that cannot be read unambiguously, and `max_memory` in bytes. Without it, the next
            case is read and the last one written while one is on the device.
        formats: some of `nifti` (always written) and `dicom-seg`.
        uncertainty: also write `entropy.nii.gz`, and `disagreement.nii.gz` if the bundle's inferer mirrors windows;
            from 0 (sure) to 1, see `monai_attention.inference.uncertainty`.
        overwrite: do finished cases again.
        part: (i, n) does the i-th of n parts of the cases, counted from 1.
        trust_bundle: run the bundle's configuration whatever code it names.
        overrides: settings of the bundle to change, see `monai_attention.bundles.load`.
        progress: show bars on standard error.

    Returns:
        One result a case of this part, in the order of the inputs.

    Raises:
        Refusal: the inputs cannot be listed, the output cannot be written, the bundle cannot be loaded, or there is no
            such device. A case that cannot be segmented raises nothing: its result says so.
    """
    options = options or ReadOptions()
    output = Path(os.path.abspath(output))  # noqa: PTH100 - without `..`, and links are not followed
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"formats must be some of {FORMATS}; got {sorted(unknown)}")
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    overrides = {key: plain_value(key, value) for key, value in (overrides or {}).items()}
    info = bundles.info(bundle)
    found = find_cases(given, channels=info.requirements.channels, apart=output)
    for path in (path for case in found for path in case.paths):
        if path.is_relative_to(output):
            message = "what is to be segmented lies in the output folder, where results are told by where they lie"
            raise Refusal("E-OUTPUT", message, path=path, remedy="name another output folder, for example -o results")
    cases = {case.id: case for case in found}
    mine = [cases[case_id] for case_id in ledger.part(cases, *part)]
    check_writable(output)
    parameters = {
        "program": __version__,
        "bundle": bundles.identity(bundle),
        "options": {key: value for key, value in asdict(options).items() if key != "max_memory"},
        "formats": sorted(formats),
        **({"uncertainty": True} if uncertainty else {}),
        "overrides": overrides,
    }
    fingerprints = {case.id: _fingerprint(case, parameters, output) for case in cases.values()}
    kinds = (tuple(formats), uncertainty)
    load = functools.partial(_settings, bundle, trust_bundle, overrides, device, options, kinds)
    at_a_time = CASES_AT_A_TIME if options.max_memory is None else 1
    cohort = Cohort(functools.partial(_prepared, load, progress), at_a_time, progress, overwrite)
    records = cohort.work_off(mine, output, fingerprints)
    results = [_result(records[case.id], output, case.id in cohort.done) for case in mine]
    everybodys = [records.get(id) or ledger.finished_record(output / id, fingerprints[id]) for id in cases]
    _summarise(output, [record for record in everybodys if record is not None], info)
    return results


def _prepared(load: Callable[[], CaseSettings], progress: bool, stopped: threading.Event) -> RunCase:
    """The function that runs a case."""
    from monai_attention.inference.case import run_case

    settings = replace(load(), stopped=stopped)
    return functools.partial(run_case, settings=settings, progress=progress)


def _settings(
    bundle: str | Path,
    trust: bool,
    overrides: Mapping[str, Any],
    device: str | None,
    options: ReadOptions,
    kinds: tuple[tuple[str, ...], bool],
) -> CaseSettings:
    """Load the bundle; imports torch and monai, which takes seconds."""
    from monai_attention.cohort.device import device_of
    from monai_attention.inference.case import CaseSettings

    first, *others = [device_of(name.strip()) for name in device.split(",")] if device else [device_of(None)]
    loaded = bundles.load(bundle, trust=trust, overrides=overrides)
    replicas = [(copy.deepcopy(loaded.network).to(place), place) for place in others]
    loaded.network.to(first)
    formats, uncertainty = kinds
    return CaseSettings(loaded, first, options, formats, uncertainty, replicas, overrides)


def _fingerprint(case: Case, parameters: Mapping[str, Any], output: Path) -> str:
    """See `ledger.fingerprint`; an input that vanished has one too, its reading gives the verdict."""
    try:
        return ledger.fingerprint(case.paths, parameters, apart=output)
    except FileNotFoundError:
        return ledger.fingerprint([], {**parameters, "missing": str(case.path)})


def _result(record: Mapping[str, Any], output: Path, done_now: bool) -> CaseResult:
    return outcome(
        CaseResult,
        record,
        output,
        done_now,
        volumes_ml={name: volume["ml"] for name, volume in record.get("volumes", {}).items()},
    )


def _summarise(output: Path, records: Sequence[Mapping[str, Any]], info: bundles.BundleInfo) -> None:
    """Write the table and the page over all cases."""
    write_volumes(output / "volumes.csv", records)
    seconds = sum(sum(record.get("seconds", {}).values()) for record in records)
    summary = {"bundle": f"{info.name} {info.version}", "task": info.task, "seconds in all": round(seconds, 1)}
    write_report(output / "report.html", records, summary)
