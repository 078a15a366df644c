"""Several processes, started by torchrun, that train one network: the first leads, the others train along.

What is looked at, planned, written and told once is the first's business. The others wait for what it says, which it
leaves at the store that torchrun keeps, so that nobody waits for a collective that never comes when the first fails.
"""

from __future__ import annotations

import atexit
import functools
import os
import pickle
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_attention.errors import Refusal

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a process waits for the others in a step: one may have a large case to validate. torchrun ends all at once
when one fails, however patient they are."""

GRACE = 3.0
"""Seconds in which the first process tells why, before another that failed, or heard of it, ends: then torchrun ends
all."""


def rank() -> int:
    """Number of this process, from 0, the first."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join(device: str | torch.device | None) -> None:
    """Meet the processes that torchrun started with this one; alone, or when they have met already, do nothing.

    From then on the device `cuda` is the GPU of this process's own: of number LOCAL_RANK.

    Args:
        device: `cpu` or `cuda`; None: CUDA if there is one.

    Raises:
        Refusal: E-DEVICE, another device, or more processes than GPUs.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or dist.is_initialized():
        return
    if int(os.environ["WORLD_SIZE"]) == 1:
        return
    name = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    local = int(os.environ["LOCAL_RANK"])
    if name not in ("cpu", "cuda"):
        remedy = "leave --device away, or say cpu; CUDA_VISIBLE_DEVICES chooses GPUs"
        refusal = Refusal("E-DEVICE", f"of several processes each has its own GPU, got {name!r}", remedy=remedy)
        if int(os.environ["RANK"]) == 0:
            raise refusal
        _end("refused", refusal)
    if name == "cuda":
        if local >= (there := torch.cuda.device_count()):
            remedy = "start as many processes as there are GPUs: torchrun --nproc-per-node"
            raise Refusal("E-DEVICE", f"there are {there} GPUs, none for process {local}", remedy=remedy)
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if name == "cuda" else "gloo", timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)
    _tell_ignite()


def _tell_ignite() -> None:
    """Let ignite find the processes now, where all are: it does so by a collective, at whatever asks it first."""
    import ignite.distributed as idist

    job = os.environ.pop("SLURM_JOB_ID", None)  # with it, ignite takes SLURM's tasks for the processes
    try:
        idist.sync()
    finally:
        if job is not None:
            os.environ["SLURM_JOB_ID"] = job


# In a training: `train.json` of a fine-tuned bundle uses these


def crops_each(batch_size: int) -> int:
    """Crops of a batch for each process: as many for all of them, so that a batch that cannot be divided grows."""
    return -(-batch_size // count())


def share(cases: Sequence[T]) -> list[T]:
    """The cases that this process validates; all of them, as every process, where there are fewer than processes.

    MONAI's metrics gather the results, which must be some from each; their mean is the same if all come several times.
    """
    return list(cases[rank() :: count()] if len(cases) >= count() else cases)


def parallel(network: nn.Module) -> nn.Module:
    """What trains a network in all processes at once: the network itself in a process that is alone."""
    if count() == 1:
        return network
    on_gpu = next(network.parameters()).is_cuda
    return DistributedDataParallel(network, device_ids=[torch.cuda.current_device()] if on_gpu else None)


def total(number: Tensor) -> Tensor:
    """The sum of a tensor over the processes, which must all ask; no gradient."""
    if count() > 1:
        number = number.detach().clone()
        dist.all_reduce(number)
    return number


def gathered(own: T) -> list[T]:
    """What every process has, which must all ask."""
    if count() == 1:
        return [own]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, own)
    return found


class LossOfAll:
    """Makes the loss of an iteration the mean over the processes; attach it before all that looks at the loss."""

    def attach(self, engine: Engine) -> None:
        """Do so for `engine`, a MONAI trainer."""
        if count() > 1:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Replace the loss."""
        output: Any = engine.state.output  # a dict, or since it was taken apart one a sample, each with the loss
        outputs = output if isinstance(output, list) else [output]
        loss = total(torch.as_tensor(outputs[0]["loss"])) / count()
        for one in outputs:
            one["loss"] = loss


# Around the trainings: who does what


def everywhere(do: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """What the first process does, and in `led` the others as well; `do` must be a function of a module."""
    if count() > 1:
        _board().say("do", functools.partial(do, *args, **kwargs))
    do(*args, **kwargs)


def led(function: Callable[P, T]) -> Callable[P, T]:
    """Let the first process do it, and the others only what that does `everywhere`; all get its result.

    The function has an argument `device`, by name, see `join`, and besides what it raises the others raise SystemExit
    where the first process failed other than by a refusal: that one shows how.
    """

    @functools.wraps(function)
    def together(*args: P.args, **kwargs: P.kwargs) -> T:
        device: Any = kwargs.get("device")
        join(device)
        if count() == 1:
            return function(*args, **kwargs)
        if rank() > 0:
            return _follow(_board())
        try:
            result = function(*args, **kwargs)
        except Refusal as refusal:
            _board().say("refused", refusal)
            raise
        except Exception:
            _board().say("failed", None)
            raise
        _board().say("done", result)
        return result

    return together


class _Board:
    """What the first process says, in order; each reads at its own pace, and nobody waits to be read."""

    def __init__(self) -> None:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.PrefixStore("monai_attention", dist.TCPStore(host, port, is_master=False))
        self.place = 0

    def say(self, what: str, more: object) -> None:
        self.store.set(str(self.place), pickle.dumps((what, more)).hex())
        self.place += 1

    def hear(self, seconds: float | None = None) -> tuple[str, Any] | None:
        """The next word; None if none came in time."""
        began = time.monotonic()
        while not self.store.check([str(self.place)]):
            if seconds is not None and time.monotonic() - began > seconds:
                return None
            time.sleep(0.1)
        self.place += 1
        return pickle.loads(bytes.fromhex(self.store.get(str(self.place - 1)).decode()))


@functools.cache
def _board() -> _Board:
    return _Board()


def _follow(board: _Board) -> Any:
    """Do what the first process says, until it is done."""
    while (word := board.hear()) is not None:
        what, more = word
        if what == "done":
            return more
        if what == "do":
            try:
                more()
            except Exception as error:  # perhaps because the first failed, or with it: then that is to be told
                word = board.hear(GRACE)
                if word is None or word[0] in ("do", "done"):
                    raise
                _end(*word, error)
        else:
            _end(what, more)
    raise AssertionError


def _end(what: str, more: Any, cause: Exception | None = None) -> NoReturn:
    time.sleep(GRACE)
    if what == "refused":
        more.told = True
        raise more from cause
    raise SystemExit(1) from cause
