"""How well a bundle segments labelled cases: every case segmented once and scored, with intervals over people."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_attention import __version__, bundles
from monai_attention.cohort import ledger
from monai_attention.cohort.run import Cohort, RunCase
from monai_attention.errors import Refusal
from monai_attention.finetune.correspondence import corresponding
from monai_attention.finetune.dataset import find_labelled
from monai_attention.finetune.evaluation import Evaluation, ScoredCase
from monai_attention.finetune.labelled import LabelledCase, LabelledData, listed, same_name
from monai_attention.finetune.preflight import Preflight, preflight
from monai_attention.finetune.together import CheckedCase
from monai_attention.io.read import DEFAULTS
from monai_attention.io.volume import ReadOptions
from monai_attention.io.write import check_writable, write_json
from monai_attention.report.evaluation import write_evaluation, write_scores

if TYPE_CHECKING:
    from monai_attention.finetune.evaluate_case import Task

CASES_AT_A_TIME = 3
"""One that is read, one on the device, one that is scored."""

REFUSAL = ("case_id", "code", "message", "remedy")
"""What is kept of a case that has no scores."""


def evaluate(
    bundle: str | Path,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    split: str | None = None,
    names: Mapping[str, str] | None = None,
    device: str | None = None,
    options: ReadOptions | None = None,
    overwrite: bool = False,
    trust_bundle: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Segment labelled cases and compare with their labels.

    All cases are judged first, see `preflight.preflight`; those that are refused are listed as such, also in the
    tables. `output` gets `scores.csv` (a row a case and class), `summary.json`, `report.html` and a folder a case with
    a picture and `run.json`. Cases that have scores (same files, bundle and options) are not done again.

    Args:
        bundle: name of a packaged bundle, or path of a folder or zip.
        inputs: see `dataset.find_labelled`.
        output: folder, made if needed.
        split: `train`, `validation` or `test`, of a dataset that says; None takes all cases.
        names: class of the bundle -> class of the dataset, where these are not called alike.
        device: torch device; None takes CUDA if there is one, else the CPU.
        options: choices about inputs that cannot be read unambiguously, and `max_memory`, see `segment`.
        overwrite: do finished cases again.
        trust_bundle: run the bundle's configuration whatever code it names.
        progress: show bars on standard error.

    Raises:
        Refusal: E-CLASSES, E-EMPTY (no case of the split), E-CHANNELS, E-BUNDLE-PURPOSE; those of `find_labelled` and
            `bundles.load`; the output cannot be written, or there is no such device.
    """
    options = options or ReadOptions()
    output = Path(output).absolute()
    info = bundles.info(bundle)
    bundles.expect_purpose(info.purpose, "segment", info.folder)
    data = find_labelled([inputs] if isinstance(inputs, str | Path) else inputs)
    _expect_split(data, split)
    expect_channels(data, info)
    check_writable(output)
    found = preflight(data, options=options, progress=progress)
    wanted = [one for one in found.cases if split in (None, one.case.split)]
    way = Way(names or {}, device, options, overwrite, trust_bundle, progress)
    return summarised(score_cases(bundle, found, wanted, output, way), found, wanted, info, way, output, split=split)


@dataclass(frozen=True)
class Way:
    """How cases are scored; see `evaluate`."""

    names: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    options: ReadOptions = DEFAULTS
    overwrite: bool = False
    trust_bundle: bool = False
    progress: bool = False


def score_cases(
    bundle: str | Path, found: Preflight, wanted: Sequence[CheckedCase], output: Path, way: Way
) -> list[dict[str, Any]]:
    """Segment and score some cases of a dataset, each in its folder of `output`.

    Returns:
        What is to be told of each case, in their order; see `report.manifest.CaseRecord`.

    Raises:
        Refusal: E-CLASSES; those of `bundles.load`; or there is no such device.
    """
    info = bundles.info(bundle)
    labels = corresponding(found.classes, info.classes, way.names, found.data.source)
    cases = [one.case for one in wanted if one.usable]
    parameters = {
        "program": __version__,
        "bundle": bundles.identity(bundle),
        "options": {key: value for key, value in asdict(way.options).items() if key != "max_memory"},
        "classes": {name: [value, labels[value]] for value, name in found.classes.items()},
    }
    fingerprints = {case.id: _fingerprint(case, parameters) for case in cases}
    prepare = functools.partial(_prepared, bundle, way, found, labels)
    at_a_time = CASES_AT_A_TIME if way.options.max_memory is None else 1
    records = Cohort(prepare, at_a_time, way.progress, way.overwrite).work_off(cases, output, fingerprints)
    return [_joined(records.get(one.case.id), one) for one in wanted]


def summarised(
    told: list[dict[str, Any]],
    found: Preflight,
    wanted: Sequence[CheckedCase],
    info: bundles.BundleInfo,
    way: Way,
    output: Path,
    *,
    split: str | None = None,
) -> Evaluation:
    """All cases together, and the tables and the page of them in `output`.

    Args:
        told: see `score_cases`.
        found: the dataset.
        wanted: the cases.
        info: of the bundle.
        way: how they were scored.
        output: folder.
        split: that these cases are; see `Evaluation`.
    """
    labels = corresponding(found.classes, info.classes, way.names, found.data.source)
    groups = {one.case.id: one.case.group for one in wanted}
    result = Evaluation(
        bundle=f"{info.name} {info.version}",
        source=str(found.data.source),
        split=split,
        classes=found.classes,
        meant_by={name: tuple(info.classes[one] for one in labels[value]) for value, name in found.classes.items()},
        cases=tuple(ScoredCase(one["case_id"], groups[one["case_id"]], one["scores"]) for one in told if _has(one)),
        refused=tuple({key: one[key] for key in REFUSAL} for one in told if not _has(one)),
        remarks=tuple({"code": note.code, "message": note.message} for note in found.warnings),
    )
    write_scores(output / "scores.csv", told, found.classes)
    write_json(output / "summary.json", result.to_json())
    order = {one.case_id: place for place, one in enumerate(result.worst)}
    shown = sorted(told, key=lambda one: order.get(one["case_id"], len(order)))
    write_evaluation(output / "report.html", result.to_json(), shown)
    return result


def _expect_split(data: LabelledData, split: str | None) -> None:
    if split is not None and not any(case.split == split for case in data.cases):
        splits = sorted({case.split for case in data.cases if case.split})
        message = f"no case is in the {split} split; the dataset has {listed(splits) or 'no splits'}"
        raise Refusal("E-EMPTY", message, path=data.source, remedy="leave the split out, or name one that is there")


def expect_channels(data: LabelledData, info: bundles.BundleInfo) -> None:
    """Refuse at once what would be refused case by case, hours later.

    Raises:
        Refusal: E-CHANNELS.
    """
    if len(data.channels) != info.requirements.channels:
        message = f"expected {info.requirements.channels} image channel(s), got {len(data.channels)}"
        remedy = "choose a bundle for these channels, or give a .csv with a column for each channel that it wants"
        raise Refusal("E-CHANNELS", f"{message}: {listed(data.channels)}", path=data.source, remedy=remedy)
    ours, theirs = ([same_name(name) for name in names] for names in (data.channels, info.channels))
    if ours != theirs and sorted(ours) == sorted(theirs):
        message = f"the channels are in the order {listed(data.channels)}; expected {listed(info.channels)}"
        remedy = "give a .csv whose columns image_... are in the bundle's order"
        raise Refusal("E-CHANNELS", message, path=data.source, remedy=remedy)


def _prepared(
    bundle: str | Path, way: Way, found: Preflight, labels: Mapping[int, tuple[int, ...]], stopped: threading.Event
) -> RunCase:
    """The function that runs a case; imports torch and monai, which takes seconds."""
    from monai_attention.cohort.device import device_of
    from monai_attention.finetune.evaluate_case import Task, run_case
    from monai_attention.inference.case import CaseSettings

    place = device_of(way.device)
    loaded = bundles.load(bundle, trust=way.trust_bundle)
    loaded.network.to(place)
    settings = CaseSettings(loaded, place, way.options, stopped=stopped)
    task: Task = Task(len(found.data.channels), found.classes, labels)
    return functools.partial(run_case, settings=settings, task=task, progress=way.progress)


def _fingerprint(case: LabelledCase, parameters: Mapping[str, Any]) -> str:
    """See `ledger.fingerprint`; which file plays which role counts, and one that vanished has one too."""
    roles = {**parameters, "images": [str(path) for path in case.images], "label": str(case.label)}
    try:
        return ledger.fingerprint([*case.images, case.label], roles)
    except FileNotFoundError:
        return ledger.fingerprint([], {**roles, "missing": True})


def _joined(record: Mapping[str, Any] | None, checked: CheckedCase) -> dict[str, Any]:
    """What is to be told of a case: its record, with what only all cases together could tell; or why it has none."""
    verdict = checked.verdict
    if record is None:
        return {key: getattr(verdict, key) for key in (*REFUSAL, "verdict", "path")}
    told = {"remedy": "", **record}
    if not _has(told):
        return told
    further = [asdict(note) for note in verdict.notes if asdict(note) not in told["notes"]]
    if flags := [note for note in further if note["kind"] == "flag"]:
        told = {"code": flags[0]["code"], "message": flags[0]["message"], **told, "verdict": "flagged"}
    return {**told, "notes": [*told["notes"], *further]}


def _has(record: Mapping[str, Any]) -> bool:
    """Whether a case has scores."""
    return record["verdict"] != "refused"
