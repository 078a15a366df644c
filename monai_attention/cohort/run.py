"""Many cases, several at a time; finished ones are kept, and several processes may share them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from monai_attention.cohort import ledger
from monai_attention.report.manifest import write_record

logger = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
"""Pause between looks at cases that another process is working on."""


class Named(Protocol):
    """A case: what it is does not matter here."""

    @property
    def id(self) -> str:
        """Its name, and that of its folder."""


RunCase = Callable[[Any, Path], dict[str, Any]]
"""From a case and its folder to its record (see `report.manifest.CaseRecord`); bad cases are records too."""


def now() -> str:
    """The time, ISO 8601, UTC; such texts sort like the times."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass
class Cohort:
    """How cases are worked off, and which of them this process worked on.

    Args:
        prepare: what all cases need, made when the first one is worked on; gives the function that runs a case. When
            the event it is given is set, cases should end soon, without a result.
        at_a_time: cases.
        progress: show a bar on standard error.
        overwrite: do finished cases again.
    """

    prepare: Callable[[threading.Event], RunCase]
    at_a_time: int
    progress: bool
    overwrite: bool
    started: str = field(default_factory=now)
    done: set[str] = field(default_factory=set)
    preparing: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def run_case(self) -> RunCase:
        """What `prepare` gave."""
        return self.prepare(self.stopped)

    def work_off(
        self, cases: Sequence[Named], output: Path, fingerprints: Mapping[str, str]
    ) -> dict[str, dict[str, Any]]:
        """Bring every case to a record, by this process or by another one on the same folder.

        Args:
            cases: each gets the folder of its name in `output`.
            output: exists.
            fingerprints: of each case's inputs and parameters, see `ledger.fingerprint`.

        Returns:
            Records by name.
        """
        records: dict[str, dict[str, Any]] = {}
        told = False
        bar = tqdm(total=len(cases), desc="cases", unit="case", disable=not self.progress)
        with bar, ThreadPoolExecutor(self.at_a_time) as pool:
            while pending := [case for case in cases if case.id not in records]:
                before = len(records)
                todo = {
                    pool.submit(self._work_on, case, output / case.id, fingerprints[case.id]): case for case in pending
                }
                try:
                    for future in as_completed(todo):
                        if (record := future.result()) is not None:
                            records[todo[future].id] = record
                            bar.update()
                except BaseException:  # what stops the run, stops it for the other cases as well
                    self.stopped.set()
                    pool.shutdown(cancel_futures=True)
                    raise
                if len(records) == before:
                    if not told:
                        logger.warning("waiting for %d cases that another process is at", len(cases) - before)
                        told = True
                    time.sleep(WAIT_SECONDS)  # another process has claimed all that is left
        return records

    def _accepts(self, record: Mapping[str, Any] | None) -> bool:
        """Whether a finished case stays as it is: refused ones get another chance, but only one in each run."""
        if record is None:
            return False
        return record["finished_at"] >= self.started or not (self.overwrite or record["verdict"] == "refused")

    def _work_on(self, case: Named, folder: Path, fingerprint: str) -> dict[str, Any] | None:
        """The record of a case, from before or after working on it, or None if another process is at it."""
        record = ledger.finished_record(folder, fingerprint)
        if not self._accepts(record):
            with self.preparing:
                if self.stopped.is_set():
                    return None
                try:
                    _ = self.run_case  # what all cases lack stops the run, not a case
                except BaseException:
                    self.stopped.set()  # the others need not try again
                    raise
            record = self._claimed(case, folder, fingerprint)
        return record

    def _claimed(self, case: Named, folder: Path, fingerprint: str) -> dict[str, Any] | None:
        """The record of a case after working on it, or None if another process is at it."""
        with ledger.claim(folder) as mine:
            if not mine:
                return None
            record = ledger.finished_record(folder, fingerprint)  # by another process, between our look and our claim
            if not self._accepts(record):
                ledger.start_over(folder)
                self.done.add(case.id)
                record = self.run_case(case, folder)
                record |= {"fingerprint": fingerprint, "finished_at": now()}
                write_record(folder / ledger.RECORD, record)
            return record
