"""Unpacking zips that strangers made: nothing outside the folder, nothing but files, never more than agreed.

What a zip's directory says about sizes is not believed: bytes are counted as they come.
"""

from __future__ import annotations

import errno
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from monai_attention.errors import Refusal

CHUNK = 1 << 20
SMALL = 64 << 20
"""Bytes below which no ratio of compression can harm (a segmentation packs 1000 : 1)."""


@dataclass(frozen=True)
class Limits:
    """How much an archive may unfold to.

    Args:
        files: number of files.
        size: bytes of all files together.
        ratio: bytes of all files together for a byte of the archive, looked at above `SMALL` bytes.
    """

    files: int = 100_000
    size: int = 64 << 30
    ratio: float = 100.0


DEFAULT_LIMITS = Limits()


def extract(archive: Path, into: Path, *, limits: Limits = DEFAULT_LIMITS) -> None:
    """Unpack a zip into an existing folder.

    A refusal may leave files behind, so `into` should be a temporary folder that the caller removes.

    Args:
        archive: the zip.
        into: where to; nothing there is overwritten.
        limits: how much it may unfold to.

    Raises:
        Refusal: `E-ARCHIVE` if it is damaged or encrypted, if a name in it leads elsewhere, if it holds links or other
            special files, or if it is larger than the limits; `E-DISK-FULL` if there is no room for it.
    """
    archive, into = Path(archive), Path(into)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check_directory(archive, entries, limits)
            allowed = min(limits.size, max(SMALL, int(limits.ratio * archive.stat().st_size)))
            _check_room(archive, entries, into, allowed)
            for entry in entries:
                allowed -= _unpack(archive, opened, entry, into, allowed)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise _refusal(archive, f"it is damaged or packed in an unknown way ({type(error).__name__})") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(archive, into, None) from error
        raise _refusal(archive, f"it cannot be unpacked ({error.strerror or type(error).__name__})") from error


def _check_directory(archive: Path, entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    if len(entries) > limits.files:
        raise _refusal(archive, f"it holds {len(entries)} files, more than {limits.files}")
    for entry in entries:
        if not _stays_inside(entry.filename):
            raise _refusal(archive, f"the name {entry.filename!r} leads out of the folder")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _refusal(archive, f"{entry.filename!r} is a link or another special file")
        if entry.flag_bits & 1:
            raise _refusal(archive, f"{entry.filename!r} is encrypted", remedy="unpack it and give the folder")
    name, count = Counter(entry.filename for entry in entries).most_common(1)[0] if entries else ("", 0)
    if count > 1:
        raise _refusal(archive, f"{name!r} is in it {count} times")


def _stays_inside(name: str) -> bool:
    """Whether a name is relative and free of `..`, as Windows and as other systems read it."""
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    return not (windows.anchor or posix.anchor or ".." in windows.parts or ".." in posix.parts) and bool(posix.parts)


def _check_room(archive: Path, entries: list[zipfile.ZipInfo], into: Path, allowed: int) -> None:
    needed = sum(entry.file_size for entry in entries)
    if needed > allowed:
        raise _too_large(archive)
    if needed > shutil.disk_usage(into).free:
        raise _no_room(archive, into, needed)


def _unpack(archive: Path, opened: zipfile.ZipFile, entry: zipfile.ZipInfo, into: Path, allowed: int) -> int:
    """Writes one file and returns its size, giving up as soon as it passes `allowed` bytes."""
    target = into / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with opened.open(entry) as source, target.open("xb") as file:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > allowed:
                raise _too_large(archive)
            file.write(chunk)
    return written


def _refusal(
    archive: Path, what: str, remedy: str = "unpack it yourself if you trust it, and give the folder"
) -> Refusal:
    return Refusal("E-ARCHIVE", f"expected a plain, whole zip, but {what}", path=archive, remedy=remedy)


def _too_large(archive: Path) -> Refusal:
    return _refusal(archive, f"it unfolds to far more than its {archive.stat().st_size} bytes can honestly hold")


def _no_room(archive: Path, into: Path, needed: int | None) -> Refusal:
    free = shutil.disk_usage(into).free
    what = "more room than there is" if needed is None else f"{needed} bytes of room"
    return Refusal(
        "E-DISK-FULL", f"unpacking needs {what}, {free} bytes are free in {into}", path=archive, remedy="free some"
    )
