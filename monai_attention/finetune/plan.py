"""What a training will do, decided by a few written rules from what was found in the data; all of it can be edited.

The rules:

- **Spacing, windows, preprocessing** are the source bundle's: its weights were learned with them. From scratch they are
  planned by the cohort, see `monai_attention.finetune.preprocessing`.
- **Batch**: 2 crops; 1 where what the network saves for the backward pass (measured, not guessed) would take more than
  a third of the memory that is free; where several processes train together, at least one for each.
- **Gradient checkpointing** where one crop would still take more than that, and the network can.
- **Deep supervision** where the network can.
- **Epoch**: 50 steps on the CPU, 100 on a GPU; validation every fifth of the training, and at least every 10 epochs.
- **Length**: as told (`epochs` or `seconds`, by the time that steps were measured to take); else 40 epochs, 20 for the
  head alone, and 200 from scratch.
- **Rates**: 1e-2 for the head, whose new rows begin small beside those that came over; below it 1e-3; 3e-3 for
  adapters, which begin at nothing; from scratch 3e-3 for all, by Muon (`optimizers.MuonAdamW`). With `rate_decay`
  below 1 in `train.json` they fall from layer to layer towards the input; at 0.75 fewer structures were learned in as
  many steps (`benchmarks/README.md`). A cosine after a warm-up of one epoch at most.
- **What is kept** is an average of the weights over the last tenth of the steps, but 100 at most, whatever the held-out
  cases say of it: an epoch chosen by one or two cases was better by 0.02 and worse by 0.08 on new people
  (`benchmarks/README.md`), and scores of cases that a choice was made by flatter. Their curve is in `epochs.csv`.
- **Loss**: Dice and cross-entropy; from scratch the logarithm of Dice, by which small structures are found sooner.
- **Mirroring** left and right only where the names say that no class has a side, and the preprocessing orients images.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_attention.cohort.phases import is_out_of_memory
from monai_attention.errors import Refusal
from monai_attention.finetune.precision import bfloat16_is_fast
from monai_attention.finetune.processes import count, crops_each

MEMINFO = Path("/proc/meminfo")
"""Where Linux tells of its memory."""
METHODS = ("full", "lora", "head", "scratch")
RATES = {"full": 1e-3, "lora": 3e-3, "head": 1e-2, "scratch": 3e-3}
EPOCHS = {"full": 40, "lora": 40, "head": 20, "scratch": 200}
SHARE = 1 / 3
"""Of the free memory, that a batch may save for the backward pass."""
SIDES = re.compile(r"\w*(?:left|(?<!b)right)\w*|l|r|lh|rh|lt|rt|link\w*|recht\w*|gauche|droite?", re.IGNORECASE)
"""A word in the name of a class: it has a side."""
ABBREVIATED = re.compile(r"[LR][A-Z]")
"""How a name begins that may mean one: `LKidney`, `RUL`, `LV`."""
UNNAMED = re.compile(r"class_\d+")
"""What a class is called of which only the number is known."""


@dataclass(frozen=True)
class Plan:
    """What `train.json` of the new bundle will say.

    Args:
        method: one of `METHODS`.
        roi_size: voxels of a crop.
        batch_size: crops a step.
        epoch_length: steps an epoch.
        max_epochs: of the training.
        val_interval: epochs from one validation to the next.
        learning_rate: of the last layer below the head; of adapters; or of the head, where nothing else learns.
        rate_decay: what a layer's rate is multiplied by for the one before it.
        mirror: whether crops are mirrored along x.
        network: arguments of the network that hold in training only, such as `use_checkpoint`.
    """

    method: str
    roi_size: tuple[int, ...]
    batch_size: int
    epoch_length: int
    max_epochs: int
    val_interval: int
    learning_rate: float
    rate_decay: float
    mirror: bool
    network: Mapping[str, bool]


@dataclass(frozen=True)
class Costs:
    """Of a training step with one crop.

    Args:
        seconds: it takes; of a batch, as many times as there are crops.
        saved_bytes: kept for the backward pass.
        free_bytes: of the device.
    """

    seconds: float
    saved_bytes: int
    free_bytes: int


def planned(
    method: str,
    roi_size: Sequence[int],
    classes: Iterable[str],
    costs: Costs,
    device: torch.device,
    *,
    oriented: bool,
    network: Mapping[str, bool],
    epochs: int | None = None,
    seconds: float | None = None,
) -> Plan:
    """Decide, by the rules above.

    Args:
        method: one of `METHODS`.
        roi_size: of the source bundle's windows.
        classes: names.
        costs: see `measured`.
        device: to train on.
        oriented: whether the first axis of what the network sees runs from side to side.
        network: see `Plan`.
        epochs: as the user wants; None: by `seconds`, or the rule.
        seconds: the training may take, validation (a fifth is kept for it) included.

    Raises:
        ValueError: an unknown method, no epochs or no time.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}; got {method!r}")
    if (epochs is not None and epochs < 1) or (seconds is not None and seconds <= 0):
        raise ValueError(f"expected at least one epoch, or some time; got {epochs} epochs, {seconds} s")
    each = crops_each(2 if 2 * costs.saved_bytes < SHARE * costs.free_bytes else 1)
    epoch_length = 50 if device.type == "cpu" else 100
    if epochs is None and seconds is not None:
        steps = 0.8 * seconds / (costs.seconds * each)
        epoch_length = max(1, min(epoch_length, int(steps)))
        epochs = max(1, int(steps / epoch_length))
    epochs = epochs or EPOCHS[method]
    return Plan(
        method,
        tuple(roi_size),
        each * count(),
        epoch_length,
        epochs,
        max(1, min(10, math.ceil(epochs / 5))),
        RATES[method],
        rate_decay=1.0,
        mirror=oriented and not any(map(may_have_side, classes)),
        network=dict(network),
    )


def as_long(plan: Plan, method: str) -> Plan:
    """The same plan for another method: as many steps of as many crops."""
    return replace(plan, method=method, learning_rate=RATES[method])


def may_have_side(name: str) -> bool:
    """Whether a class may be the left or right one of two: `kidney_left`, `LKidney`, `ctx-lh`, or known by number."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    if UNNAMED.fullmatch(name) or ABBREVIATED.match(name):
        return True
    return any(SIDES.fullmatch(word) for word in re.split(r"[^A-Za-z]+", words))


def measured(network: nn.Module, channels: int, roi_size: Sequence[int], device: torch.device) -> Costs:
    """What a training step with one crop costs: the second of two, noise in, the square of the output as loss.

    Raises:
        Refusal: E-MEMORY, the device has not enough for it.
    """
    try:
        return _measured(network, channels, roi_size, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Only here the tensors are free that the error's frames held.
    network.zero_grad(set_to_none=True)
    voxels = " x ".join(map(str, roi_size))
    message = f"a training step with one crop of {voxels} voxels does not fit into the memory of {device}"
    remedy = "train on another --device, or with a smaller inferer::roi_size in the source's configs/inference.json"
    raise Refusal("E-MEMORY", message, remedy=remedy)


def _measured(network: nn.Module, channels: int, roi_size: Sequence[int], device: torch.device) -> Costs:
    network = network.to(device).train()
    image = torch.rand(1, channels, *roi_size, device=device)
    counted: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        counted[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    for _ in range(2):
        counted.clear()
        start = time.perf_counter()
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device))  # as in training
        with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(image)
        logits = output if isinstance(output, Tensor) else output[0]
        logits.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    network.zero_grad(set_to_none=True)
    saved = sum(size for place, size in counted.items() if place not in own)
    return Costs(seconds, saved, free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Memory that a device has to spare, caches of files and of torch included; if nobody knows, 4 GB."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    told = MEMINFO.read_text(encoding="ascii") if MEMINFO.exists() else ""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", told, re.MULTILINE)
    return int(found[1]) * 1024 if found else 4 * 10**9
