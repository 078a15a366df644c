"""Local squared correlation of two images, in little memory and without loss of precision.

For conventions see `losses`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FLOOR = 1e-5
"""Share of an image's variance that is added to the variance of each of its windows."""
ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Contrast, as a share of an image's mean, that may be nothing but rounding."""
SLAB_VOXELS = 2**17
"""Voxels that local correlation takes at a time on the CPU, for its cache; elsewhere 32 times as many."""


class LocalCorrelation(nn.Module):
    """1 - the mean squared correlation of two images in a window around each voxel.

    Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Medical Image Analysis 12
    (2008), doi:10.1016/j.media.2007.06.004. Each window may have its own contrast, inverted too.

    Windows end at the border of the image and of the mask: nothing is padded. A window without contrast knows nothing:
    1e-5 of the image's variance is added to that of each window, so there the squared correlation falls smoothly to 0.
    A constant image has loss 1 and gradient 0.

    Sums are in float64, because it is small differences of large sums that take this loss out of its bounds in
    float32. The gradient is found along with the value, slab by slab: memory is one image for each that wants a
    gradient, and about 100 MB on the CPU.

    Args:
        kernel_size: side of the window in voxels, odd, at least 3.

    Raises:
        ValueError: for another kernel size; in use, for shapes that do not fit.
    """

    def __init__(self, kernel_size: int = 9) -> None:
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that there is a centre, and at least 3; got {kernel_size}")
        self.kernel_size = kernel_size

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compare.

        Args:
            warped: shape (B, C, *S).
            fixed: same shape.
            mask: shape (B, 1, *S); where it is 0 the images may be anything, even NaN.

        Returns:
            A scalar from 0 to 1.
        """
        warped, fixed, mask = comparable(warped, fixed, mask)
        wanted = [torch.is_grad_enabled() and image.requires_grad for image in (warped, fixed)]
        with torch.autocast(warped.device.type, enabled=False):
            return 1 - _SquaredCorrelation.apply(warped, fixed, mask, self.kernel_size, wanted)


def comparable(warped: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both images in one precision, float32 at least, and the mask as booleans.

    Raises:
        ValueError: unless the images have one shape (B, C, *S), and the mask (B, 1, *S).
    """
    if warped.shape != fixed.shape or warped.ndim not in (3, 4, 5):
        raise ValueError(
            "expected two images of one shape (B, C, *S) with one to three axes in S; got "
            f"{tuple(warped.shape)} and {tuple(fixed.shape)}"
        )
    expected = (len(fixed), 1, *fixed.shape[2:])
    if mask is not None and mask.shape != expected:
        raise ValueError(f"expected a mask of shape {expected}, one channel for all; got {tuple(mask.shape)}")
    dtype = torch.promote_types(float32_at_least(warped), float32_at_least(fixed))
    return warped.to(dtype), fixed.to(dtype), None if mask is None else mask != 0


def float32_at_least(x: Tensor) -> torch.dtype:
    """What to compute with."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _SquaredCorrelation(torch.autograd.Function):
    """Mean squared correlation over windows; its gradients are found with it and kept for the way back."""

    @staticmethod
    def forward(
        ctx: Any, warped: Tensor, fixed: Tensor, mask: Tensor | None, kernel_size: int, wanted: list[bool]
    ) -> Tensor:
        value, gradients = _Pair(warped, fixed, mask, kernel_size).compare(wanted)
        ctx.wanted = wanted
        ctx.save_for_backward(*gradients)
        return value.to(warped.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = iter(ctx.saved_tensors)
        return *(upstream * next(gradients) if wanted else None for wanted in ctx.wanted), None, None, None


class _Pair:
    """Two images, and what windows see of them, some planes of the first axis at a time.

    Of a window: n voxels, means m, variances v, covariance c. With S for sums over windows, P = 2 c / (v_a v_b n) and
    Q = c^2 / (v_a^2 v_b n), the sum of c^2 / (v_a v_b) over all windows has the gradient
    b S(P) - 2 a S(Q) - S(P m_b - 2 Q m_a) with respect to image a: a second round of windows, half a window behind.
    """

    def __init__(self, warped: Tensor, fixed: Tensor, mask: Tensor | None, kernel_size: int) -> None:
        self.images, self.mask, self.kernel_size = (warped, fixed), mask, kernel_size
        self.shape, size = fixed.shape, fixed.shape[2:]
        self.step = max(1, SLAB_VOXELS * (1 if fixed.device.type == "cpu" else 32) // fixed[:, :, :1].numel())
        ones = [F.pad(fixed.new_ones(n, dtype=torch.float64), [kernel_size // 2] * 2) for n in size]
        self.reach = [
            moving_sum(one, 0, kernel_size).view(-1, *[1] * (len(size) - 1 - axis)) for axis, one in enumerate(ones)
        ]
        self.voxels = fixed.new_full((), math.prod(size), dtype=torch.float64) if mask is None else self._sum(mask)
        self.voxels = self.voxels.clamp(min=1)
        self.means: list[Tensor | float] = [0.0, 0.0]
        self.floors = []
        for i in range(2):
            mean = sum(self._sum(self._centred(i, planes)) for planes in self._slabs()) / self.voxels
            self.means[i] = mean
            variance = sum(self._sum(self._centred(i, planes).square()) for planes in self._slabs()) / self.voxels
            self.floors.append(FLOOR * variance + (ROUNDING * mean).square() + torch.finfo(torch.float32).tiny)

    def compare(self, wanted: list[bool]) -> tuple[Tensor, list[Tensor]]:
        """The mean squared correlation, and its gradient with respect to the images of which it is wanted."""
        self.total = torch.zeros_like(self.floors[0])
        self.slopes = [torch.zeros_like(self.total) for _ in wanted]  # of the total, by minus the floors
        found = {i: torch.empty_like(self.images[i]) for i in range(2) if wanted[i]}
        for planes, sums in _window_sums(self._coefficients(list(found)), self.kernel_size):
            centred = [self._centred(i, planes) for i in range(2)]
            for i, own, rest in zip(found, sums[1::2], sums[2::2], strict=True):
                slope = (centred[1 - i] * sums[0]).addcmul_(centred[i], own, value=-2).sub_(rest)
                found[i][:, :, planes] = slope
        images = self.shape[0] * self.shape[1]
        for i, gradient in found.items():
            for planes in self._slabs():
                part = gradient[:, :, planes] - self._centred(i, planes) * (2 * FLOOR * self.slopes[i] / self.voxels)
                gradient[:, :, planes] = self._inside(part / (self.voxels * images), planes)
        return (self.total / self.voxels).mean(), list(found.values())

    def _products(self) -> Iterator[Tensor]:
        for planes in self._slabs():
            a, b = self._centred(0, planes), self._centred(1, planes)
            counted = [] if self.mask is None else [self.mask[:, :, planes].expand_as(a).to(a)]
            yield torch.stack([a, b, a * a, b * b, a * b, *counted])

    def _coefficients(self, wanted: list[int]) -> Iterator[Tensor]:
        """P, and for each image of which a gradient is wanted Q and P m_b - 2 Q m_a."""
        for planes, sums in _window_sums(self._products(), self.kernel_size):
            n = sums[5].clamp_(min=1) if self.mask is not None else math.prod([self.reach[0][planes], *self.reach[1:]])
            mean_a, mean_b, aa, bb, ab = sums[:5].div_(n)
            means = mean_a, mean_b
            variances = [
                square.addcmul_(mean, mean, value=-1).clamp_(min=0).add_(floor)
                for square, mean, floor in zip((aa, bb), means, self.floors, strict=True)
            ]
            covariance = ab.addcmul_(mean_a, mean_b, value=-1)
            shared = self._inside(covariance / (variances[0] * variances[1]), planes)
            squared = shared * covariance
            self.total += self._sum(squared)
            if not wanted:
                continue
            shared = shared.mul_(2).div_(n)
            found = [shared]
            for i in wanted:
                own = squared / variances[i]
                self.slopes[i] += self._sum(own)
                own.div_(n)
                found += [own, (shared * means[1 - i]).addcmul_(own, means[i], value=-2)]
            yield torch.stack(found)

    def _slabs(self) -> Iterator[slice]:
        for start in range(0, self.shape[2], self.step):
            yield slice(start, start + self.step)

    def _centred(self, i: int, planes: slice) -> Tensor:
        return self._inside(self.images[i][:, :, planes].double() - self.means[i], planes)

    def _inside(self, values: Tensor, planes: slice) -> Tensor:
        return values if self.mask is None else values.masked_fill(~self.mask[:, :, planes], 0)

    def _sum(self, values: Tensor) -> Tensor:
        """Over the voxels of each image."""
        return values.sum(dim=tuple(range(2, values.ndim)), keepdim=True, dtype=torch.float64)


def _window_sums(slabs: Iterator[Tensor], kernel_size: int) -> Iterator[tuple[slice, Tensor]]:
    """Sums over the window around each voxel, zeros beyond the image.

    Args:
        slabs: of shape (Q, B, C, planes, *rest), one after the other along the axis of the planes.
        kernel_size: odd.

    Yields:
        Planes, and sums there, as soon as all that they need has come.
    """
    radius, done = kernel_size // 2, 0
    waiting: Tensor | None = None
    for slab in slabs:
        sums = F.pad(slab, [radius] * 2 * (slab.ndim - 4))
        for axis in range(4, slab.ndim):
            sums = moving_sum(sums, axis, kernel_size)
        before = sums.new_zeros(*sums.shape[:3], radius, *sums.shape[4:]) if waiting is None else waiting
        sums = torch.cat([before, sums], dim=3)
        waiting = sums[:, :, :, -2 * radius :]
        if sums.shape[3] >= kernel_size:
            found = moving_sum(sums, 3, kernel_size)
            yield slice(done, done + found.shape[3]), found
            done += found.shape[3]
    if waiting is not None:
        after = waiting.new_zeros(*waiting.shape[:3], radius, *waiting.shape[4:])
        found = moving_sum(torch.cat([waiting, after], dim=3), 3, kernel_size)
        yield slice(done, done + found.shape[3]), found


def moving_sum(x: Tensor, axis: int, kernel_size: int) -> Tensor:
    """Sums of `kernel_size` neighbours, as many as fit; by doubling, which takes few additions."""
    left = x.shape[axis] - kernel_size + 1
    covered, width = 0, 1
    total: Tensor | None = None
    while True:
        if kernel_size & width:
            part = x.narrow(axis, covered, left)
            total = part if total is None else total + part
            covered += width
        if covered == kernel_size:
            assert total is not None
            return total
        x = x.narrow(axis, 0, x.shape[axis] - width) + x.narrow(axis, width, x.shape[axis] - width)
        width *= 2
