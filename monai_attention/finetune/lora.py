"""Low-rank adaptation: the weights stay, and a product of two thin matrices is learned beside each of some layers.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.

Differences from the paper's code, and why this is not `peft`: all linear layers and convolutions are adapted, not only
projections of attention, which in a UNETR make coarse features only (`benchmarks/README.md`). The product is added to
the weight, not to the layer's output (torch's parametrisation). There are far more tokens in a volume than a layer has
channels, so this costs next to no time and no activations, works for convolutions and for code that reads
`layer.weight`, and what is merged gives the same numbers to the last bit. The weight is the layer's whole, so queries,
keys and values that are projected together share the narrow matrix, as they do in `peft`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from monai_attention.checkpoints import mismatch
from monai_attention.errors import Refusal
from monai_attention.finetune.rates import train_only

_ADAPTER = "parametrizations.weight.0"


class LowRank(nn.Module):
    """A weight plus `scale` x `up` x `down`; `up` starts at zero, so that nothing changes at first.

    Args:
        weight: whose adapter this is, of any shape (out, ...).
        rank: columns of `up`.
        scale: of the product.

    Shape: (out, ...) -> the same.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight[0].numel()))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.register_buffer("scale", weight.new_tensor(scale))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, in full precision under autocast too: it is the same when it has been merged."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.scale * (self.up @ self.down)).view(weight.shape)


def adaptable(network: nn.Module, targets: str = "", train: Collection[str] = ()) -> dict[str, nn.Module]:
    """Linear layers and convolutions of a network, by name; see `add_lora`."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return {
        name: layer
        for name, layer in network.named_modules()
        if name and isinstance(layer, kinds) and re.search(targets, name) and f"{name}.weight" not in train
    }


def add_lora(
    network: nn.Module, *, rank: int = 4, alpha: float = 16.0, targets: str = "", train: Collection[str] = ()
) -> list[str]:
    """Give layers adapters, and freeze everything else.

    Args:
        network: changed in place. Its output stays the same, to the last bit.
        rank: of the adapters, at least 1.
        alpha: the product is scaled by alpha / rank.
        targets: regular expression that the names of layers (linear ones and convolutions) are searched for; all are
            adapted, but those whose weight is in `train`, if it is left out.
        train: parameters to be trained as they are, for example heads and input layers; see
            `monai_attention.finetune.ends.Ends`.

    Returns:
        Names of the layers.

    Raises:
        ValueError: no layer has such a name, a parameter in `train` is not there, or there are adapters already.
    """
    layers = adaptable(network, targets, train)
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    if not layers:
        message = f"no linear layer or convolution of {type(network).__name__} has a name like {targets!r}"
        raise ValueError(f"{message}; name some in targets, or train the network whole")
    if _adapted(network):
        raise ValueError("the network has adapters already; merge them with merge_lora first")
    train_only(network, train)
    for layer in layers.values():
        _attach(layer, rank, alpha / rank)
    return list(layers)


_OF_TYPES = ("__dict__", "__weakref__")
"""What a class has that is not of its body."""


def merge_lora(network: nn.Module) -> None:
    """Make plain layers of adapted ones: same output, the plain network's state dict, every parameter trainable."""
    for layer in _adapted(network).values():
        kind = type(layer)  # which deep copies share, and torch takes the weight from it
        layer.__class__ = type(
            kind.__name__, kind.__bases__, {k: v for k, v in vars(kind).items() if k not in _OF_TYPES}
        )
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    network.requires_grad_(True)


def has_lora(network: nn.Module) -> bool:
    """Whether some layer has an adapter."""
    return bool(_adapted(network))


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """Copies of what is trained of a network with adapters: these, and the parameters named in `train`; on the CPU."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    trained |= {f"{layer}.{_ADAPTER}.{part}" for layer in _adapted(network) for part in ("down", "up", "scale")}
    return {n: t.detach().cpu().clone() for n, t in network.state_dict().items() if n in trained}


def load_lora(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `lora_state` gave, all or nothing, giving layers adapters where they have none yet.

    Args:
        network: has the weights that the adapters were trained beside, which the state cannot tell.
        state: see `lora_state`.

    Raises:
        Refusal: `E-WEIGHTS-MISMATCH`, naming what is missing, unexpected and misshapen.
    """
    own, layers = network.state_dict(), dict(network.named_modules())
    suffix = f".{_ADAPTER}.down"
    ranks = {key.removesuffix(suffix): len(tensor) for key, tensor in state.items() if key.endswith(suffix)}
    wanted = {key: tensor for key, tensor in own.items() if key in state or f".{_ADAPTER}." in key}
    for name, rank in ranks.items():
        weight = own.get(f"{name}.weight")
        if weight is not None:
            shapes = {"down": (rank, weight[0].numel()), "up": (len(weight), rank), "scale": ()}
            wanted |= {f"{name}.{_ADAPTER}.{part}": torch.empty(shape) for part, shape in shapes.items()}
    if problem := mismatch(state, wanted):
        remedy = "make the network, and adapters if it has some, as they were when they were trained"
        raise Refusal("E-WEIGHTS-MISMATCH", problem, remedy=remedy)
    for name, rank in ranks.items():
        if f"{name}.weight" in own:
            _attach(layers[name], rank, 1.0)
    network.load_state_dict(state, strict=False)
    train_only(network, [name for name, _ in network.named_parameters() if name in state])


def _attach(layer: nn.Module, rank: int, scale: float) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", LowRank(weight, rank, scale))


def _adapted(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that have an adapter, by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if parametrize.is_parametrized(layer, "weight") and isinstance(layer.parametrizations.weight[0], LowRank)
    }
