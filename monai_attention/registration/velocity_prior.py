"""The loss that keeps a probabilistic velocity near smooth ones.

Dalca et al., "Unsupervised learning of probabilistic diffeomorphic registration for images and surfaces", Medical Image
Analysis 57 (2019), doi:10.1016/j.media.2019.07.006; of TransMorph-diff (Chen et al. 2022,
doi:10.1016/j.media.2022.102615).

Differences from the authors' code: it is the Kullback-Leibler divergence as the paper states it. VoxelMorph's code
takes half of the mean's term and averages it over the axes, `mean_lambda = prior_lambda / (2 n)` here, but for the
border; TransMorph-diff's takes the derivative of each component along its own axis only, and of the integrated field.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class VelocityPriorLoss(nn.Module):
    """Divergence of a velocity's distribution from its prior, for each voxel of its grid, but for a constant.

    The prior is normal with the precision prior_lambda (D - A): D counts a voxel's neighbours, A is 1 for neighbours.
    Components, and voxels of the predicted distribution, are independent. The paper's loss is the sum of this and of
    mean((warped - fixed)**2) / (2 image_sigma**2).

    Args:
        prior_lambda: above 0; the larger, the smoother.
        mean_lambda: the same for the mean alone, where it is to be weighted apart; None: `prior_lambda`.

    Shape: mean and logarithm of the variance, (B, n, *T) both, see `RegistrationModel.predict` -> scalar.
    """

    def __init__(self, prior_lambda: float = 10.0, mean_lambda: float | None = None) -> None:
        super().__init__()
        self.prior_lambda = prior_lambda
        self.mean_lambda = prior_lambda if mean_lambda is None else mean_lambda

    def forward(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The divergence, of the batch on average."""
        if mean.shape != log_variance.shape:
            raise ValueError(
                f"expected mean and log_variance of one shape; got {tuple(mean.shape)}, {tuple(log_variance.shape)}"
            )
        exact = torch.promote_types(mean.dtype, torch.float32)
        mean, log_variance = mean.to(exact), log_variance.to(exact)
        spread = self.prior_lambda * _neighbours(mean.shape[2:], like=mean) * log_variance.exp() - log_variance
        rough = torch.stack([mean.diff(dim=axis).square().sum() for axis in range(2, mean.ndim)]).sum()
        return (spread.sum() + self.mean_lambda * rough) / (2 * mean[:, 0].numel())


def _neighbours(size: Sequence[int], *, like: Tensor) -> Tensor:
    """How many neighbours each voxel has, shape `size`."""
    total = like.new_zeros(tuple(size))
    for axis, n in enumerate(size):
        along = like.new_full((n,), 2.0)
        along[0] -= 1
        along[-1] -= 1
        total += along.view([n if i == axis else 1 for i in range(len(size))])
    return total
