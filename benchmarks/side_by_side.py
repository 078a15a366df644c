"""Measure several modules that do the same job, by turns, each in a process of its own.

Times on a shared machine wander, so contestants are called alternately and their medians compared. Each has a process
to itself, so that its peak of memory is its own. What can be counted is counted: bytes that a forward keeps for the
backward, and floating-point operations.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

FORWARD, TRAINING = "forward", "training step"


@dataclass(frozen=True)
class Contestant:
    """One of those that do the same job.

    Args:
        name: what the table calls it.
        make: builds the module; a function of some module, for processes are told its name only.
        modes: what it is measured in.
    """

    name: str
    make: Callable[[], nn.Module]
    modes: tuple[str, ...] = (FORWARD, TRAINING)


@dataclass(frozen=True)
class Machine:
    """Where and how: device, threads of the CPU, bfloat16 autocast or not, and how many timed calls."""

    device: str = "cpu"
    threads: int = 2
    bfloat16: bool = False
    rounds: int = 3


@dataclass
class Measured:
    """One contestant in one mode.

    Args:
        seconds: of each timed call.
        peak_bytes: how far the first call raised the process's (or the device's) peak of memory.
        saved_bytes: see `count`.
        flops: of the forward, a multiply-add counted as 2.
        parameters: how many numbers are learned.
        probe: some of the output's numbers, to see that contestants computed the same.
    """

    seconds: list[float]
    peak_bytes: int
    saved_bytes: int
    flops: int
    parameters: int
    probe: list[float]

    @property
    def median(self) -> float:
        """Seconds of the median call."""
        return statistics.median(self.seconds)


def compare(
    contestants: tuple[Contestant, ...], shape: tuple[int, ...], mode: str, settings: Machine
) -> dict[str, Measured]:
    """Measure all contestants that take part in a mode, on the same input, by turns.

    Args:
        contestants: see `Contestant`.
        shape: of the input.
        mode: `FORWARD` (evaluation, no gradients) or `TRAINING` (forward and backward, no optimiser).
        settings: see `Machine`.

    Raises:
        RuntimeError: a contestant's process died.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[str, Connection] = {}
    results = {}
    try:
        for contestant in contestants:
            if mode in contestant.modes:
                here, there = context.Pipe()
                process = context.Process(
                    target=_serve, args=(there, contestant.make, shape, mode, settings), daemon=True
                )
                process.start()
                there.close()
                workers[contestant.name] = here
                results[contestant.name] = Measured([], *_receive(contestant.name, here))
        for _ in range(settings.rounds):
            for name, connection in workers.items():
                connection.send("again")
                results[name].seconds.append(_receive(name, connection))
    finally:
        for connection in workers.values():
            connection.close()
    return results


def _receive(name: str, connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError(f"the process of {name} died; was there enough memory?") from None


def _serve(
    connection: Connection, make: Callable[[], nn.Module], shape: tuple[int, ...], mode: str, settings: Machine
) -> None:
    """What a contestant's process does: count once, then time as often as it is told to."""
    importlib.import_module("torch._dynamo")  # torch does so when it first needs it: not what we measure
    torch.set_num_threads(settings.threads)
    if torch.device(settings.device).index is not None:
        torch.cuda.set_device(settings.device)
    torch.manual_seed(0)
    module = make().to(settings.device).train(mode == TRAINING)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(settings.device)
    step = _training_step if mode == TRAINING else _forward
    with peak_memory(settings.device) as peak:
        step(module, image, settings)
    connection.send((peak[0], *count(module, image, settings)))
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        step(module, image, settings)
        _wait(settings.device)
        connection.send(time.perf_counter() - start)


def _call(module: nn.Module, image: Tensor, settings: Machine) -> Tensor:
    with torch.autocast(settings.device, torch.bfloat16, enabled=settings.bfloat16):
        output = module(image)
    return output[0] if isinstance(output, (tuple, list)) else output


def _forward(module: nn.Module, image: Tensor, settings: Machine) -> None:
    with torch.no_grad():
        _call(module, image, settings)


def _training_step(module: nn.Module, image: Tensor, settings: Machine) -> None:
    module.zero_grad(set_to_none=True)
    _call(module, image, settings).float().square().mean().backward()


def count(module: nn.Module, image: Tensor, settings: Machine) -> tuple[int, int, int, list[float]]:
    """What can be counted in one forward.

    Returns:
        Bytes of the storages that it makes and that are still alive when it is over, the output's left out (in
        evaluation what the module caches); floating-point operations; parameters; some numbers of the output.
    """
    with torch.set_grad_enabled(module.training), _Storages() as storages, FlopCounterMode(display=False) as counter:
        output = _call(module, image, settings)
    given = (image, output, *module.parameters(), *module.buffers())
    saved = storages.alive(but={tensor.untyped_storage()._cdata for tensor in given})
    probe = output.detach().flatten()[:: max(1, output.numel() // 8)][:8].float().tolist()
    return saved, int(counter.get_total_flops()), sum(p.numel() for p in module.parameters()), probe


class _Storages(TorchDispatchMode):
    """Remembers every storage that an operator returns, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.seen[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive(self, but: set[int]) -> int:
        return sum(size for name, (reference, size) in self.seen.items() if name not in but and not reference.expired())


@contextmanager
def peak_memory(device: str) -> Iterator[list[int]]:
    """How many bytes the block adds, at its peak, to what was in use before; the list's one element, set at the end."""
    result = [0]
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield result
        result[0] = torch.cuda.max_memory_allocated() - before
        return
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the peak so far is forgotten
    before = _resident()
    yield result
    result[0] = max(0, _peak_resident() - before)


def _resident() -> int:
    """Bytes of this process that are in memory now; where the system does not say, the most there ever were."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else _peak_resident()


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def profile(contestant: Contestant, shape: tuple[int, ...], settings: Machine) -> str:
    """Which operators the time of a forward goes into: the eight that take most of it, and their share."""
    torch.set_num_threads(settings.threads)
    module, image = contestant.make().to(settings.device).eval(), torch.randn(shape).to(settings.device)
    _forward(module, image, settings)
    with torch.profiler.profile() as profiler:
        _forward(module, image, settings)
    operators = sorted(profiler.key_averages(), key=lambda operator: -operator.self_cpu_time_total)
    total = sum(operator.self_cpu_time_total for operator in operators)
    shares = [f"{operator.key} {operator.self_cpu_time_total / total:.0%}" for operator in operators[:8]]
    return f"{contestant.name}: {', '.join(shares)}"


def largest_difference(a: Measured, b: Measured) -> float:
    """Between two probes, relative to their size."""
    size = math.sqrt(sum(x * x for x in a.probe))
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a.probe, b.probe, strict=True))) / max(size, 1e-12)


def machine(settings: Machine) -> str:
    """The machine in words."""
    if settings.device.startswith("cuda"):
        return torch.cuda.get_device_name(settings.device)
    info = Path("/proc/cpuinfo")
    models = [x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
    return f"{models[0] if models else 'CPU'}, {settings.threads} threads of {os.cpu_count()} cores"
