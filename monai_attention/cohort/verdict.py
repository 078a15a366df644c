"""Whatever goes wrong with a case becomes its verdict, and never stops the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monai_attention.cohort.phases import Phases, is_out_of_memory
from monai_attention.errors import Refusal

logger = logging.getLogger(__name__)


def judged(
    work: Callable[[], dict[str, Any]], *, path: Path, folder: Path, files: Mapping[str, str], phases: Phases
) -> dict[str, Any]:
    """Do the work of a case.

    Args:
        work: writes the case's files and gives the part of its record that they fill, with `outputs` by kind.
        path: of the input, for messages.
        folder: of the case.
        files: that `work` may write into it, by kind; those it did not write this time are removed.
        phases: the case's clock.

    Returns:
        What `work` gave, or a refusal; and what the clock says.

    Raises:
        Refusal: nothing can be written any more, so the next case could not be written either.
    """
    try:
        record = work()
    except Refusal as refusal:
        unpacking = refusal.path is not None and not refusal.path.is_relative_to(folder)  # the others may not need to
        if refusal.code in ("E-DISK-FULL", "E-READ-ONLY") and not unpacking:
            raise
        record = _refused(refusal.code, refusal.message, refusal.path or path, refusal.remedy)
    except Exception as error:
        if is_out_of_memory(error):
            message = "there was not enough memory for this case"
            record = _refused("E-MEMORY", message, path, "crop the image or close other programs")
        else:  # a fault of ours must not stop the other cases; it is reported, not hidden
            # The text of a foreign error may quote the input, so only those who ask for it see more than the type.
            logger.error("%s: internal error, %s", path, type(error).__name__)
            logger.debug("%s", path, exc_info=True)
            message = f"internal error: {type(error).__name__}"
            record = _refused("E-INTERNAL", message, path, "please report it with what --verbose prints")
    for name in set(files.values()) - set(record.get("outputs", {}).values()):
        (folder / name).unlink(missing_ok=True)  # nothing of an earlier or half-done result stays
    record["seconds"] = {name: round(seconds, 3) for name, seconds in phases.seconds.items()}
    record["peak_memory_mb"] = {name: round(peak, 1) for name, peak in phases.peak_memory_mb.items()}
    return record


def _refused(code: str, message: str, path: Path, remedy: str) -> dict[str, Any]:
    return {"verdict": "refused", "code": code, "message": message, "path": str(path), "remedy": remedy}
