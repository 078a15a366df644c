"""Walking through folders: every reader sees the same files, in the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from monai_attention.errors import Refusal


def files_below(folder: Path, seen: set[tuple[int, int]] | None = None) -> Iterator[Path]:
    """Visible files below a folder in a stable order, every folder once however it is linked.

    Args:
        folder: to look into.
        seen: folders that were looked into, by device and number; more are added.

    Raises:
        Refusal: E-UNREADABLE, a folder cannot be listed.
    """
    seen = set() if seen is None else seen
    try:
        status = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError as error:
        message = f"the folder cannot be listed: {error.strerror}"
        raise Refusal("E-UNREADABLE", message, path=folder, remedy="check its permissions") from error
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
            yield from files_below(entry, seen)
        else:
            yield entry
