"""From images to grids of tokens: padding, patch embedding, interpolated position tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def pad_to_multiple(x: Tensor, multiple: int | Sequence[int]) -> Tensor:
    """Zero-pad (B, C, *S) at the end of each spatial axis to the next multiple; `crop_to` undoes it."""
    multiples = [multiple] * (x.ndim - 2) if isinstance(multiple, int) else multiple
    pads = [p for n, m in zip(reversed(x.shape[2:]), reversed(multiples), strict=True) for p in (0, -n % m)]
    return F.pad(x, pads) if any(pads) else x


def crop_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` voxels of each spatial axis of (B, C, *S).

    Axes that fit are left alone: in the backward pass even a slice of everything fills zeros and copies into them.
    """
    for axis, n in enumerate(size, start=2):
        x = x if x.shape[axis] == n else x.narrow(axis, 0, n)
    return x


class Unpatch(nn.Module):
    """A transposed convolution whose kernels are its stride and do not overlap, as a product of matrices.

    Its parameters are the convolution's, by name and shape. The CPU's kernels for transposed convolutions take three
    times as long, forwards and backwards together.

    Shape: (B, in_channels, *G) -> (B, out_channels, *G * patch_size).
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        conv = Conv["convtrans", len(patch_size)](
            in_channels, out_channels, kernel_size=tuple(patch_size), stride=tuple(patch_size)
        )
        self.patch_size = tuple(patch_size)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Each token becomes a patch of voxels."""
        batch, _, *grid = x.shape
        weight = self.weight.flatten(1).T.expand(batch, -1, -1)
        y = torch.baddbmm(self.bias.repeat_interleave(math.prod(self.patch_size))[:, None], weight, x.flatten(2))
        y = y.view(batch, -1, *self.patch_size, *grid)
        within = range(2, 2 + len(grid))
        y = y.permute(0, 1, *(axis for k in within for axis in (k + len(grid), k)))
        return y.reshape(batch, -1, *(n * p for n, p in zip(grid, self.patch_size, strict=True)))


def double(x: Tensor) -> Tensor:
    """Interpolate (B, C, *S) linearly to twice as many voxels along each axis."""
    return F.interpolate(x, scale_factor=2, mode=_LINEAR[x.ndim - 2])


def interpolate_grid(table: Tensor, grid: Sequence[int]) -> Tensor:
    """Resample a table (1, C, *G) linearly to another grid, (1, C, *grid); at its own grid it is returned as it is.

    Cells are compared by their centres over the whole extent (`align_corners=False`), so position 0.5 of the field of
    view has the same embedding at every grid size.
    """
    if tuple(table.shape[2:]) == tuple(grid):
        return table
    return F.interpolate(table.float(), size=tuple(grid), mode=_LINEAR[len(grid)], align_corners=False).to(table.dtype)


class PatchEmbedding(nn.Module):
    """Patches projected to tokens, plus a learned position (Dosovitskiy et al. 2021, arXiv:2010.11929).

    Args:
        in_channels: channels of the image.
        hidden_size: channels of a token.
        roi_size: crop the position table is learned for, in voxels, multiples of `patch_size`.
        patch_size: edge of a patch in voxels, a power of two.
        stem_widths: channels at strides 2, 4, ..., patch_size / 2. Empty: each patch is projected linearly. Otherwise a
            stem of residual blocks of stride 2 makes the tokens (Xiao et al. 2021, arXiv:2106.14881).
        dropout_rate: dropout of token channels, in training only.

    Shape: (B, in_channels, *S) -> the stem's feature maps (B, width, *S / stride), finest first, then the tokens
        (B, hidden_size, *S / patch_size); S multiples of `patch_size`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        *,
        roi_size: Sequence[int],
        patch_size: int,
        stem_widths: Sequence[int] = (),
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        dims = len(roi_size)
        self.stem = nn.ModuleList(
            UnetResBlock(dims, m, n, kernel_size=3, stride=2, norm_name="instance")
            for m, n in pairwise([in_channels, *stem_widths])
        )
        stride = patch_size >> len(self.stem)
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.proj = conv([in_channels, *stem_widths][-1], hidden_size, kernel_size=stride, stride=stride)
        grid = [n // patch_size for n in roi_size]
        self.position_embedding = nn.Parameter(torch.empty(1, hidden_size, *grid))
        nn.init.trunc_normal_(self.position_embedding, std=0.02, a=-2.0, b=2.0)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The stem's feature maps, then a grid of tokens that know where they are."""
        details = []
        for block in self.stem:
            x = block(x)
            details.append(x)
        tokens = self.proj(x)
        return [*details, self.dropout(tokens + interpolate_grid(self.position_embedding, tokens.shape[2:]))]
