"""Losses of a field, given what it warps: for training networks in a bundle's configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_attention.registration.fields import resize_ddf, warp
from monai_attention.registration.losses import Diffusion


class LabelOverlap(nn.Module):
    """How badly labels lie on each other after warping, and how uneven the field is.

    Soft Dice over the classes but background (Hoffmann et al. 2022, doi:10.1109/TMI.2021.3116879).

    Args:
        classes: with background, 0.
        weight: of the unevenness (`losses.Diffusion`).
        coarseness: labels and field are compared on a grid so many times coarser; the costs fall with its cube.
    """

    def __init__(self, classes: int, weight: float = 1.0, coarseness: int = 1) -> None:
        super().__init__()
        self.classes = classes
        self.weight = weight
        self.coarseness = coarseness
        self.smoothness = Diffusion()

    def forward(self, ddf: Tensor, labels: Tensor) -> Tensor:
        """Of a ddf (B, n, *S) and class numbers (B, 2, *S), the moving map first; 0 is perfect."""
        size = [-(-n // self.coarseness) for n in labels.shape[2:]]
        moving, fixed = (_parts(one, self.classes, size) for one in labels.unbind(1))
        ddf = resize_ddf(ddf, size)
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


def _parts(labels: Tensor, classes: int, size: Sequence[int]) -> Tensor:
    """Of class numbers (B, *S) the part of each voxel that each class has, (B, classes - 1, *size), but background."""
    found = (labels[:, None] == torch.arange(1, classes, device=labels.device).view(-1, *[1] * len(size))).float()
    return found if tuple(size) == tuple(labels.shape[1:]) else F.interpolate(found, size=tuple(size), mode="area")
