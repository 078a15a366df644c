"""Weights learned for some classes and channels, carried over to a network for others.

Everything that fits is taken as it is. Heads are mapped by the names of classes, input layers by those of channels, and
whatever did not simply come over is named, tensor by tensor. Any other difference is refused: a network of another
width or window is not this one. (Position tables are no reason for another `roi_size`: networks interpolate them.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monai_attention.checkpoints import mismatch
from monai_attention.errors import Refusal
from monai_attention.finetune.ends import Ends
from monai_attention.finetune.labelled import same_name

_CARRIED, _FRESH = "carried over", "initialised afresh"


@dataclass(frozen=True)
class Named:
    """What goes into a network and what comes out.

    Args:
        classes: of the logits' channels, in order.
        channels: of the image, in order; an empty name is an unknown one.

    Spelling makes no difference, see `labelled.same_name`.
    """

    classes: tuple[str, ...]
    channels: tuple[str, ...]


@dataclass(frozen=True)
class Changed:
    """A tensor that was not carried over as it was.

    Args:
        name: in the state dict.
        shape: in the new network.
        origins: class or channel -> where its row comes from, as text.
    """

    name: str
    shape: tuple[int, ...]
    origins: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Adaptation:
    """What became of the weights.

    Args:
        carried: number of tensors taken as they were.
        changed: the others.
        left_out: classes and channels of the source that the new network does not have.
    """

    carried: int
    changed: tuple[Changed, ...]
    left_out: tuple[str, ...]

    def lines(self) -> list[str]:
        """For a reader: a line for every tensor that was changed, and what was left out."""
        lines = [f"{self.carried} tensors carried over as they were, {len(self.changed)} not"]
        for one in self.changed:
            by_origin: dict[str, list[str]] = {}
            for row, origin in one.origins:
                by_origin.setdefault(origin, []).append(row)
            parts = [f"{origin}: {', '.join(rows)}" for origin, rows in by_origin.items()]
            lines.append(f"{one.name} {one.shape}: {'; '.join(parts)}")
        return lines + ([f"left out: {', '.join(self.left_out)}"] if self.left_out else [])


def adapt(network: nn.Module, state: Mapping[str, Tensor], ends: Ends, *, source: Named, target: Named) -> Adaptation:
    """Load weights made for other classes and channels into a network, all that can be or nothing.

    A class of the same name keeps its rows of every head, the others keep those the network was initialised with: the
    logits of a class do not depend on which others there are. A channel of the same name keeps its weights; what is
    left of the source's channels, added up, is shared equally among what is left of the network's. So an image
    repeated over new channels without names gives the logits it gave, and a channel that is only added starts without
    influence.

    Args:
        network: receives the weights, cast to its own dtypes; made by the same `network_def` as the source.
        state: the source's weights, in our layout.
        ends: see `monai_attention.finetune.ends.find_ends`; those of the network and of the source are the same.
        source: what the weights were made for.
        target: what the network is for.

    Raises:
        Refusal: `E-WEIGHTS-MISMATCH` for every other difference; `E-BUNDLE-METADATA` if the source's names are not as
            many as its rows, or not different.
        ValueError: the same of the target's.
    """
    own = network.state_dict()
    classes, channels = _class_origins(source.classes, target.classes), _shares(source.channels, target.channels)
    _check(source, {name: tensor.shape for name, tensor in state.items()}, ends, _refuse)
    _check(target, {name: tensor.shape for name, tensor in own.items()}, ends, _reject)
    adapted, origins = dict(state), {}
    fitting = [name for name in own if name in state and _alike(state[name], own[name], ends, name)]
    for name in fitting:
        if name in ends.inputs and not _is_identity(channels):
            adapted[name] = _mixed(adapted[name], ends.inputs[name], channels)
            origins[name] = _describe_channels(source.channels, target.channels, channels)
        if name in ends.heads and classes != list(range(len(source.classes))):
            adapted[name] = _picked(adapted[name], own[name], ends.heads[name], classes)
            origins[name] = origins.get(name, ()) + _describe_classes(target.classes, classes)
    if problem := mismatch(adapted, own):
        remedy = "only in_channels and out_channels may differ; keep all else of network_def as the weights were made"
        raise Refusal("E-WEIGHTS-MISMATCH", problem, remedy=remedy)
    network.load_state_dict(adapted, strict=True)
    left = [name for i, name in enumerate(source.classes) if i not in classes]
    left += [_channel(i, name) for i, name in enumerate(source.channels) if not channels[:, i].any()]
    changed = tuple(Changed(name, tuple(own[name].shape), rows) for name, rows in origins.items())
    return Adaptation(carried=len(own) - len(changed), changed=changed, left_out=tuple(left))


# Who takes whose rows


def _class_origins(source: Sequence[str], target: Sequence[str]) -> list[int | None]:
    """For each class of the target its row in the source."""
    rows = {same_name(name): row for row, name in enumerate(source)}
    return [rows.get(same_name(name)) for name in target]


def _shares(source: Sequence[str], target: Sequence[str]) -> Tensor:
    """How much each channel of the target takes of each of the source's, (target, source), float64.

    Columns add up to 1, that is, the response to equal channels stays, unless a known channel has no successor.
    """
    known = {same_name(name): i for i, name in enumerate(source) if name}
    found = [known.get(same_name(name)) if name else None for name in target]
    rest = [i for i in range(len(source)) if i not in found]
    new = [i for i, origin in enumerate(found) if origin is None]
    shares = torch.zeros(len(target), len(source), dtype=torch.float64)
    for i, origin in enumerate(found):
        if origin is not None:
            shares[i, origin] = 1
    in_order = len(rest) == len(new) and not all((*source, *target))
    for k, i in enumerate(new):
        for j in [rest[k]] if in_order else rest:
            shares[i, j] = 1 if in_order else 1 / len(new)
    return shares


def _alike(given: Tensor, wanted: Tensor, ends: Ends, name: str) -> bool:
    """Whether two tensors differ in length along the axes of channels and classes at most."""
    free = (ends.inputs.get(name), ends.heads.get(name))
    sizes = zip(given.shape, wanted.shape, strict=False)
    return given.ndim == wanted.ndim and all(n == m or axis in free for axis, (n, m) in enumerate(sizes))


def _is_identity(shares: Tensor) -> bool:
    return shares.shape[0] == shares.shape[1] and torch.equal(shares, torch.eye(len(shares), dtype=shares.dtype))


def _mixed(tensor: Tensor, axis: int, shares: Tensor) -> Tensor:
    """Channels along an axis, mixed; in float64, so that a channel that is only moved keeps its numbers."""
    mixed = torch.tensordot(shares.to(tensor.device), tensor.double(), dims=([1], [axis]))
    return mixed.movedim(0, axis).to(torch.promote_types(tensor.dtype, torch.float32))


def _picked(tensor: Tensor, own: Tensor, axis: int, origins: Sequence[int | None]) -> Tensor:
    """The rows along an axis that have an origin, the others the network's own."""
    picked = own.clone()
    for row, origin in enumerate(origins):
        if origin is not None:
            picked.select(axis, row).copy_(tensor.select(axis, origin))
    return picked


# Words


def _describe_classes(target: Sequence[str], origins: Sequence[int | None]) -> tuple[tuple[str, str], ...]:
    return tuple((n, _FRESH if origin is None else _CARRIED) for n, origin in zip(target, origins, strict=True))


def _describe_channels(source: Sequence[str], target: Sequence[str], shares: Tensor) -> tuple[tuple[str, str], ...]:
    described = []
    for i, (name, row) in enumerate(zip(target, shares.tolist(), strict=True)):
        givers = [_channel(j, source[j]) for j, share in enumerate(row) if share]
        origin = _CARRIED if row.count(1.0) == 1 else f"{max(row):.3g} of {' + '.join(givers)}" if givers else "zero"
        described.append((_channel(i, name), origin))
    return tuple(described)


def _channel(number: int, name: str) -> str:
    return name or f"channel {number}"


# Refusals


def _check(named: Named, shapes: Mapping[str, torch.Size], ends: Ends, complain: Callable[[str], Exception]) -> None:
    for what, names, axes in (("classes", named.classes, ends.heads), ("channels", named.channels, ends.inputs)):
        known = [same_name(name) for name in names if name or what == "classes"]
        if twice := sorted({name for name in known if known.count(name) > 1}):
            raise complain(f"{what} must have different names; {twice[0]!r} is there twice")
        for tensor, axis in axes.items():
            shape = shapes.get(tensor, ())
            if len(shape) > axis and shape[axis] != len(names):
                raise complain(f"{len(names)} {what} are named, {', '.join(names)}; {tensor} {tuple(shape)} has others")


def _refuse(message: str) -> Refusal:
    return Refusal("E-BUNDLE-METADATA", f"of the weights: {message}", remedy="correct channel_def in metadata.json")


def _reject(message: str) -> ValueError:
    return ValueError(f"of the new network: {message}")
