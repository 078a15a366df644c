"""What a case cost: seconds and peak memory by phase; and whether it was too much."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Phases:
    """Clock of one case.

    Attributes:
        seconds: by phase.
        peak_memory_mb: the most memory in use up to the end of each phase: resident memory of the process (which never
            falls, so the first phase that needs the most shows it), on CUDA the device's memory in that phase.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.peak_memory_mb: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block; phases of the same name add up."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.peak_memory_mb[name] = max(self.peak_memory_mb.get(name, 0.0), peak_bytes(self.device) / 1e6)


def peak_bytes(device: torch.device) -> int:
    """The most memory that was in use: of a CUDA device by torch, else resident of this process; 0 if nobody knows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # there is no resource module
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    texts = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
