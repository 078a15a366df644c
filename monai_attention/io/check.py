"""The verb `check`: a verdict for every case, in seconds, without running a network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monai_attention.columns import in_columns
from monai_attention.errors import Refusal
from monai_attention.io import geometry
from monai_attention.io.cases import Case, find_cases
from monai_attention.io.channels import read_channel_headers, read_channels
from monai_attention.io.content import Header
from monai_attention.io.read import DEFAULTS
from monai_attention.io.volume import Note, ReadOptions, Requirements, Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What the gate says about one case.

    Args:
        case_id: the case's name.
        path: its file or folder.
        verdict: `ok`, `flagged` (readable, but a human should look) or `refused`.
        code: of the refusal or of the first flag, else "".
        message: what was expected and what came.
        remedy: what to do about it.
        notes: repairs, flags and remarks.
        shape: voxels along x, y, z.
        spacing_mm: mm along x, y, z.
        orientation: where the array axes point, for example `RAS` (x to the right, ...).
        modality: DICOM Modality, None where the format does not say.
    """

    case_id: str
    path: Path
    verdict: str
    code: str = ""
    message: str = ""
    remedy: str = ""
    notes: tuple[Note, ...] = ()
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str | None = None
    modality: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain strings, numbers, lists and dictionaries."""
        return {**asdict(self), "path": str(self.path)}


def check(
    inputs: Sequence[str | Path],
    *,
    requirements: Requirements | None = None,
    options: ReadOptions = DEFAULTS,
    headers_only: bool = True,
) -> list[Verdict]:
    """Judge every case; one that is refused never stops the others.

    Args:
        inputs: files, folders and CSV tables, as for `find_cases`.
        requirements: what a bundle accepts; None checks what holds for any.
        options: the user's choices about what cannot be read unambiguously.
        headers_only: do not read voxels. A file cut off or damaged in its middle is then found out only where its size
            tells, and NaN, constant images and implausible intensities are not.

    Raises:
        Refusal: the inputs themselves make no list of cases (see `find_cases`).
    """
    found = find_cases(inputs, channels=requirements.channels if requirements else 1)
    return [_judge(case, requirements, options, headers_only) for case in found]


def format_table(verdicts: Sequence[Verdict]) -> str:
    """A line a case, and below it what is wrong and what to do."""
    rows = [("case", "verdict", "voxels", "spacing mm", "axes", "modality")]
    for one in verdicts:
        voxels = "x".join(map(str, one.shape)) if one.shape else "-"
        spacing = "x".join(f"{mm:.3g}" for mm in one.spacing_mm) if one.spacing_mm else "-"
        rows.append((one.case_id, one.verdict, voxels, spacing, one.orientation or "-", one.modality or "-"))
    lines = in_columns(rows)
    table = [lines[0]]
    for line, one in zip(lines[1:], verdicts, strict=True):
        table.append(line)
        if one.verdict == "refused":
            table.append(f"    {one.code} {one.path}: {one.message.rstrip()}")
            table += [f"    -> {one.remedy}"] if one.remedy else []
        else:
            table += [f"    {note.code} {note.message}" for note in one.notes]
    return "\n".join(table)


def _judge(case: Case, requirements: Requirements | None, options: ReadOptions, headers_only: bool) -> Verdict:
    try:
        seen = (read_channel_headers if headers_only else read_channels)(case.paths, options, requirements)
        return _passed(case, seen)
    except Refusal as error:
        path = error.path or case.path
        return Verdict(case.id, path, "refused", error.code, error.message, error.remedy)
    except Exception as error:
        # A fault of ours, not of the input's; the text of a foreign error may quote the file, so only its type is told.
        logger.debug("%s", case.path, exc_info=True)
        message = f"reading failed in an unforeseen way ({type(error).__name__})"
        return Verdict(case.id, case.path, "refused", "E-INTERNAL", message, "report this, with the program's version")


def _passed(case: Case, seen: Header | Volume) -> Verdict:
    import nibabel

    flags = [note for note in seen.notes if note.kind == "flag"]
    x, y, z = (round(float(mm), 6) for mm in geometry.spacing(seen.affine))
    return Verdict(
        case.id,
        case.path,
        "flagged" if flags else "ok",
        code=flags[0].code if flags else "",
        message="; ".join(flag.message for flag in flags),
        notes=seen.notes,
        shape=seen.shape,
        spacing_mm=(x, y, z),
        orientation="".join(nibabel.aff2axcodes(seen.affine)),
        modality=seen.modality,
    )
