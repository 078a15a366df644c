"""Shuffle units and shuffle attention: split channels, work on the parts, mix them; any number of spatial axes.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018, arXiv:1807.11164.
Zhang and Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks", ICASSP 2021, arXiv:2102.00240.

Feature maps are (B, C, *S) everywhere in this file.
"""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Deal out the channels of each of `groups` equal parts in turn: part 1's first, part 2's first, ..."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ConvNorm(nn.Sequential):
    """Convolution without bias, instance normalisation, and a leaky rectifier if asked for."""

    def __init__(
        self, dims: int, m: int, n: int, *, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        parts = [
            Conv["conv", dims](m, n, kernel_size=kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
            Norm["instance", dims](n, affine=True),
        ]
        super().__init__(*parts, *([nn.LeakyReLU(0.01, inplace=True)] if active else []))


class ShuffleUnit(nn.Module):
    """Half of the channels go through a bottleneck with a group convolution, the others pass; then all are shuffled.

    With another number of channels, or a stride, the other half are convolved too, channel by channel.

    Args:
        dims: spatial axes.
        in_channels: channels of the input.
        out_channels: channels of the output, even.
        groups: of the 3-wide convolution; must divide half of `out_channels`.
        stride: 1, or 2 to halve the resolution.

    Shape: (B, in_channels, *S) -> (B, out_channels, *ceil(S / stride)).
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, *, groups: int, stride: int = 1) -> None:
        super().__init__()
        half = out_channels // 2
        if out_channels % 2 or half % groups:
            raise ValueError(f"half of out_channels must be a multiple of groups; got {out_channels=}, {groups=}")
        self.splits = stride == 1 and in_channels == out_channels
        m = half if self.splits else in_channels
        self.branch = nn.Sequential(
            ConvNorm(dims, m, half, kernel=1),
            ConvNorm(dims, half, half, kernel=3, stride=stride, groups=groups, active=False),
            ConvNorm(dims, half, half, kernel=1),
        )
        self.other = (
            nn.Identity()
            if self.splits
            else nn.Sequential(
                ConvNorm(dims, m, m, kernel=3, stride=stride, groups=m, active=False),
                ConvNorm(dims, m, half, kernel=1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Split, transform, fuse, shuffle."""
        passed, worked = x.chunk(2, dim=1) if self.splits else (x, x)
        return shuffle_channels(torch.cat([self.other(passed), self.branch(worked)], dim=1), 2)


class ShuffleAttention(nn.Module):
    """Channel and spatial gates, each on one half of every group of channels; then the channels are shuffled.

    The channel gate looks at a channel's mean, the spatial gate at the channel itself, normalised; the same few weights
    serve all groups. (The paper's normalisation has weights too; the gate's own scale and offset make them needless.)

    Args:
        dims: spatial axes.
        channels: a multiple of 2 x `groups`.
        groups: sub-features.

    Shape: (B, channels, *S) -> the same.
    """

    def __init__(self, dims: int, channels: int, *, groups: int) -> None:
        super().__init__()
        if channels % (2 * groups):
            raise ValueError(f"channels must be a multiple of 2 x groups; got {channels=}, {groups=}")
        self.groups = groups
        shape = (2, 1, channels // (2 * groups), *[1] * dims)  # of the channel gate, of the spatial gate
        self.scale = nn.Parameter(torch.zeros(shape))
        self.offset = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh channels and places."""
        return self._gated(x)[0]

    def attention_map(self, x: Tensor) -> Tensor:
        """The spatial gates, (B, channels / 2, *S)."""
        return self._gated(x)[1]

    def _gated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and the spatial gates."""
        by_channel, by_place = x.unflatten(1, (self.groups, -1)).flatten(0, 1).chunk(2, dim=1)
        mean = by_channel.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        by_channel = by_channel * torch.sigmoid(self.scale[0] * mean + self.offset[0])
        gate = torch.sigmoid(self.scale[1] * _standardised(by_place) + self.offset[1])
        fused = torch.cat([by_channel, by_place * gate], dim=1).unflatten(0, (-1, self.groups)).flatten(1, 2)
        return shuffle_channels(fused, 2), gate.unflatten(0, (-1, self.groups)).flatten(1, 2)


def _standardised(x: Tensor) -> Tensor:
    """Each channel of each sample with mean 0 and variance 1; float32 at least, and of a single voxel 0."""
    return torch.group_norm(x, x.shape[1])  # unlike that of `functional` it takes single voxels
