"""Losses of a field, given what it warps: for training networks in a bundle's configuration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_attention.registration.fields import warp
from monai_attention.registration.losses import Diffusion


class LabelOverlap(nn.Module):
    """How badly labels lie on each other after warping, and how uneven the field is.

    Soft Dice over the classes but background (Hoffmann et al. 2022, doi:10.1109/TMI.2021.3116879).

    Args:
        classes: with background, 0.
        weight: of the unevenness (`losses.Diffusion`).
    """

    def __init__(self, classes: int, weight: float = 1.0) -> None:
        super().__init__()
        self.classes = classes
        self.weight = weight
        self.smoothness = Diffusion()

    def forward(self, ddf: Tensor, labels: Tensor) -> Tensor:
        """Of a ddf (B, n, *S) and class numbers (B, 2, *S), the moving map first; 0 is perfect."""
        moving, fixed = (_one_hot(one, self.classes) for one in labels.unbind(1))
        warped = warp(moving, ddf)
        axes = tuple(range(2, warped.ndim))
        both, either = (warped * fixed).sum(axes), warped.sum(axes) + fixed.sum(axes)
        there = either > 0  # a class that neither has says nothing
        dice = (2 * both + 1) / (either + 1)
        return 1 - (dice * there).sum() / there.sum().clamp_min(1) + self.weight * self.smoothness(ddf)


class Likeness(nn.Module):
    """How unlike the warped and the fixed image are, and how uneven the field is: for images without labels.

    Args:
        similarity: of two images (B, 1, *S), lower is better.
        weight: of the unevenness.
    """

    def __init__(self, similarity: nn.Module, weight: float = 1.0) -> None:
        super().__init__()
        self.similarity = similarity
        self.weight = weight
        self.smoothness = Diffusion()

    def forward(self, ddf: Tensor, images: Tensor) -> Tensor:
        """Of a ddf (B, n, *S) and images (B, 2, *S), the moving one first."""
        moving, fixed = images[:, :1], images[:, 1:]
        return self.similarity(warp(moving, ddf, padding="border"), fixed) + self.weight * self.smoothness(ddf)


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """Class numbers (B, *S) as (B, classes - 1, *S), background left out."""
    found = F.one_hot(labels.long(), classes).movedim(-1, 1)[:, 1:]
    return found.to(torch.float32)
