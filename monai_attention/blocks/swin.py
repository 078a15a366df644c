"""Parts of Swin transformers (Liu et al. 2021, arXiv:2103.14030): the block, and the merging of patches.

Grids of tokens are (B, *G, C) everywhere in this file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.drop_path import DropPath
from torch import Tensor, nn

from monai_attention.blocks.attention import Mlp
from monai_attention.blocks.window_attention import WindowAttention


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
`monai_0.9.1_v2`: MONAI 0.9.1's `mergingv2`. Grids of other dimensions have one order only, that of the raster.
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
        self.offsets = MERGING_ORDERS[order] if dims == 3 else tuple(itertools.product((0, 1), repeat=dims))
        self.norm = nn.LayerNorm(2**dims * hidden_size)
        self.reduction = nn.Linear(2**dims * hidden_size, 2 * hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Half the tokens along each axis."""
        pads = [p for n in reversed(x.shape[1:-1]) for p in (0, n % 2)]
        x = F.pad(x, (0, 0, *pads)) if any(pads) else x
        return self.reduction(self.norm(torch.cat([_every_other(x, offset) for offset in self.offsets], dim=-1)))


def _every_other(x: Tensor, offset: Sequence[int]) -> Tensor:
    """Every second token of each axis of (B, *G, C), beginning with `offset`."""
    for axis, first in enumerate(offset, start=1):
        x = x.narrow(axis, first, x.shape[axis] - first)[(slice(None),) * axis + (slice(None, None, 2),)]
    return x
