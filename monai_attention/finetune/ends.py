"""Which tensors of a network belong to its input channels and to its output classes.

Found by making sister networks with more channels and more classes, and looking at which shapes differ: names need not
be known, convolutions and transposed ones hold their classes along different axes, and a tensor that is as long as the
number of classes by chance is told from one that is by nature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from monai_attention.bundle_build import Builder
from monai_attention.bundle_config import Config, override
from monai_attention.errors import Refusal

Make = Callable[[int, int], nn.Module]
"""(in_channels, out_channels) -> a network, on the CPU, all else being equal."""


@dataclass(frozen=True)
class Ends:
    """Both ends of a network.

    Args:
        inputs: tensor -> its axis of input channels.
        heads: tensor -> its axis of output classes, heads for deep supervision included.
    """

    inputs: Mapping[str, int]
    heads: Mapping[str, int]


def make_from(config: Config, more: Mapping[str, Any] | None = None) -> Make:
    """How to make the network of a bundle's inference configuration (`network_def`) for other channels and classes.

    Args:
        config: as `monai_attention.bundles.configurations` gives it; what it may make is decided once more.
        more: further arguments.

    Raises:
        Refusal: when a network is made: `E-BUNDLE-CONFIG` if its class does not take these arguments.
    """

    def make(in_channels: int, out_channels: int) -> nn.Module:
        arguments = {**(more or {}), "in_channels": in_channels, "out_channels": out_channels}
        changes = {f"network_def::{name}": value for name, value in arguments.items()}
        return Builder(replace(config, tree=override(config.tree, changes))).make("network_def")

    return make


def takes(network: nn.Module, name: str) -> bool:
    """Whether the class of a network has a keyword argument of this name."""
    return name in inspect.signature(type(network)).parameters


def find_ends(make: Make, in_channels: int, out_channels: int) -> Ends:
    """The ends of the network that `make(in_channels, out_channels)` gives; random numbers are left as they were.

    Raises:
        Refusal: `E-WEIGHTS-MISMATCH` if more channels or classes change a tensor in another way than by as many rows.
    """
    with torch.random.fork_rng(devices=[]):
        shapes = _shapes(make(in_channels, out_channels))

        def axes(sister: Callable[[int], nn.Module], rows: int) -> dict[str, int]:
            more, others = 1, _shapes(sister(1))
            if others.keys() != shapes.keys():  # some blocks leave a layer out where two widths are equal by chance
                more, others = 2, _shapes(sister(2))
            common = [name for name in shapes if name in others and others[name] != shapes[name]]
            return {name: _axis(name, shapes[name], others[name], rows, more) for name in common}

        return Ends(
            inputs=axes(lambda more: make(in_channels + more, out_channels), in_channels),
            heads=axes(lambda more: make(in_channels, out_channels + more), out_channels),
        )


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _axis(name: str, shape: torch.Size, other: torch.Size, rows: int, more: int) -> int:
    """The one axis along which a tensor has a row for each channel or class."""
    differ = [axis for axis, (n, m) in enumerate(zip(shape, other, strict=False)) if n != m]
    if len(shape) == len(other) and len(differ) == 1:
        axis = differ[0]
        if (shape[axis], other[axis]) == (rows, rows + more):
            return axis
    message = (
        f"{name} {tuple(shape)} is {tuple(other)} for {rows + more} instead of {rows}; expected {more} more row(s)"
    )
    remedy = "this network cannot be adapted to other channels or classes; train it from scratch"
    raise Refusal("E-WEIGHTS-MISMATCH", message, remedy=remedy)
