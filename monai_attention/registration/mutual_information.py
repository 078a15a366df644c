"""Mutual information of two images: how much the values of one tell about those of the other, in nats.

For conventions see `losses`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_attention.registration.local_correlation import ROUNDING, comparable

PART_VOXELS = 2**17
"""Voxels that are counted at a time on the CPU, for its cache; elsewhere 32 times as many."""
EMPTY = 1e-10
"""Probability far below which a bin is as good as empty."""

Range = Sequence[float] | None


class MutualInformation(nn.Module):
    """Minus the mutual information of two images, in nats.

    Mattes et al., "PET-CT image registration in the chest using free-form deformations", IEEE Transactions on Medical
    Imaging 22 (2003), doi:10.1109/TMI.2003.809072. Differs from the paper: the window is linear for both images, so
    each voxel is shared by the two nearest bins of each; two images are treated alike, and no bin is blurred.

    The histogram is in float64, and nothing of size voxels x bins is made: memory is one image for each that wants a
    gradient, and the compared voxels if they are not all.

    Args:
        bins: of each image, at least 2; their centres lie evenly from one end of the range to the other.
        warped_range: lowest and highest value to tell apart, beyond which all are as at the ends. Default: the
            extremes of the voxels compared, taken as given: the gradient does not go through them.
        fixed_range: the same of the other image.
        samples: how many voxels to compare, drawn (with repetition) from all, the same at each call; default: all.
        seed: of the draw.

    Raises:
        ValueError: for fewer bins or samples, a range without length; in use, for shapes that do not fit.
    """

    def __init__(
        self,
        bins: int = 32,
        warped_range: Range = None,
        fixed_range: Range = None,
        samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(bins, warped_range, fixed_range)
        if samples is not None and samples < 1:
            raise ValueError(f"samples must be at least 1, or None for all voxels; got {samples}")
        self.bins, self.ranges, self.samples, self.seed = bins, (warped_range, fixed_range), samples, seed

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compare.

        Args:
            warped: shape (B, C, *S).
            fixed: same shape.
            mask: shape (B, 1, *S); where it is 0 the images may be anything, even NaN.

        Returns:
            A scalar from -log(bins) to 0.
        """
        warped, fixed, mask = comparable(warped, fixed, mask)
        return -_mean_information(warped, fixed, self._voxels(fixed, mask), None, self.bins, self.ranges)

    def _voxels(self, fixed: Tensor, mask: Tensor | None) -> list[Tensor | None]:
        """Which to compare in each image of the batch, None for all."""
        voxels = _inside(fixed, mask)
        if self.samples is None:
            return voxels
        drawn: list[Tensor | None] = []
        for inside in voxels:
            n = fixed[0, 0].numel() if inside is None else len(inside)
            generator = torch.Generator().manual_seed(self.seed)
            one = torch.randint(max(1, n), (self.samples if n else 0,), generator=generator).to(fixed.device)
            drawn.append(one if inside is None else inside[one])
        return drawn


class LocalMutualInformation(nn.Module):
    """Minus the mutual information of two images within patches, in nats, in the mean.

    Patches lie side by side; the last along an axis may be smaller. Each counts by its voxels (in the mask): it is what
    the images tell of each other to one who knows in which patch he looks. Contrast may change from patch to patch.
    Even in noise some information is found, about (bins - 1)^2 / (2 * voxels of a patch) nats.

    Bins and ranges are as in `MutualInformation`, those of the whole image.

    Args:
        patch_size: side of the patches in voxels, at least 2.
        bins: see `MutualInformation`.
        warped_range: see `MutualInformation`.
        fixed_range: see `MutualInformation`.

    Raises:
        ValueError: for a smaller patch, fewer bins, a range without length; in use, for shapes that do not fit.
    """

    def __init__(self, patch_size: int, bins: int = 16, warped_range: Range = None, fixed_range: Range = None) -> None:
        super().__init__()
        _check(bins, warped_range, fixed_range)
        if patch_size < 2:
            raise ValueError(f"patch_size must be at least 2 voxels, as one tells nothing; got {patch_size}")
        self.patch_size, self.bins, self.ranges = patch_size, bins, (warped_range, fixed_range)

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compare; shapes, mask and result as in `MutualInformation`."""
        warped, fixed, mask = comparable(warped, fixed, mask)
        patch = torch.zeros((), dtype=torch.long, device=fixed.device)
        for n in fixed.shape[2:]:
            along = torch.arange(n, device=fixed.device) // self.patch_size
            patch = patch[..., None] * -(-n // self.patch_size) + along
        return -_mean_information(warped, fixed, _inside(fixed, mask), patch.flatten(), self.bins, self.ranges)


def _check(bins: int, *ranges: Range) -> None:
    if bins < 2:
        raise ValueError(f"bins must be at least 2; got {bins}")
    for given in ranges:
        if given is not None and not (len(given) == 2 and given[0] < given[1]):
            raise ValueError(f"a range must be [lowest, highest], the first below the second; got {given}")


def _inside(fixed: Tensor, mask: Tensor | None) -> list[Tensor | None]:
    """Indices of the voxels in the mask, for each image of the batch; None if that is all."""
    return [None] * len(fixed) if mask is None else [one.flatten().nonzero()[:, 0] for one in mask]


def _mean_information(
    warped: Tensor,
    fixed: Tensor,
    voxels: list[Tensor | None],
    patch: Tensor | None,
    bins: int,
    ranges: tuple[Range, Range],
) -> Tensor:
    """Mean over images and channels.

    Args:
        warped: shape (B, C, *S).
        fixed: same shape.
        voxels: for each image of the batch the flat indices of those that count.
        patch: in which each voxel is, by flat index; None if there is only one.
        bins: of each image.
        ranges: of each image.
    """
    found = []
    for images, chosen in zip(zip(warped, fixed, strict=True), voxels, strict=True):
        where = patch if patch is None or chosen is None else patch[chosen]
        for channels in zip(*images, strict=True):
            x, y = (one.flatten() if chosen is None else one.flatten()[chosen] for one in channels)
            scales = [_scale(values.detach(), given, bins) for values, given in zip((x, y), ranges, strict=True)]
            patches = 1 if patch is None else int(patch[-1]) + 1
            with torch.autocast(x.device.type, enabled=False):
                found.append(_information(_JointHistogram.apply(x, y, where, patches, scales, bins)))
    return torch.stack(found).mean().to(warped.dtype)


def _scale(values: Tensor, given: Range, bins: int) -> tuple[Tensor, Tensor]:
    """Value at the centre of the first bin, and bins for each unit of value; 0 if there is nothing but rounding."""
    if not len(values):
        return values.new_zeros(()), values.new_zeros(())
    low, high = values.aminmax() if given is None else values.new_tensor(given)
    contrast = high - low
    is_flat = contrast <= ROUNDING * torch.maximum(low.abs(), high.abs())
    return low, torch.where(is_flat, 0, (bins - 1) / contrast)


def _information(histogram: Tensor) -> Tensor:
    """Mutual information in the mean over patches, each by its voxels; from a histogram (patches, bins, bins)."""
    voxels = histogram.sum(dim=(1, 2), keepdim=True)
    joint = histogram / voxels.clamp(min=1)
    alone = joint.sum(dim=2, keepdim=True) * joint.sum(dim=1, keepdim=True)
    # Of an empty bin the logarithm is 0, or so negative that a voxel hardly goes there, but never infinite.
    terms = joint * ((joint + EMPTY).log() - (alone + EMPTY).log())
    return (terms * voxels).sum() / voxels.sum().clamp(min=1)


class _JointHistogram(torch.autograd.Function):
    """How many voxels have which values in both images, (patches, bins, bins), float64.

    A voxel t of the way from bin i to the next and s of the way from j to the next counts (1 - t)(1 - s) in (i, j),
    t(1 - s) in (i + 1, j), and so on. So it is enough to sum 1, t, s and ts for each (i, j) and share them out in the
    end.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        patch: Tensor | None,
        patches: int,
        scales: list[tuple[Tensor, Tensor]],
        bins: int,
    ) -> Tensor:
        ctx.save_for_backward(x, y, patch)
        ctx.scales, ctx.bins = scales, bins
        sums = x.new_zeros(4, patches * bins**2, dtype=torch.float64)
        for part in _parts(x):
            index, t, s = _places(x, y, patch, part, scales, bins)
            for total, weights in zip(sums, (torch.ones_like(t), t, s, t * s), strict=True):
                total.index_add_(0, index, weights.double())
        one, t, s, ts = sums.view(4, patches, bins, bins)
        histogram = one - t - s + ts
        histogram[:, 1:] += (t - ts)[:, :-1]
        histogram[:, :, 1:] += (s - ts)[:, :, :-1]
        histogram[:, 1:, 1:] += ts[:, :-1, :-1]
        return histogram

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, patch = ctx.saved_tensors
        bins = ctx.bins
        # What it changes to go from one bin to the next, of either image.
        by_x = F.pad(upstream.diff(dim=1), (0, 0, 0, 1)).flatten().to(x.dtype)
        by_y = F.pad(upstream.diff(dim=2), (0, 1)).flatten().to(x.dtype)
        found = [
            torch.empty_like(one) if needed else None for one, needed in zip((x, y), ctx.needs_input_grad, strict=False)
        ]
        for part in _parts(x):
            index, t, s = _places(x, y, patch, part, ctx.scales, bins)
            for gradient, image, slope, step, across, (low, scale) in zip(
                found, (x, y), (by_x, by_y), (1, bins), (s, t), ctx.scales, strict=True
            ):
                if gradient is not None:
                    bin_ = (image[part] - low) * scale
                    within = (bin_ >= 0) & (bin_ <= bins - 1)
                    gradient[part] = torch.lerp(slope[index], slope[index + step], across) * scale * within
        return *found, None, None, None, None


def _parts(x: Tensor) -> Iterator[slice]:
    step = PART_VOXELS * (1 if x.device.type == "cpu" else 32)
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def _places(
    x: Tensor, y: Tensor, patch: Tensor | None, part: slice, scales: list[tuple[Tensor, Tensor]], bins: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of voxels: the bin below in the flat histogram, and how far they are from there to the next, 0 to 1."""
    index: Tensor | int = 0 if patch is None else patch[part]
    ways = []
    for values, (low, scale) in zip((x, y), scales, strict=True):
        place = ((values[part] - low) * scale).clamp_(0, bins - 1)
        below = place.long().clamp_(0, bins - 2)  # of NaN, too
        index = index * bins + below
        ways.append(place - below)
    assert isinstance(index, Tensor)
    return index, ways[0], ways[1]
