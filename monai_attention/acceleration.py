"""MONAI's own networks on our attention: the same weights, names and numbers, in less time and memory."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch.nn.functional as F
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import BasicLayer, SwinTransformerBlock
from torch import Tensor, nn

from monai_attention.blocks.attention import attend
from monai_attention.blocks.convolution import channels_last
from monai_attention.blocks.recompute import run
from monai_attention.blocks.swin import position_bias, shrunken
from monai_attention.blocks.window_attention import window_attention
from monai_attention.blocks.windows import crop_grid, pad_grid


def accelerate(network: nn.Module) -> nn.Module:
    """A copy of a network whose Swin stages and self attention run on our core, and its convolutions in our layout.

    The copy has the same state dict, so whatever loads weights into the one loads them into the other; outputs and
    gradients are the same to rounding. Made for MONAI's `SwinUNETR` (v1, v2) and `UNETR`, as bundles build them; in a
    bundle, one override does it:

        --network '{"_target_": "monai_attention.accelerate", "network": "$@network_def.to(@device)"}'

    Args:
        network: contains `SwinUNETR`'s stages or `UNETR`'s attention somewhere. Variants of these that we do not know
            (HyenaND stages; causal, cross or relative self attention) are left as they are.

    Raises:
        ValueError: there is nothing to accelerate.
    """
    network = copy.deepcopy(network)
    holder = nn.ModuleList([network])  # so that the network itself can be replaced
    replaced = 0
    for parent in list(holder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BasicLayer) and all(isinstance(b, SwinTransformerBlock) for b in child.blocks):
                setattr(parent, name, _Stage(child).train(child.training))
            elif isinstance(child, SABlock) and _is_plain(child):
                setattr(parent, name, _SelfAttention(child).train(child.training))
            else:
                continue
            replaced += 1
    if not replaced:
        raise ValueError(f"expected MONAI's SwinUNETR or UNETR, or what contains one; got {type(network).__name__}")
    channels_last(holder[0])
    return holder[0]


class _Stage(nn.Module):
    """MONAI's `BasicLayer`, without its mask: (B, C, *G) -> the same, or merged."""

    def __init__(self, original: BasicLayer) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(block) for block in original.blocks)
        self.downsample = original.downsample

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        for block in self.blocks:
            x = run(block, x, checkpoint=block.use_checkpoint)  # type: ignore[arg-type]
        return (x if self.downsample is None else self.downsample(x)).movedim(-1, 1)


class _Block(nn.Module):
    """MONAI's `SwinTransformerBlock`, whose submodules it holds under their names: (B, *G, C) -> (B, *G, C)."""

    norm1: Any
    attn: Any
    drop_path: Any
    norm2: Any
    mlp: Any

    def __init__(self, original: SwinTransformerBlock) -> None:
        super().__init__()
        self.window = tuple(original.window_size)
        self.shift = tuple(original.shift_size)
        self.use_checkpoint = original.use_checkpoint
        for name in ("norm1", "attn", "drop_path", "norm2", "mlp"):
            setattr(self, name, getattr(original, name))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        layer, grid = self.attn, x.shape[1:-1]
        window, shift = shrunken(self.window, self.shift, grid)
        n = math.prod(window)
        q, k, v = layer.qkv(pad_grid(x, window)).chunk(3, dim=-1)
        y = window_attention(
            q,
            k,
            v,
            position_bias(layer.relative_position_bias_table, layer.relative_position_index[:n, :n]),
            num_heads=layer.num_heads,
            window=window,
            shift=shift,
            dropout=layer.attn_drop.p if self.training else 0.0,
        )
        return layer.proj_drop(layer.proj(crop_grid(y, grid)))


class _SelfAttention(nn.Module):
    """MONAI's `SABlock`, whose submodules it holds under their names: (B, N, C) -> (B, N, C)."""

    def __init__(self, original: SABlock) -> None:
        super().__init__()
        self.num_heads = original.num_heads
        self.dropout_rate = original.dropout_rate
        self.out_proj = original.out_proj
        self.qkv = original.qkv

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        bias = None
        if attn_mask is not None:  # (B, N), 0 for tokens that nobody sees
            bias = x.new_zeros(attn_mask.shape).masked_fill(attn_mask == 0, float("-inf"))[:, None, None]
        dropout = self.dropout_rate if self.training else 0.0
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v, bias=bias, dropout=dropout)
        return F.dropout(self.out_proj(y.transpose(1, 2).flatten(2)), dropout, self.training)


def _is_plain(block: SABlock) -> bool:
    """Whether a self attention is nothing but that."""
    special = (block.causal, block.rel_positional_embedding, block.save_attn, block.attention_dtype)
    return block.use_combined_linear and not any(special)
