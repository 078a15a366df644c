"""What became of a case, as a function gives it back; its record on disk says more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Args:
        case_id: name of the case, and of its folder in the output folder.
        verdict: `ok`, `flagged` (there is a result; look at it) or `refused`.
        code: of the refusal or of the first flag, else "".
        message: what was wrong, else "".
        remedy: what to do about it, else "".
        outputs: files by kind.
        seconds: by phase.
        resumed: whether the result was there already.
    """

    case_id: str
    verdict: str
    code: str = ""
    message: str = ""
    remedy: str = ""
    outputs: Mapping[str, Path] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    resumed: bool = False


T = TypeVar("T", bound=Outcome)


def outcome(kind: type[T], record: Mapping[str, Any], output: Path, done_now: bool, **more: Any) -> T:
    """The outcome that a record tells.

    Args:
        kind: of outcome.
        record: see `monai_attention.report.manifest.CaseRecord`.
        output: folder of all cases.
        done_now: whether this run did it.
        **more: what `kind` has beyond an `Outcome`.
    """
    return kind(
        case_id=record["case_id"],
        verdict=record["verdict"],
        code=record.get("code", ""),
        message=record.get("message", ""),
        remedy=record.get("remedy", ""),
        outputs={name: output / record["case_id"] / file for name, file in record.get("outputs", {}).items()},
        seconds=record.get("seconds", {}),
        resumed=not done_now,
        **more,
    )
