"""Which cases of a cohort are done, and who works on which: a ledger made of files, no database, no server.

Every case owns the folder OUT/<case id>/. It is done when its `run.json`, written last, carries the fingerprint of
the input, bundle and parameters asked for now. Any number of processes, also on several machines that see the same
folder, share a cohort by this loop:

    for case in part(cases, i, n):
        with claim(folder) as mine:
            if mine and not is_finished(folder, expected):   # asked under the claim: another may just have finished it
                start_over(folder)
                ...                                          # results first, run.json last

Claims lie in a file that only one process can create (O_EXCL). A claim whose process is dead, or whose heartbeat has
stopped when it belongs to another machine, is retaken. The worst that a wrong guess costs (a machine asleep for long)
is a case computed twice with the same result; files never mix, since each takes its name in one step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monai_attention.errors import Refusal
from monai_attention.io import itk_formats
from monai_attention.io.process import Process
from monai_attention.io.volume import ReadOptions
from monai_attention.io.write import explain, sweep_leftovers

logger = logging.getLogger(__name__)

RECORD = "run.json"
CLAIM = ".claim"

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 600.0
"""A claim from another machine is abandoned when its heartbeat is older than this."""


def fingerprint(paths: Iterable[str | Path], parameters: Mapping[str, Any], *, apart: Path | None = None) -> str:
    """Digest of everything a result depends on.

    Args:
        paths: input files and folders. Each counts with its absolute path, size and time of modification, a folder
            with those of every file below it; contents are not read.
        parameters: plain JSON values: bundle name, hash of its weights, options that change the result.
        apart: a folder that is no part of the inputs even if it lies in one of them: that of the results.

    Raises:
        FileNotFoundError: a path does not exist.
        TypeError: a parameter is not JSON.
    """
    inputs = [_identity(Path(path), apart) for path in paths]
    text = json.dumps([inputs, parameters], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def finished_record(case_dir: str | Path, expected: str) -> dict[str, Any] | None:
    """The case's `run.json` if it belongs to this fingerprint and all outputs it lists are still there, else None."""
    case_dir = Path(case_dir)
    try:
        record = json.loads((case_dir / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        logger.warning("%s is not valid JSON; the case counts as not done", case_dir / RECORD)
        return None
    if not isinstance(record, dict) or record.get("fingerprint") != expected:
        return None
    if not all((case_dir / name).exists() for name in record.get("outputs", {}).values()):
        return None
    return record


def is_finished(case_dir: str | Path, expected: str) -> bool:
    """Whether the case was brought to a verdict, refusals included, with this fingerprint."""
    return finished_record(case_dir, expected) is not None


def start_over(case_dir: str | Path) -> None:
    """Before new results are written: the old record goes first, so that it can never vouch for mixed results."""
    (Path(case_dir) / RECORD).unlink(missing_ok=True)
    sweep_leftovers(case_dir)


def part(case_ids: Iterable[str], i: int, n: int) -> list[str]:
    """Part i of n (counted from 1): every case falls in exactly one part, on every machine, whatever the others are."""
    if not 1 <= i <= n:
        raise ValueError(f"part {i}/{n} does not exist; i counts from 1 to {n}")
    return [case_id for case_id in case_ids if _bucket(case_id) % n == i - 1]


@contextmanager
def claim(case_dir: str | Path) -> Iterator[bool]:
    """Take a case for this process until the block ends; yields False if another process is at it.

    The folder is made if needed. While the block runs, a thread keeps the claim fresh.

    Raises:
        Refusal: `E-DISK-FULL` or `E-READ-ONLY` if not even the claim can be written.
    """
    path = Path(case_dir) / CLAIM
    owner = _Owner(**asdict(Process.current()), token=secrets.token_hex(8))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = _create(path, owner) or _retake(path, owner)
    except OSError as error:
        refusal = explain(error, path)
        if refusal is None:
            raise
        raise refusal from error
    if not mine:
        yield False
        return
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, owner, done), name="claim", daemon=True)
    heart.start()
    try:
        yield True
    finally:
        done.set()
        heart.join()
        if _read(path) == owner:
            path.unlink()


@dataclass(frozen=True)
class _Owner(Process):
    """The process that holds a claim; the token tells its claims apart."""

    token: str


def _create(path: Path, owner: _Owner) -> bool:
    """Write a claim where there is none; the file system lets only one process succeed."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(owner), file)
    return True


def _retake(path: Path, owner: _Owner) -> bool:
    """Replace an abandoned claim by ours, so that of several processes that try at once exactly one succeeds.

    Who wants the claim with token T must first create the successor of T, a file of that name. Its creator looks again
    whether T is still there, and only then moves the successor over the claim. In the end the claim belongs to whoever
    stands in it.
    """
    stale = _read(path)
    if not _is_abandoned(path, stale):
        return False
    successor = path.with_name(f"{CLAIM}-{stale.token if stale else 'unreadable'}")
    if not _create(successor, owner):
        if not _is_abandoned(successor, _read(successor)):
            return False
        successor.unlink(missing_ok=True)  # its writer was killed halfway through the retake
        return _retake(path, owner)
    if _read(path) == stale and path.exists():
        with suppress(FileNotFoundError):  # our successor was taken for abandoned and removed
            successor.replace(path)
    else:
        successor.unlink(missing_ok=True)
    mine = _read(path) == owner
    if mine:
        logger.info("retook %s, abandoned by an interrupted run", path.parent)
    return mine


def _read(path: Path) -> _Owner | None:
    """Who holds a claim; None if there is no claim or its writer has not come to the end of it."""
    try:
        return _Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _is_abandoned(path: Path, owner: _Owner | None) -> bool:
    if owner is not None and owner.is_here and (owner.is_dead or owner.is_told_apart):
        return owner.is_dead
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return False


def _beat(path: Path, owner: _Owner, done: threading.Event) -> None:
    """Keep the claim's time of modification fresh until told to stop."""
    while not done.wait(HEARTBEAT_SECONDS):
        if _read(path) != owner:
            logger.warning("%s was retaken by another process while this one did not respond", path.parent)
            return
        try:
            os.utime(path)
        except OSError as error:
            logger.warning("the claim on %s could not be refreshed: %s", path.parent, error)


def _identity(path: Path, apart: Path | None) -> list[Any]:
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would stop at a loop of links
    if not path.is_dir():
        return [str(path), *_stamp(path), *_stamp_of_voxels(path)]
    files = []
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if Path(folder, name) != apart]
        files += [Path(folder, name) for name in names]
    files.sort()
    return [str(path), [[file.relative_to(path).as_posix(), *_stamp(file)] for file in files]]


def _stamp_of_voxels(path: Path) -> tuple[int, ...]:
    """Of the file beside a header that lies apart from them; none where reading will refuse it."""
    if path.suffix.lower() not in (".mhd", ".nhdr"):
        return ()
    try:
        return _stamp(itk_formats.read_header(path, ReadOptions(), None).data)
    except (Refusal, OSError):
        return ()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError:
        state = path.lstat()  # a link to nowhere is itself part of the input
    return state.st_size, state.st_mtime_ns


def _bucket(case_id: str) -> int:
    return int.from_bytes(hashlib.sha256(case_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")
