"""Random numbers and smooth random fields, of a generator that makes them the same every time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Draw:
    """Random numbers of one generator, on its device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.device = generator.device

    def uniform(self, low: float, high: float) -> float:
        """One number between two."""
        return low + (high - low) * float(self.rand(1))

    def normal(self) -> float:
        """One number of mean 0 and standard deviation 1."""
        return float(self.randn(1))

    def rand(self, *shape: int) -> Tensor:
        """Numbers between 0 and 1."""
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def randn(self, *shape: int) -> Tensor:
        """Numbers of mean 0 and standard deviation 1."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def tensor(self, values: Sequence[float]) -> Tensor:
        """Given numbers."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def smooth_field(channels: int, nodes: Sequence[int], size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Gaussian noise of unit variance at control points, spread smoothly over a grid, (channels, *size).

    Over the grid its standard deviation is some 0.4: between control points their values are averaged.
    """
    noise = torch.randn(1, channels, *nodes, generator=generator, device=generator.device)
    half = [max(2, n // 2) for n in size]
    field = stretched(noise, half, align_corners=True)
    field = gaussian_blur(field, [0.35 * h / n for h, n in zip(half, nodes, strict=True)])
    return stretched(field, size, align_corners=True)[0]


def stretched(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Trilinear interpolation of (B, C, X, Y, Z), as by `F.interpolate`, axis by axis: products of matrices."""
    along = [
        F.interpolate(torch.eye(n, device=x.device)[None], size=m, mode="linear", align_corners=align_corners)[0].T
        for n, m in zip(x.shape[2:], size, strict=True)
    ]
    x = along[0] @ x.flatten(3)
    x = along[1] @ x.unflatten(3, (along[1].shape[1], -1))
    return x @ along[2].T


def gaussian_blur(x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Separable Gaussian blur of (B, C, X, Y, Z), sigmas in voxels; edges are repeated."""
    for axis, sigma in enumerate(sigmas):
        if sigma <= 0.05:  # the kernel is a delta to float32 precision
            continue
        radius = math.ceil(3 * sigma)
        offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
        kernel = (-0.5 * (offsets / sigma) ** 2).exp()
        shape, pads = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = 2 * radius + 1
        pads[2 * (2 - axis)] = pads[2 * (2 - axis) + 1] = radius
        weight = (kernel / kernel.sum()).view(shape).expand(x.shape[1], *shape[1:])
        x = F.conv3d(F.pad(x, pads, mode="replicate"), weight, groups=x.shape[1])
    return x
