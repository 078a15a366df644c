"""Deformable registration of one pair by gradient descent, coarse to fine; no network is needed.

A field is sought under which the warped image resembles the fixed one and that is smooth. In the diffeomorphic form it
is the flow of a stationary velocity, which folds only by what sampling it costs (and is smoothed where it does); its
inverse is the flow back (Ashburner 2007, doi:10.1016/j.neuroimage.2007.07.007). Given a network's field, what is sought
is a correction of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_attention.registration.fields import compose, integrate, jacobian_determinant, resize_ddf, warp
from monai_attention.registration.local_correlation import LocalCorrelation
from monai_attention.registration.losses import Diffusion
from monai_attention.registration.parts import planes
from monai_attention.registration.progress import OnStep, untold

STAGE = "deformation"
"""Its name to those who look at the progress."""


@dataclass(frozen=True)
class FlowSettings:
    """How the field is sought.

    Args:
        similarity: of the warped and the fixed image, lower is better; called with these two and a mask.
        smoothness: of velocity or displacement on its own grid, lower is smoother.
        weight: of smoothness.
        factors: how many times coarser than the images each level is.
        steps: at each level.
        rate: the first step, in voxels of the field's grid.
        coarseness: of the field's grid, against that of the level's images.
        integration_steps: 0 seeks a displacement.
    """

    similarity: nn.Module = field(default_factory=LocalCorrelation)
    smoothness: nn.Module = field(default_factory=Diffusion)
    weight: float = 1.0
    factors: Sequence[int] = (4, 2, 1)
    steps: Sequence[int] = (50, 50, 30)
    rate: float = 0.15
    coarseness: int = 2
    integration_steps: int = 6


@dataclass(frozen=True)
class Optimised:
    """What was found.

    Args:
        ddf: shape (1, n, *S), the whole of it, what it began from included.
        velocity: of the correction, on its own grid; its displacement if it was not integrated.
        losses: at each step, a list a level.
    """

    ddf: Tensor
    velocity: Tensor
    losses: list[list[float]]


def optimise(
    moving: Tensor,
    fixed: Tensor,
    settings: FlowSettings,
    *,
    initial: Tensor | None = None,
    mask: Tensor | None = None,
    on_step: OnStep = untold,
) -> Optimised:
    """Seek the field that takes the moving image to the fixed one.

    Args:
        moving: shape (1, C, *S).
        fixed: shape (1, C, *S).
        settings: see `FlowSettings`.
        initial: ddf to begin from, shape (1, n, *S).
        mask: where the images are compared, above 0.5, shape (1, 1, *S); None: everywhere.
        on_step: progress.

    Raises:
        ValueError: the images differ in shape.
    """
    if moving.shape != fixed.shape:
        raise ValueError(f"images must have one shape; got {tuple(moving.shape)} and {tuple(fixed.shape)}")
    total = sum(settings.steps)
    size = fixed.shape[2:]
    velocity = fixed.new_zeros(1, len(size), *[1] * len(size))
    losses: list[list[float]] = []
    for factor, steps in zip(settings.factors, settings.steps, strict=True):
        level = _Level(moving, fixed, initial, mask, factor, settings)
        velocity = resize_ddf(velocity, level.control).requires_grad_()
        optimiser = torch.optim.Adam([velocity], lr=settings.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, settings.rate / 10)
        losses.append([])
        for _ in range(steps):
            optimiser.zero_grad()
            loss = level.loss(velocity)
            loss.backward()
            optimiser.step()
            schedule.step()
            losses[-1].append(float(loss.detach()))
            on_step(STAGE, total)
        velocity = velocity.detach()
    with torch.no_grad():
        if settings.integration_steps:
            velocity = unfolded(velocity, size, settings.integration_steps)
        ddf = whole_ddf(velocity, size, settings.integration_steps, initial)
    return Optimised(ddf, velocity, losses)


def whole_ddf(velocity: Tensor, size: Sequence[int], integration_steps: int, initial: Tensor | None = None) -> Tensor:
    """The displacement that a velocity on a coarser grid stands for, after another one if there is one."""
    correction = resize_ddf(integrate(velocity, integration_steps) if integration_steps else velocity, size)
    return correction if initial is None else compose(initial, correction)


def unfolded(velocity: Tensor, size: Sequence[int], integration_steps: int, *, rounds: int = 20) -> Tensor:
    """A velocity whose flow folds nowhere, if so many rounds of smoothing around the folds are enough.

    A flow does not fold, but sampling and interpolating it may; it is looked at on a grid twice as fine as it is used.

    Args:
        velocity: shape (1, n, *T).
        size: of the grid that the flow is used on.
        integration_steps: of the flow.
        rounds: at most so many.
    """
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(size)]
    for _ in range(rounds):
        folds = folded(whole_ddf(velocity, size, integration_steps))
        if not folds.any():
            break
        near = (_smaller(folds.float(), velocity.shape[2:]) > 0).float()
        near = (pool(near, 5, 1, 2) > 0).float()  # what moved there came from a little further away
        share = pool(near, 3, 1, 1)
        smoother = pool(velocity, 3, 1, 1, count_include_pad=False)
        velocity = velocity + share * (smoother - velocity)
    return velocity


def folded(ddf: Tensor) -> Tensor:
    """Where a field folds if it is interpolated on a grid twice as fine, (1, 1, *S); some planes at a time."""
    found = torch.zeros_like(ddf[:, :1], dtype=torch.bool)
    size = ddf.shape[2:]
    for part in planes(size):
        first, last = max(0, part.start - 1), min(size[0], part.stop + 1)  # a plane more on each side
        some = ddf[:, :, first:last]
        folds = jacobian_determinant(resize_ddf(some, [2 * n for n in some.shape[2:]])) <= 0
        coarse = _smaller(folds.float(), some.shape[2:]) > 0
        found[:, :, part] = coarse[:, :, part.start - first : part.stop - first]
    return found


class _Level:
    """Images at one resolution, and the loss of a velocity there."""

    def __init__(
        self,
        moving: Tensor,
        fixed: Tensor,
        initial: Tensor | None,
        mask: Tensor | None,
        factor: int,
        settings: FlowSettings,
    ) -> None:
        self.settings = settings
        self.size = [max(4, round(n / factor)) for n in fixed.shape[2:]]
        self.control = [max(2, -(-n // settings.coarseness)) for n in self.size]
        self.moving, self.fixed = (_smaller(x, self.size) for x in (moving, fixed))
        self.initial = None if initial is None else resize_ddf(initial, self.size)
        # A coarser voxel counts if all of it does.
        self.mask = None if mask is None else (_smaller((mask > 0.5).float(), self.size) > 0.99).float()

    def loss(self, velocity: Tensor) -> Tensor:
        ddf = whole_ddf(velocity, self.size, self.settings.integration_steps, self.initial)
        unlike = self.settings.similarity(warp(self.moving, ddf, padding="border"), self.fixed, self.mask)
        return unlike + self.settings.weight * self.settings.smoothness(velocity)


def _smaller(x: Tensor, size: Sequence[int]) -> Tensor:
    """Means over the voxels of a coarser grid."""
    if tuple(size) == tuple(x.shape[2:]):
        return x
    return F.interpolate(x, size=tuple(size), mode="area")
