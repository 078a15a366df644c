"""An image and where it lies in the world: what affine registration and the pipeline work on.

Affines are float64, shape (4, 4), voxel index -> RAS mm. Points are (B, 3, *S), RAS mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_attention.registration.fields import identity
from monai_attention.registration.sampling import sample

SAMPLED = 1_000_000
"""Voxels that percentiles are taken of."""


@dataclass(frozen=True)
class Scan:
    """An image in the world.

    Args:
        values: shape (1, C, X, Y, Z), float32.
        affine: shape (4, 4), float64, on the CPU.
    """

    values: Tensor
    affine: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(self.values.shape[2:])

    @property
    def spacing(self) -> Tensor:
        """Distance of neighbouring voxels along each axis, mm, shape (3,)."""
        return self.affine[:3, :3].norm(dim=0)

    def points(self) -> Tensor:
        """Where each voxel lies, shape (1, 3, X, Y, Z)."""
        return transform(identity(self.shape, like=self.values)[None], self.affine)

    def at(self, points: Tensor, *, mode: str = "linear", padding: str = "zeros") -> Tensor:
        """Values at points (1, 3, *S), shape (1, C, *S); see `sampling.sample`."""
        return sample(self.values, self.voxels(points), mode=mode, padding=padding)

    def voxels(self, points: Tensor) -> Tensor:
        """Points as coordinates in voxels."""
        return transform(points, torch.linalg.inv(self.affine))

    def inside(self, points: Tensor) -> Tensor:
        """How far inside the field of view points are: 1 inside, 0 a voxel outside, in between between; (1, 1, *S)."""
        places = self.voxels(points)
        ends = places.new_tensor(self.shape).view(1, -1, *[1] * (places.ndim - 2)) - 1
        outside = torch.maximum(-places, places - ends).amax(dim=1, keepdim=True)
        return (1 - outside).clamp(0, 1)


def transform(points: Tensor, matrix: Tensor) -> Tensor:
    """Points (B, n, *S) through a matrix (n + 1, n + 1)."""
    n = points.shape[1]
    # By sums: matrix products may be rounded to fewer digits, by autocast or on GPUs.
    components = points.unbind(1)
    rows = [
        sum((matrix[i, j].to(points) * components[j] for j in range(n)), start=matrix[i, n].to(points))
        for i in range(n)
    ]
    return torch.stack(rows, dim=1)


def part_of(scan: Scan, box: Sequence[slice]) -> Scan:
    """A box of a scan, or every so many of its voxels; nothing is copied.

    Args:
        scan: any.
        box: along each axis; steps are positive.
    """
    starts, _, steps = zip(*(one.indices(n) for one, n in zip(box, scan.shape, strict=True)), strict=True)
    affine = scan.affine.clone()
    affine[:3, 3] += affine[:3, :3] @ affine.new_tensor(starts)
    affine[:3, :3] *= affine.new_tensor(steps)
    return Scan(scan.values[:, :, box[0], box[1], box[2]], affine)


def coarser(scan: Scan, spacing_mm: float) -> Scan:
    """The same with voxels of about `spacing_mm`, each the mean of what it covers; finer axes only are changed."""
    size = [
        max(min(2, n), round(n * s / max(s, spacing_mm)))
        for n, s in zip(scan.shape, scan.spacing.tolist(), strict=True)
    ]
    if tuple(size) == scan.shape:
        return scan
    return Scan(F.interpolate(scan.values, size=tuple(size), mode="area"), affine_of_grid(scan, size))


def affine_of_grid(scan: Scan, size: Sequence[int]) -> Tensor:
    """Affine of a grid of another size over the same field of view, edge to edge."""
    factors = torch.tensor([n / m for n, m in zip(scan.shape, size, strict=True)], dtype=torch.float64)
    step = torch.diag(torch.cat([factors, factors.new_ones(1)]))
    step[:3, 3] = (factors - 1) / 2
    return scan.affine @ step


def normalised(scan: Scan, lower: float = 0.5, upper: float = 99.5) -> Scan:
    """The same with these percentiles at 0 and 1, clipped; of at most a million voxels, the same ones each time.

    Raises:
        ValueError: all voxels are the same.
    """
    values = scan.values.flatten()
    if len(values) > SAMPLED:  # by the golden ratio, so that they are spread evenly over planes of any size
        places = torch.arange(SAMPLED, dtype=torch.float64) * 0.6180339887498949
        values = values[(places.frac() * len(values)).long().to(values.device)]
    values = values.sort().values
    low, high = (values[round(p / 100 * (len(values) - 1))] for p in (lower, upper))
    if not high > low:  # almost all is one value: a small bright thing, perhaps
        low, high = scan.values.min(), scan.values.max()
    if not high > low:
        raise ValueError("all voxels have the same value; there is nothing to register")
    return replace(scan, values=(scan.values - low).div_(high - low).clamp_(0, 1))
