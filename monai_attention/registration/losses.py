"""What registration makes small: how unlike two images are, and how rough, folded or inconsistent a field is.

Images are (B, C, *S), a `ddf` is as in `fields`, one to three axes. All is computed in float32 at least, under autocast
too (in float64 if that comes in), has a gradient with respect to each image and field, and is better if lower. The
loss of a batch is the mean of its images' losses.

Those of images have files of their own, `local_correlation`, `mutual_information` and `self_similarity`, and are
found here as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_attention.registration.fields import compose, jacobian_determinant
from monai_attention.registration.local_correlation import LocalCorrelation, float32_at_least
from monai_attention.registration.mutual_information import LocalMutualInformation, MutualInformation
from monai_attention.registration.self_similarity import Mind

__all__ = [
    "Bending",
    "Diffusion",
    "FoldPenalty",
    "InverseConsistency",
    "LocalCorrelation",
    "LocalMutualInformation",
    "Mind",
    "MutualInformation",
]


class Diffusion(nn.Module):
    """Mean squared first difference of a field, over components, axes and voxels; 0 for translations.

    Not `monai.losses.DiffusionLoss`: in 1.6.1 it indexes with lists, about which torch warns at each call, and its
    central differences miss a field that alternates from voxel to voxel.
    """

    def forward(self, ddf: Tensor) -> Tensor:
        """Of a displacement or velocity of shape (B, n, *S), at least two voxels along each axis.

        Raises:
            ValueError: for another shape.
        """
        ddf = _field(ddf, at_least=2)
        with torch.autocast(ddf.device.type, enabled=False):
            return torch.stack([_mean_squared_difference(ddf, axis) for axis in range(2, ddf.ndim)]).mean()


class Bending(nn.Module):
    """Mean squared second difference of a field, over components, pairs of axes and voxels; 0 for affine fields.

    Rueckert et al., "Nonrigid registration using free-form deformations: application to breast MR images", IEEE
    Transactions on Medical Imaging 18 (1999), doi:10.1109/42.796284. Not `monai.losses.BendingEnergyLoss`: in 1.6.1 it
    indexes with lists, about which torch warns at each call.
    """

    def forward(self, ddf: Tensor) -> Tensor:
        """Of a displacement or velocity of shape (B, n, *S), at least three voxels along each axis.

        Raises:
            ValueError: for another shape.
        """
        ddf = _field(ddf, at_least=3)
        axes = range(2, ddf.ndim)
        with torch.autocast(ddf.device.type, enabled=False):
            terms = []
            for first in axes:
                along = ddf.diff(dim=first)
                for second in axes[first - 2 :]:  # mixed differences are the same either way round
                    terms.append((1 if first == second else 2) * _mean_squared_difference(along, second))
            return torch.stack(terms).sum() / len(axes) ** 2


class FoldPenalty(nn.Module):
    """Mean over voxels of how far the Jacobian determinant is below 0; 0 for a field without folds."""

    def forward(self, ddf: Tensor) -> Tensor:
        """Of a displacement (no velocity) of shape (B, n, *S), at least two voxels along each axis.

        Raises:
            ValueError: for another shape.
        """
        ddf = _field(ddf, at_least=2)
        with torch.autocast(ddf.device.type, enabled=False):
            return F.relu(-jacobian_determinant(ddf)).mean()


class InverseConsistency(nn.Module):
    """Mean over voxels of how far a point is off after going there and back, squared; in voxels squared."""

    def forward(self, ddf: Tensor, inverse_ddf: Tensor) -> Tensor:
        """Of two displacements of one shape (B, n, *S); beyond the grid `ddf` is as at its border.

        Raises:
            ValueError: for other shapes.
        """
        ddf, inverse_ddf = _field(ddf, at_least=1), _field(inverse_ddf, at_least=1)
        if ddf.shape != inverse_ddf.shape:
            raise ValueError(f"expected two fields of one shape; got {tuple(ddf.shape)} and {tuple(inverse_ddf.shape)}")
        with torch.autocast(ddf.device.type, enabled=False):
            return compose(ddf, inverse_ddf).square().sum(dim=1).mean()


def _field(ddf: Tensor, *, at_least: int) -> Tensor:
    if ddf.ndim != ddf.shape[1] + 2 or min(ddf.shape[2:]) < at_least:
        raise ValueError(
            f"expected a field of shape (B, n, *S) with n axes in S of at least {at_least} voxels; "
            f"got {tuple(ddf.shape)}"
        )
    return ddf.to(float32_at_least(ddf))


def _mean_squared_difference(x: Tensor, axis: int) -> Tensor:
    """Of neighbours; keeps nothing but `x` for the way back."""
    n = x.shape[axis] - 1
    return F.mse_loss(x.narrow(axis, 1, n), x.narrow(axis, 0, n))
