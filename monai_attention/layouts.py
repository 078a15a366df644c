"""How published networks name and shape their weights, and how these become ours.

A layout is a table of names and, where a tensor has another form, a function. Every quirk of a published network that
its weights depend on is dealt with here, or is an option of the network that is named here.

`monai_unetr` -> `FlexUNETR`: the options of MONAI's `UNETR`.

`nnformer` -> `NNFormer`: for tumours, `decoder_heads` (6, 12, 24); for organs, `roi_size` (64, 128, 128), `patch_size`
(2, 4, 4), `feature_size` 192, `num_heads` (6, 12, 24, 48); for hearts, `roi_size` (14, 160, 160), `patch_size`
(1, 4, 4), `window` ((3, 5, 5), (3, 5, 5), (7, 10, 10), (3, 5, 5)), `wrap` True; otherwise the defaults.

`transmorph`, `transmorph_bayes` -> `TransMorph`: the base form is the default. Large: `feature_size` 128, `depths`
(2, 2, 12, 2), `num_heads` (4, 4, 8, 16). Small: 48, (2, 2, 4, 2), (4, 4, 4, 4). Tiny: 6, (2, 2, 4, 2), (2, 2, 4, 4).
Lrn, Sin, NoRPE: `position` "learned", "sinusoidal", "none". Without skips: `conv_skips`, `attention_skips` False.
OASIS: `half_resolution`. Diff: `out_channels` 6, and `half_resolution`, but for "Org-Res"; its velocities become such
that time 1 gives what the authors' code gives, which leaves out the scaling of scaling and squaring. Bayes:
`dropout_rate` 0.15.

`transmorph_bspl` -> `SplineTransMorph`. `transmorph_bayes_scrambled` -> `ScrambledTransMorph`: Bayes from the authors'
folder `TransMorph/`; the file cannot tell it from that of `IXI/`, for which the weights were published.
What the fields of OASIS, diff at half resolution, and bspl stand for is told by `registration.published`.

`monai_swinunetr_1.5`, `monai_swinunetr_0.9`, `monai_swinunetr_mergingv2`, `monai_swinvit_0.9` -> `FlexSwinUNETR`: the
options of MONAI's `SwinUNETR` (`residual_stages` is its `use_v2`), and `merging`, which the file cannot tell: weights
trained with MONAI 0.9 to 1.4, all that were published, need "monai_0.9"; later ones "monai_1.5"; those trained with
`downsample="mergingv2"` "raster". `monai_swinvit_0.9` is the encoder that self-supervised training published.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from monai_attention.errors import Refusal

StateDict = dict[str, Tensor]
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]


class Converted(NamedTuple):
    """A foreign state dict made ours.

    Args:
        state: tensors by our names, all that the network has.
        dropped: foreign keys left out because the foreign network never uses them.
        fresh: our keys that the foreign network does not have (heads for deep supervision); `state` holds the network's
            own tensors for them.
    """

    state: StateDict
    dropped: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A foreign key layout.

    Args:
        known_by: a key that gives it away.
        network: name of our class.
        convert: from a foreign state dict, for a network of ours.
    """

    known_by: str
    network: str
    convert: Callable[[Mapping[str, Tensor], nn.Module], Converted]


def _renamed(key: str, rules: Rules) -> str:
    """The first rule that matches, applied."""
    for pattern, replacement in rules:
        new, count = re.subn(pattern, replacement, key)
        if count:
            return new
    return key


# MONAI's UNETR up to 1.6.1

# Tensors it carries and never reads (cross attention since 1.4, the class token before 0.8).
_MONAI_UNETR_UNUSED = re.compile(r"vit\.(blocks\.\d+\.(norm_)?cross_attn\.|patch_embedding\.cls_token$)")
_MONAI_UNETR: Rules = (
    (r"^vit\.patch_embedding\.patch_embeddings\.(?:1\.)?", "encoder.patch_embedding.proj."),
    (r"^vit\.patch_embedding\.position_embeddings$", "encoder.patch_embedding.position_embedding"),
    (r"^vit\.(blocks\.\d+)\.mlp\.linear", r"encoder.\1.mlp.fc"),
    (r"^vit\.(blocks\.\d+)\.attn\.out_proj\.", r"encoder.\1.attn.proj."),
    (r"^vit\.", "encoder."),
    (r"^encoder1\.layer\.", "input_skip."),
    (r"^encoder([234])\.", lambda m: f"skips.{int(m[1]) - 2}."),  # shallowest first
    (r"^decoder([2345])\.", lambda m: f"decoder.{5 - int(m[1])}."),  # coarsest first
    (r"^out\.", "head."),
)


def _from_monai_unetr(state: Mapping[str, Tensor], network: nn.Module) -> Converted:
    """MONAI `UNETR` -> `FlexUNETR` (patch_size 16, depth 12), either `proj_type`."""
    dropped = tuple(key for key in state if _MONAI_UNETR_UNUSED.match(key))
    named = {_renamed(key, _MONAI_UNETR): value for key, value in state.items() if key not in dropped}
    wanted = network.state_dict()
    table, patch = "encoder.patch_embedding.position_embedding", "encoder.patch_embedding.proj.weight"
    if table in named and named[table].ndim == 3 and named[table].numel() == wanted[table].numel():
        named[table] = named[table].transpose(1, 2).reshape(wanted[table].shape)  # (1, N, C) -> (1, C, *grid)
    if patch in named and named[patch].ndim == 2 and named[patch].numel() == wanted[patch].numel():
        hidden, channels, *sides = wanted[patch].shape  # a linear layer over (p1 p2 p3 c) is the same convolution
        named[patch] = named[patch].reshape(hidden, *sides, channels).movedim(-1, 1)
    return Converted(named, dropped)


# nnFormer, as published for tumours, organs and hearts

_NNFORMER_EMBEDDING = {
    **{f"proj{1 + i // 2}.conv{1 + i % 2}": f"convs.{i}" for i in range(4)},
    **{"proj1.norm1": "norms.0", "proj1.norm2": "norms.1", "proj2.norm1": "norms.2", "norm": "norms.3"},
}


def _from_nnformer(state: Mapping[str, Tensor], network: nn.Module) -> Converted:
    """`nnFormer` -> `NNFormer`."""
    coarsest = max((int(m[1]) for key in state if (m := re.match(r"decoder\.layers\.(\d+)\.", key))), default=0)
    rules: Rules = (
        (r"^model_down\.patch_embed\.(proj\d\.\w+|norm)\.", lambda m: f"embedding.{_NNFORMER_EMBEDDING[m[1]]}."),
        (r"^model_down\.layers\.(\d+)\.downsample\.reduction\.", r"encoder.\1.halving.conv."),
        (r"^model_down\.layers\.(\d+)\.downsample\.", r"encoder.\1.halving."),
        (r"^model_down\.layers\.", "encoder."),
        (r"^model_down\.norm(\d+)\.", r"encoder.\1.norm."),
        (r"^decoder\.layers\.(\d+)\.Upsample\.", lambda m: f"decoder.{coarsest - int(m[1])}."),
        (r"^decoder\.layers\.(\d+)\.blocks\.0\.(?:attn\.)?", lambda m: f"decoder.{coarsest - int(m[1])}.mix."),
        (
            r"^decoder\.layers\.(\d+)\.blocks\.(\d+)\.",
            lambda m: f"decoder.{coarsest - int(m[1])}.blocks.{int(m[2]) - 1}.",
        ),
        (r"^final\.(\d+)\.up\.", r"heads.\1."),
    )
    dropped = tuple(key for key in state if key.endswith("relative_position_index"))
    converted: StateDict = {}
    wanted = network.state_dict()
    for key, value in state.items():
        if key in dropped:
            continue
        new = _renamed(key, rules)
        if key.endswith("relative_position_bias_table"):
            new = _renamed(new, ((r"relative_position_bias_table$", "position.table"),))
            if new in wanted:
                own_index = network.get_buffer(new.replace("position.table", "position.index"))
                value = _one_row_each(value, state.get(key.replace("bias_table", "index")), own_index, key)
        converted[new] = value
    fresh = tuple(key for key in wanted if key.startswith("heads.") and key not in converted)
    return Converted({**{key: wanted[key] for key in fresh}, **converted}, dropped, fresh)


def _one_row_each(table: Tensor, index: Tensor | None, own_index: Tensor, key: str) -> Tensor:
    """The table that gives every pair of tokens by `own_index` what `table` gives it by `index`.

    nnFormer's index lets different relative positions share rows, and leaves others unused.
    """
    rows = int(own_index.max()) + 1
    if index is not None and index.shape == own_index.shape and int(index.max()) < len(table):
        foreign = torch.zeros(rows, dtype=torch.int64)
        foreign[own_index.flatten()] = index.flatten()
        if torch.equal(foreign[own_index], index):
            return table[foreign]
    message = f"{key} belongs to other windows than the network's, of {len(own_index)} tokens"
    raise Refusal(
        "E-WEIGHTS-MISMATCH", message, remedy="make the network with the windows the weights were trained with"
    )


# TransMorph, its published variants' networks

_TRANSMORPH_UNUSED = re.compile(r"relative_position_index$|(^|\.)spatial_trans\.grid$|^net\.(reg_head|sigma_head)\.")
_TRANSMORPH: Rules = (
    (r"^transformer\.patch_embed\.", "tokens."),
    (r"^transformer\.absolute_pos_embed$", "tokens.table"),
    (r"^transformer\.layers\.(\d+)\.downsample\.", r"encoder.\1.merging."),
    (r"^transformer\.layers\.(\d+)\.(.*)relative_position_bias_table$", r"encoder.\1.\2position.table"),
    (r"^transformer\.layers\.", "encoder."),
    (r"^transformer\.norm(\d+)\.", r"encoder.\1.norm."),
    (r"^up(\d)\.conv(\d)\.0\.", r"decoder.\1.convs.conv\2.conv."),
    (r"^c(\d)\.0\.", lambda m: f"decoder.{2 + int(m[1])}.skip.conv."),
    (r"^reg_head\.0\.", "head."),
    (r"^resize_conv\.(\d)\.0\.", lambda m: f"head.{2 * int(m[1])}."),
    (r"^out_layer\.", "head.4."),
)
_TRANSMORPH_DIFF_SCALE = 2**7  # seven squarings of a velocity that is not divided before


def _from_transmorph(state: Mapping[str, Tensor], network: nn.Module) -> Converted:
    """`TransMorph` of any tree, or the network inside its Bayesian form -> `TransMorph`.

    In the probabilistic form the heads for mean and (logarithm of the) variance become one with twice the channels, of
    the velocity in voxels per unit of time.
    """
    wanted = network.state_dict()
    # Convolutions for skips are there in forms without such skips, and tables in the form without relative positions,
    # which is known by its having no indices into them.
    unused = r"(net\.)?c\d\."
    if not any(key.endswith("relative_position_index") for key in state):
        unused += r"|.*relative_position_bias_table$"
    dropped, converted = [], {}
    for key, value in state.items():
        new = _renamed(key.removeprefix("net."), _TRANSMORPH)
        if _TRANSMORPH_UNUSED.search(key) or (re.match(unused, key) and new not in wanted):
            dropped.append(key)
        else:
            converted[new] = value
    if "flow_mean.weight" in converted:
        scale, larger = _TRANSMORPH_DIFF_SCALE, 2 * math.log(_TRANSMORPH_DIFF_SCALE)
        weights, biases = (
            [converted.pop(f"flow_{name}.{kind}") for name in ("mean", "sigma")] for kind in ("weight", "bias")
        )
        converted["head.weight"] = torch.cat([scale * weights[0], weights[1]])
        converted["head.bias"] = torch.cat([scale * biases[0], biases[1] + larger])
    return Converted(converted, tuple(dropped))


# MONAI's SwinUNETR

_MONAI_SWIN_ENCODER: Rules = (
    (r"^(?:swinViT\.|swin_vit\.)?patch_embed\.proj\.", "embedding."),
    (
        r"^(?:swinViT\.|swin_vit\.)?layers(\d)\.0\.(.*)relative_position_bias_table$",
        lambda m: f"encoder.{int(m[1]) - 1}.{m[2]}position.table",
    ),
    (r"^(?:swinViT\.|swin_vit\.)?layers(\d)c\.0\.layer\.", lambda m: f"encoder.{int(m[1]) - 1}.residual."),
    (r"^(?:swinViT\.|swin_vit\.)?layers(\d)\.0\.downsample\.", lambda m: f"encoder.{int(m[1]) - 1}.merging."),
    (
        r"^(?:swinViT\.|swin_vit\.)?layers(\d)\.0\.(.*)mlp\.(?:linear|fc)",
        lambda m: f"encoder.{int(m[1]) - 1}.{m[2]}mlp.fc",
    ),
    (r"^(?:swinViT\.|swin_vit\.)?layers(\d)\.0\.", lambda m: f"encoder.{int(m[1]) - 1}."),
)
_MONAI_SWIN: Rules = (
    *_MONAI_SWIN_ENCODER,
    (r"^encoder1\.layer\.", "last.skip."),
    (r"^encoder([234])\.layer\.", lambda m: f"skips.{int(m[1]) - 2}."),
    (r"^encoder10\.layer\.", "bottom."),
    (r"^decoder([2345])\.", lambda m: f"decoder.{5 - int(m[1])}."),
    (r"^decoder1\.", "last.up."),
    (r"^out\.", "last.head."),
)


def _from_monai_swin(order: str, state: Mapping[str, Tensor], network: nn.Module) -> Converted:
    """MONAI `SwinUNETR`, v1 or v2, trained with the given order of merging -> `FlexSwinUNETR`."""
    _check_merging(order, network)
    dropped = tuple(key for key in state if key.endswith("relative_position_index"))
    return Converted({_renamed(key, _MONAI_SWIN): x for key, x in state.items() if key not in dropped}, dropped)


def _from_monai_swin_encoder(order: str, state: Mapping[str, Tensor], network: nn.Module) -> Converted:
    """The encoder alone, as self-supervised training leaves it -> `FlexSwinUNETR` with a fresh decoder."""
    _check_merging(order, network)
    unused = re.compile(r"relative_position_index$|^(norm|rotation_\w+|contrastive_\w+|conv\w*)\.")
    dropped = tuple(key for key in state if unused.search(key))
    encoder = {_renamed(key, _MONAI_SWIN_ENCODER): x for key, x in state.items() if key not in dropped}
    wanted = network.state_dict()
    fresh = tuple(key for key in wanted if not key.startswith(("embedding.", "encoder.")))
    return Converted({**{key: wanted[key] for key in fresh}, **encoder}, dropped, fresh)


def _check_merging(order: str, network: nn.Module) -> None:
    """Refuse a network that merges patches in another order than the weights were trained with."""
    own = str(getattr(network, "merging", ""))
    if own != order:
        message = f"these weights merge patches in the order {order!r}, the network in {own!r}"
        raise Refusal("E-WEIGHTS-MISMATCH", message, remedy=f'make the network with merging="{order}"')


_SWIN, _SWIN_ENCODER = "swinViT.patch_embed.proj.weight", "layers1.0.blocks.0.attn.qkv.weight"

LAYOUTS: dict[str, Layout] = {
    "monai_unetr": Layout("vit.patch_embedding.position_embeddings", "FlexUNETR", _from_monai_unetr),
    "monai_swinunetr_1.5": Layout(_SWIN, "FlexSwinUNETR", functools.partial(_from_monai_swin, "monai_1.5")),
    "monai_swinunetr_0.9": Layout(_SWIN, "FlexSwinUNETR", functools.partial(_from_monai_swin, "monai_0.9")),
    "monai_swinunetr_mergingv2": Layout(_SWIN, "FlexSwinUNETR", functools.partial(_from_monai_swin, "raster")),
    "monai_swinvit_0.9": Layout(
        _SWIN_ENCODER, "FlexSwinUNETR", functools.partial(_from_monai_swin_encoder, "monai_0.9")
    ),
    "transmorph": Layout("transformer.patch_embed.proj.weight", "TransMorph", _from_transmorph),
    "transmorph_bayes": Layout("net.transformer.patch_embed.proj.weight", "TransMorph", _from_transmorph),
    "transmorph_bayes_scrambled": Layout(
        "net.transformer.patch_embed.proj.weight", "ScrambledTransMorph", _from_transmorph
    ),
    "transmorph_bspl": Layout("resize_conv.0.0.weight", "SplineTransMorph", _from_transmorph),
    "nnformer": Layout("model_down.patch_embed.proj1.conv1.weight", "NNFormer", _from_nnformer),
}
