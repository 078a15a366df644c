"""Who holds a file: a process, told apart from others across recycled ids, containers, reboots and machines."""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process that may live on another machine.

    Args:
        machine: digest of host name and process-id namespace (two containers on one host count as two machines).
        pid: process id there.
        started: the kernel's start time of it in clock ticks, `0` where the system does not say. Ids are recycled,
            the pair of id and start time is not.
    """

    machine: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Process:
        """The process that asks."""
        return cls(_machine(), os.getpid(), _start_time(os.getpid()) or "0")

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine, so that we can know whether it still lives."""
        return self.machine == _machine()

    @property
    def is_told_apart(self) -> bool:
        """Whether the system says when a process began, so that a later one of the same number is not taken for it."""
        return os.name != "nt" and _start_time(self.pid) is not None

    @property
    def is_dead(self) -> bool:
        """Whether it is certainly gone; False when it ran elsewhere, since nobody can tell from here."""
        if not self.is_here or os.name == "nt":  # on Windows signal 0 is a control-C, not a question
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass  # it exists and belongs to someone else; its start time may still be readable
        start = _start_time(self.pid)
        return start is not None and start != self.started


@cache
def _machine() -> str:
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux: the host name has to do
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:12]


def _start_time(pid: int) -> str | None:
    """Field 22 of /proc/<pid>/stat; "ended" for a process that only waits to be reaped; None if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the second field, in brackets, may itself hold brackets and spaces
    return "ended" if fields[0] in "ZX" else fields[19]
