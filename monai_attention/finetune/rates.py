"""What learns in fine-tuning, and how fast: all or a few layers, and rates that fall from the output to the input.

Clark et al., "ELECTRA", ICLR 2020, arXiv:2003.10555; Bao et al., "BEiT", ICLR 2022, arXiv:2106.08254: the closer a
layer is to the input, the more general is what it knows, and the less it is to change.

The rules go by the names that the networks' parts have, and by the order in which they are registered, which is that
of the data's way through the deepest level: input, encoder, skips, decoder, head.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

_LAYER = re.compile(r"(?:\w+\.blocks|encoder|decoder)\.\d+(?=\.)|\w+")


def layers(network: nn.Module) -> dict[str, list[str]]:
    """Names of the parameters, by layer, from the input to the output.

    A layer is a stage of `encoder` or `decoder`, a block where these are the encoder's own (`encoder.blocks.3`), or
    else all of a part of the network: what embeds the image, all skips, all heads. What an encoder of blocks has beside
    them (patch embedding, position table, norm) is its first layer.
    """
    found: dict[str, list[str]] = {}
    for name, _ in network.named_parameters():
        match = _LAYER.match(name)
        assert match is not None
        found.setdefault(match[0], []).append(name)
    return found


def parameter_groups(
    network: nn.Module,
    rate: float,
    *,
    decay: float = 1.0,
    own: Mapping[str, float] | None = None,
    weight_decay: float = 0.01,
) -> list[dict[str, Any]]:
    """Groups for an optimiser of torch: the last layer learns at `rate`, each one before it at `decay` times the next.

    Weights decay, but not norms, biases, gates, and position tables. What is frozen is in no group.

    Args:
        network: see `layers`.
        rate: learning rate of the last layer.
        decay: in (0, 1]; 1 is the same rate everywhere.
        own: parameters that learn at so many times `rate`, wherever they are.
        weight_decay: see `torch.optim.AdamW`.

    Returns:
        Dicts with `params`, `lr`, `weight_decay`, and the name of the `layer`.

    Raises:
        ValueError: `decay` outside (0, 1]; everything is frozen.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be in (0, 1]; got {decay}")
    parameters, own = dict(network.named_parameters()), own or {}
    groups: dict[tuple[str, float, bool], dict[str, Any]] = {}
    for above, (layer, names) in enumerate(reversed(layers(network).items())):
        for name in names:
            if not parameters[name].requires_grad:
                continue
            learns, decays = rate * own.get(name, decay**above), _is_weight(name, parameters[name])
            share = {"lr": learns, "weight_decay": weight_decay if decays else 0.0, "layer": layer}
            groups.setdefault((layer, learns, decays), {"params": [], **share})["params"].append(parameters[name])
    if not groups:
        raise ValueError(f"every parameter of {type(network).__name__} is frozen; nothing is left to learn")
    return list(groups.values())


def train_only(network: nn.Module, names: Collection[str]) -> None:
    """Freeze every parameter but some.

    Raises:
        ValueError: one of the names is no parameter's.
    """
    parameters = dict(network.named_parameters())
    if unknown := sorted(set(names) - parameters.keys()):
        raise ValueError(f"{type(network).__name__} has no parameters {unknown}; names are those of its state dict")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)


def _is_weight(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a matrix or kernel that features are multiplied by, low-rank factors of one included."""
    return parameter.ndim >= 2 and "weight" in name.split(".")
