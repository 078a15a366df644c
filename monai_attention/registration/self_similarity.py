"""Self-similarity of images: what an image looks like around each voxel, whatever its contrast.

For conventions see `losses`.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_attention.registration.local_correlation import comparable, float32_at_least, moving_sum


class Mind(nn.Module):
    """Mean squared difference of two images' self-similarities, see `mind_ssc`; from 0 to 1.

    It compares what an image looks like around a voxel instead of its values: for images of different modalities.
    Memory is about 100 times that of an image in three dimensions: use it on a coarse grid.

    Args:
        radius: see `mind_ssc`.
        dilation: see `mind_ssc`.
    """

    def __init__(self, radius: int = 2, dilation: int = 2) -> None:
        super().__init__()
        self.radius, self.dilation = radius, dilation

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compare.

        Args:
            warped: shape (B, C, *S), two or three axes.
            fixed: same shape.
            mask: shape (B, 1, *S), 0 at voxels that do not count. Those around them still see what is there.

        Returns:
            A scalar from 0 to 1.

        Raises:
            ValueError: for shapes that do not fit.
        """
        warped, fixed, mask = comparable(warped, fixed, mask)
        one, other = (mind_ssc(image, self.radius, self.dilation) for image in (warped, fixed))
        with torch.autocast(warped.device.type, enabled=False):
            if mask is None:
                return F.mse_loss(one, other)
            squares = (one - other).square().mean(dim=1, keepdim=True) * mask
            return (squares.flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp(min=1)).mean()


def mind_ssc(image: Tensor, radius: int = 2, dilation: int = 2) -> Tensor:
    """How alike the neighbours of each voxel are: an image's self-similarity context.

    Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using self-similarities",
    MICCAI 2013, doi:10.1007/978-3-642-40811-3_24. The 2n neighbours of a voxel are compared, patch by patch, with
    those at right angles to them. a * image + b has the same, for any a but 0. Beyond the image is what is at its
    border.

    Args:
        image: shape (B, C, *S), two or three axes (along one axis there are no right angles).
        radius: of the patches; their side is 2 * radius + 1 voxels.
        dilation: how far the neighbours are, in voxels.

    Returns:
        Shape (B, C * K, *S), K = 2n(n - 1): 4 in two, 12 in three dimensions. From 0 to 1, 1 for the pair most alike;
        all 1 where the image is constant.

    Raises:
        ValueError: for another number of axes, or if radius < 0 or dilation < 1.
    """
    n = image.ndim - 2
    if n not in (2, 3) or radius < 0 or dilation < 1:
        raise ValueError(
            "expected an image of shape (B, C, *S) with two or three axes in S, radius >= 0 and dilation >= 1; got "
            f"shape {tuple(image.shape)}, radius {radius}, dilation {dilation}"
        )
    with torch.autocast(image.device.type, enabled=False):
        wide = F.pad(image.to(float32_at_least(image)), [dilation] * 2 * n, mode="replicate")
        neighbours = []
        for axis, side in itertools.product(range(n), (0, 2 * dilation)):
            neighbour = wide
            for other, size in enumerate(image.shape[2:]):
                neighbour = neighbour.narrow(2 + other, side if other == axis else dilation, size)
            neighbours.append((axis, neighbour))
        distances = []
        for (axis, one), (other_axis, another) in itertools.combinations(neighbours, 2):
            if axis != other_axis:
                squares = F.pad((one - another).square(), [radius] * 2 * n, mode="replicate")
                distances.append(_WindowMean.apply(squares, 2 * radius + 1))
        return _Likeness.apply(torch.stack(distances, dim=2)).flatten(1, 2)


class _Likeness(torch.autograd.Function):
    """From distances (B, C, K, *S) how alike pairs are: exp(-(distance - least) / mean of these differences).

    The mean is kept within a factor of 1000 of what is typical of the image: noise must not look like structure.
    Only the result and two volumes are kept for the way back, which matters with 12 volumes for each image.
    """

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        least, ctx.least_at = distance.min(dim=2, keepdim=True)
        found = distance - least
        scale = found.mean(dim=2, keepdim=True)
        typical = scale.mean(dim=list(range(3, scale.ndim)), keepdim=True)
        ctx.scale = scale.clamp(typical * 1e-3, typical * 1e3) + 1e-30
        # How the scale changes with the mean here, and with the typical one.
        ctx.within = (scale >= typical * 1e-3) & (scale <= typical * 1e3)
        ctx.share = torch.where(ctx.within, 0, torch.where(scale < typical, 1e-3, 1e3)).to(scale)
        found.div_(-ctx.scale).exp_()
        ctx.save_for_backward(found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (found,) = ctx.saved_tensors
        gradient = upstream * found
        by_scale = -torch.xlogy(gradient, found).sum(dim=2, keepdim=True) / ctx.scale
        by_typical = (by_scale * ctx.share).mean(dim=list(range(3, found.ndim)), keepdim=True)
        by_mean = by_scale * ctx.within + by_typical
        gradient.div_(-ctx.scale).add_(by_mean / found.shape[2])
        return gradient.scatter_add_(2, ctx.least_at, -gradient.sum(dim=2, keepdim=True))


class _WindowMean(torch.autograd.Function):
    """Mean over windows that are wholly inside, shape (B, C, *S): each axis becomes kernel_size - 1 shorter."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernel_size: int) -> Tensor:
        ctx.kernel_size = kernel_size
        for axis in range(2, values.ndim):
            values = moving_sum(values, axis, kernel_size)
        return values / kernel_size ** (values.ndim - 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        wide = F.pad(upstream, [ctx.kernel_size - 1] * 2 * (upstream.ndim - 2))
        return _WindowMean.apply(wide, ctx.kernel_size), None
