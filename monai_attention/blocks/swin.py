"""Parts of Swin transformers (Liu et al. 2021, arXiv:2103.14030): attention, block, and the merging of patches.

Grids of tokens are (B, *G, C) everywhere in this file. Notation: B batch, G grid, C channels, N tokens of a window, h
heads.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.drop_path import DropPath
from torch import Tensor, nn

from monai_attention.blocks.attention import Mlp, check_heads
from monai_attention.blocks.window_attention import received_attention, window_attention
from monai_attention.blocks.windows import crop_grid, pad_grid, relative_index


class WindowAttention(nn.Module):
    """Multi-head self attention within windows, with a learned bias for each relative position.

    Args:
        hidden_size: channels C; must be a multiple of `num_heads`.
        num_heads: heads h.
        window: tokens of a window along each axis.
        shift: tokens the windows are shifted by along each axis, 0 <= shift < window.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        relative_bias: whether there is a bias for relative positions.
        shrink: what becomes of a window that is not smaller than the grid along an axis: it shrinks to the grid and is
            not shifted along that axis (True), or the grid is padded (False). A shrunken window keeps the bias of
            the first tokens of the whole one, as published SwinUNETR weights expect.
        wrap: let shifted windows attend across the border of the grid, as published nnFormer-acdc weights expect.
        dropout_rate: dropout of attention weights and of the output, in training only.
        backend: see `window_attention`.

    The grid is padded at its end to whole windows; padding tokens are attended to, and their keys and values are the
    bias of the projection, as in the paper's code.

    Shape: (B, *G, C) -> (B, *G, C).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        window: Sequence[int],
        shift: Sequence[int],
        qkv_bias: bool = True,
        relative_bias: bool = True,
        shrink: bool = False,
        wrap: bool = False,
        dropout_rate: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_heads(hidden_size, num_heads, backend)
        self.num_heads = num_heads
        self.window = tuple(window)
        self.shift = tuple(shift)
        self.shrink = shrink
        self.wrap = wrap
        self.dropout_rate = dropout_rate
        self.backend = backend
        self.position = RelativePosition(self.window, num_heads) if relative_bias else None
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens within each window."""
        dropout = self.dropout_rate if self.training else 0.0
        attend_ = functools.partial(window_attention, dropout=dropout, backend=self.backend)
        return F.dropout(self.proj(self._within_windows(x, attend_)), dropout, self.training)

    def attention_map(self, x: Tensor) -> Tensor:
        """How much attention each token gets from the others, (B, h, *G); see `attention.attention_maps`."""
        return self._within_windows(x, received_attention).movedim(-1, 1)

    def _within_windows(self, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
        """`function` of queries, keys, values and bias on whole windows, rolled if they wrap, and cropped again."""
        grid = x.shape[1:-1]
        window, shift = self.fit(grid)
        axes = list(range(1, len(grid) + 1))
        wrap = self.wrap and any(shift)
        qkv = self.qkv(pad_grid(x, window))
        if wrap:
            qkv = qkv.roll([-s for s in shift], dims=axes)
        bias = None if self.position is None else self.position(math.prod(window))
        unshifted = [0] * len(shift) if wrap else shift
        y = function(*qkv.chunk(3, dim=-1), bias, num_heads=self.num_heads, window=window, shift=unshifted)
        return crop_grid(y.roll(shift, dims=axes) if wrap else y, grid)

    def fit(self, grid: Sequence[int]) -> tuple[list[int], list[int]]:
        """Window and shift for a grid."""
        return shrunken(self.window, self.shift, grid) if self.shrink else (list(self.window), list(self.shift))


class RelativePosition(nn.Module):
    """A learned bias for each head and relative position of two tokens in a window.

    Args:
        window: tokens along each axis.
        num_heads: heads h.
    """

    index: Tensor

    def __init__(self, window: Sequence[int], num_heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(math.prod(2 * w - 1 for w in window), num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", relative_index(window), persistent=False)

    def forward(self, tokens: int) -> Tensor:
        """Bias (h, tokens, tokens) of the first tokens of the window."""
        return position_bias(self.table, self.index[:tokens, :tokens])


def position_bias(table: Tensor, index: Tensor) -> Tensor:
    """Bias (h, N, N) for pairs of tokens, from a table (rows, h) and its row for each pair, (N, N)."""
    return table.index_select(0, index.flatten()).view(*index.shape, -1).permute(2, 0, 1).contiguous()


def shrunken(window: Sequence[int], shift: Sequence[int], grid: Sequence[int]) -> tuple[list[int], list[int]]:
    """Window and shift where a window that is not smaller than the grid shrinks to it, unshifted, axis by axis."""
    fits = [n > w for n, w in zip(grid, window, strict=True)]
    size = [w if fit else n for n, w, fit in zip(grid, window, fits, strict=True)]
    return size, [s if fit else 0 for s, fit in zip(shift, fits, strict=True)]


class SwinBlock(nn.Module):
    """Pre-norm transformer block on a grid: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        attention: from a grid to a grid, (B, *G, C) -> (B, *G, C).
        hidden_size: channels C.
        mlp_size: channels inside the MLP.
        dropout_rate: in the MLP, in training only.
        drop_path_rate: how often a branch is left out for a sample, in training only (stochastic depth, Huang et al.
            2016, arXiv:1603.09382).

    Shape: (B, *G, C) -> (B, *G, C).
    """

    def __init__(
        self,
        attention: nn.Module,
        hidden_size: int,
        mlp_size: int,
        *,
        dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attn = attention
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = Mlp(hidden_size, mlp_size, dropout_rate=dropout_rate)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens within windows, then transform each."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def swin_blocks(
    hidden_size: int,
    num_heads: int,
    *,
    window: Sequence[int],
    shift: Sequence[int],
    drop_path_rates: Sequence[float],
    mlp_size: int | None = None,
    dropout_rate: float = 0.0,
    all_shifted: bool = False,
    **attention: bool | str,
) -> nn.ModuleList:
    """The blocks of a stage: windows as they are and shifted, by turns (or all shifted).

    Args:
        hidden_size: channels C.
        num_heads: attention heads.
        window: see `WindowAttention`.
        shift: of every other block, beginning with the second.
        drop_path_rates: one for each block.
        mlp_size: channels inside the MLP; None: 4 C.
        dropout_rate: everywhere, in training only.
        all_shifted: shift every block.
        attention: further arguments of `WindowAttention`.
    """
    return nn.ModuleList(
        SwinBlock(
            WindowAttention(
                hidden_size,
                num_heads,
                window=window,
                shift=shift if i % 2 or all_shifted else [0] * len(shift),
                dropout_rate=dropout_rate,
                **attention,  # type: ignore[arg-type]
            ),
            hidden_size,
            mlp_size or 4 * hidden_size,
            dropout_rate=dropout_rate,
            drop_path_rate=rate,
        )
        for i, rate in enumerate(drop_path_rates)
    )


def rising_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates from 0 to `last`, evenly over the blocks of all stages, stage by stage."""
    rates = [last * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
    return [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]


MERGING_ORDERS: dict[str, tuple[tuple[int, ...], ...]] = {
    "raster": tuple(itertools.product((0, 1), repeat=3)),
    "monai_1.5": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "monai_0.9": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "monai_0.9.1_v2": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 0), (0, 1, 1), (1, 1, 1)),
    "transmorph": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1)),
}
"""In which order the 8 neighbours of a 3-D grid are concatenated before they are merged; weights belong to one order.

`raster`: MONAI's `mergingv2` since 1.0. `monai_1.5`: MONAI's `merging` since 1.5. `monai_0.9`: MONAI's `merging` from
0.9 to 1.4, which takes two neighbours twice and two never, and which the published SwinUNETR weights were trained with.
`monai_0.9.1_v2`: MONAI 0.9.1's `mergingv2`. Grids of other dimensions have one order only, the first axis first, as
Swin was published and as every MONAI has it.
"""


class PatchMerging(nn.Module):
    """Concatenate the neighbours in cubes of 2 tokens an edge, normalise, and project to twice the channels.

    Args:
        hidden_size: channels C.
        dims: axes of the grid.
        order: one of `MERGING_ORDERS`.

    Shape: (B, *G, C) -> (B, *ceil(G / 2), 2 C); odd grids are zero-padded at the end.
    """

    def __init__(self, hidden_size: int, *, dims: int, order: str = "raster") -> None:
        super().__init__()
        if order not in MERGING_ORDERS:
            raise ValueError(f"order must be one of {tuple(MERGING_ORDERS)}; got {order!r}")
        first_axis_first = tuple(offset[::-1] for offset in itertools.product((0, 1), repeat=dims))
        self.offsets = MERGING_ORDERS[order] if dims == 3 else first_axis_first
        self.norm = nn.LayerNorm(2**dims * hidden_size)
        self.reduction = nn.Linear(2**dims * hidden_size, 2 * hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Half the tokens along each axis."""
        x = pad_grid(x, [2] * (x.ndim - 2))
        return self.reduction(self.norm(torch.cat([_every_other(x, offset) for offset in self.offsets], dim=-1)))


def _every_other(x: Tensor, offset: Sequence[int]) -> Tensor:
    """Every second token of each axis of (B, *G, C), beginning with `offset`."""
    for axis, first in enumerate(offset, start=1):
        x = x.narrow(axis, first, x.shape[axis] - first)[(slice(None),) * axis + (slice(None, None, 2),)]
    return x
