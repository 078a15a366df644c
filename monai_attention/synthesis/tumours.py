"""Simulated brain tumours: a core with or without an enhancing rim, oedema around it, and what it pushes away.

Balls with a wavy surface, seated in white matter. Oedema reaches far in white matter, less far in grey, and not into
fluid. The brain around is pushed outwards as an incompressible one would be by what is put into its middle. Classes are
those of the BraTS challenges (Menze et al., "The Multimodal Brain Tumor Image Segmentation Benchmark", IEEE
Transactions on Medical Imaging 34 (2015), doi:10.1109/TMI.2014.2377694).

Positions are in mm from the middle of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_attention.synthesis.randomness import Draw, smooth_field, stretched

CORE, OEDEMA, ENHANCING = 901, 902, 903
"""Label values of what does not enhance (necrosis, or all of a core without enhancement), oedema, and what does."""

WAVES = 0.6
"""Standard deviation of a surface's waves at their control points, in radii; over the surface it is 0.4 of that."""


@dataclass(frozen=True)
class Soil:
    """Where tumours grow in a label map.

    Args:
        seats: labels in which the middle of a tumour may lie.
        reach: of oedema in each label, as a share of that in white matter; negative where no tumour grows.
        parts: the labels that become core, oedema and enhancing tumour.
    """

    seats: Tensor
    reach: Tensor
    parts: tuple[int, int, int]


@dataclass(frozen=True)
class Tumour:
    """A tumour in an image.

    Args:
        centre: in mm.
        radius_mm: of core and rim, on average.
        necrosis: radius of what does not enhance, as a share of the whole; minus infinity, all enhances; infinity,
            nothing does.
        oedema_mm: how far oedema reaches into white matter.
        mass: volume of what was pushed away, as a share of the tumour's.
        waves: two fields on the image's grid, see `smooth_field`, (2, X, Y, Z).
    """

    centre: Tensor
    radius_mm: float
    necrosis: float
    oedema_mm: float
    mass: float
    waves: Tensor

    def pushed(self, axes: Sequence[Tensor]) -> Tensor:
        """Where what is seen at each voxel was before the tumour grew: displacement in mm, (3, *S).

        Args:
            axes: positions of the voxels along each axis.
        """
        away = self._from_centre(axes)
        distance = away.square().sum(dim=0).sqrt_().clamp_min_(1e-3)
        before = (distance**3 - self.mass * self.radius_mm**3).clamp_min_(0) ** (1 / 3)
        return away * (before / distance - 1)

    def grown(self, labels: Tensor, axes: Sequence[Tensor], soil: Soil) -> Tensor:
        """Labels (*S) with the tumour in it.

        Args:
            labels: as they were; not written to.
            axes: positions of the voxels along each axis.
            soil: what grows where.
        """
        wave, other = stretched(self.waves[None], labels.shape)[0] * WAVES
        depth = self._from_centre(axes).square().sum(dim=0).sqrt_() / self.radius_mm + wave
        reach = soil.reach[labels.long()]
        beyond_mm = (depth - 1) * self.radius_mm
        solid = (reach >= 0) & (depth < 1)
        core, oedema, enhancing = soil.parts
        result = labels.clone()
        result[(reach > 0) & (beyond_mm < self.oedema_mm * (reach + other))] = oedema
        result[solid] = enhancing
        result[solid & (depth + other < self.necrosis)] = core
        return result

    def _from_centre(self, axes: Sequence[Tensor]) -> Tensor:
        return torch.stack(torch.meshgrid(*(a - c for a, c in zip(axes, self.centre, strict=True)), indexing="ij"))


def draw_tumour(labels: Tensor, axes: Sequence[Tensor], soil: Soil, draw: Draw) -> Tumour | None:
    """A tumour somewhere in a label map on the image's grid; None if there is no place for one."""
    places = torch.nonzero(torch.isin(labels, soil.seats.to(labels)))
    if not len(places):
        return None
    place = places[int(draw.uniform(0, len(places)))]
    radius = draw.uniform(5, 25)
    extent = [float(a[-1] - a[0]) for a in axes]
    nodes = [max(2, round(1.2 * mm / radius)) + 1 for mm in extent]
    kind = draw.uniform(0, 1)
    return Tumour(
        centre=torch.stack([a[i] for a, i in zip(axes, place, strict=True)]),
        radius_mm=radius,
        necrosis=draw.uniform(0.3, 0.9) if kind < 0.6 else math.copysign(math.inf, kind - 0.8),
        oedema_mm=draw.uniform(0, 25),
        mass=draw.uniform(0, 0.4),
        waves=smooth_field(2, nodes, labels.shape, draw.generator),
    )
