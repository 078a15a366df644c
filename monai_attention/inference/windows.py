"""Sliding windows: where they lie, what they weigh, and sums over them that need little memory.

Windows lie on a product of starts, one list of starts an axis. They are visited in raster order, and as soon as no
later window touches a part of the result, that part is finished and leaves: with the first two axes streamed like this,
only the overlap of two rows of windows, and one column of them, are ever held. So how long the first axis is, costs
nothing, and classes times voxels need not fit into memory.

Sums are (C, X, Y, Z) in this file, images of fewer axes included.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor


def window_starts(n: int, roi: int, overlap: float, *, even: bool = False) -> list[int]:
    """First voxels of the windows along an axis.

    Args:
        n: voxels of the axis, not fewer than `roi`.
        roi: voxels of a window.
        overlap: of neighbouring windows, as a share of `roi`, at least 0 and less than 1.
        even: spread the windows evenly; otherwise all are spaced as `overlap` says, but for the last one, which ends
            with the axis and may do most of its neighbour's work again (MONAI's windows).
    """
    step = max(1, int(roi * (1 - overlap)))
    last = math.ceil((n - roi) / step)
    if even:
        return [round(i * (n - roi) / max(1, last)) for i in range(last + 1)]
    return [min(i * step, n - roi) for i in range(last + 1)]


class Layout:
    """Where the windows of an image lie.

    Args:
        size: voxels of the image, one to three axes.
        roi_size: voxels of a window, one number or one an axis; 0, None or less takes the whole axis.
        overlap: see `window_starts`; one number or one an axis.
        even: see `window_starts`.
        stretch: an axis of up to so many windows' length is taken by one window of its own length. For networks that
            take any size: n voxels are computed then, instead of the 2 x `roi_size` or more of two windows, and a
            window needs up to `stretch` times the memory for each axis.

    Attributes:
        roi: voxels of a window.
        pads: voxels before and after the image along each axis that make it as large as a window.
        padded: size with these.
        starts: of windows in the padded image, along each axis.
        order: of axes, in which windows are visited; the one for which least is held between rows. Often the longest
            axis comes first, but not if its last window overlaps a lot.
    """

    def __init__(
        self,
        size: Sequence[int],
        roi_size: Sequence[int] | int,
        overlap: Sequence[float] | float = 0.25,
        *,
        even: bool = False,
        stretch: float = 1.0,
    ) -> None:
        dims = len(size)
        overlaps: tuple[float, ...] = ensure_tuple_rep(overlap, dims)
        if any(not 0 <= o < 1 for o in overlaps):
            raise ValueError(f"overlap must be at least 0 and less than 1; got {overlap}")
        roi = fall_back_tuple(roi_size, size)
        self.roi = tuple(n if r < n <= stretch * r else r for n, r in zip(size, roi, strict=True))
        missing = [max(0, r - n) for r, n in zip(self.roi, size, strict=True)]
        self.pads = [(m // 2, m - m // 2) for m in missing]
        self.padded = [n + m for n, m in zip(size, missing, strict=True)]
        self.starts = [
            window_starts(n, r, o, even=even) for n, r, o in zip(self.padded, self.roi, overlaps, strict=True)
        ]
        self.order = list(range(dims))
        orders = sorted(itertools.permutations(range(dims)), key=lambda order: [-self.padded[axis] for axis in order])
        self.order = list(min(orders, key=self._held))

    def _held(self, order: Iterable[int]) -> int:
        """Bytes a channel that are held when windows are visited in an order of axes."""
        self.order = list(order)
        return sum_bytes(0, *self.three(), whole=False)

    def three(self) -> tuple[list[int], list[int], list[list[int]]]:
        """Size, window and starts in the order of `order`, with axes of one voxel up to three."""
        missing = 3 - len(self.order)
        size = [self.padded[axis] for axis in self.order] + [1] * missing
        roi = [self.roi[axis] for axis in self.order] + [1] * missing
        return size, roi, [self.starts[axis] for axis in self.order] + [[0]] * missing

    def turn(self, x: Tensor) -> Tensor:
        """View (C, *S) as (C, X, Y, Z) in the order of `order`."""
        x = x.permute(0, *(axis + 1 for axis in self.order))
        return x[(...,) + (None,) * (3 - len(self.order))]

    def turn_back(self, x: Tensor) -> Tensor:
        """Undo `turn`."""
        x = x[(...,) + (0,) * (3 - len(self.order))]
        return x.permute(0, *(1 + self.order.index(axis) for axis in range(len(self.order))))

    def box_back(self, box: Sequence[slice]) -> tuple[slice, ...]:
        """Ranges along X, Y, Z -> ranges along the image's axes."""
        return tuple(box[self.order.index(axis)] for axis in range(len(self.order)))

    def count(self) -> int:
        """Windows in all."""
        return math.prod(map(len, self.starts))


@dataclass(frozen=True)
class Background:
    """Windows without a voxel above a threshold are not computed.

    Args:
        threshold: of the network's input, after preprocessing, in every channel.
        margin: voxels around a window that are looked at too.
        channel: of the output, the background's: voxels that no window covers get the logit 20 there, and -20 in the
            other channels; None: -20 in all.
    """

    threshold: float
    margin: int = 0
    channel: int | None = 0

    def logits(self, channels: int) -> list[float]:
        """Of a voxel that no window covers."""
        return [20.0 if c == self.channel else -20.0 for c in range(channels)]


@dataclass(frozen=True)
class WindowSettings:
    """How windows are laid and blended; the first seven are those of MONAI's `SlidingWindowInferer`.

    Args:
        roi_size: voxels of a window, one number or one an axis; 0, None or less takes the whole axis.
        sw_batch_size: windows computed at a time, at most.
        overlap: of neighbouring windows, as a share of `roi_size`, one number or one an axis.
        mode: `constant` or `gaussian`: how much the edge of a window counts.
        sigma_scale: width of the Gaussian, as a share of `roi_size`.
        padding_mode: of images smaller than a window.
        cval: what they are padded with.
        even: see `window_starts`.
        stretch: see `Layout`.
        mirror_axes: spatial axes; windows are also computed mirrored along each combination of them, and averaged.
        disagreement: add an output of one channel: how much the mirrored windows' classes contradict each other in the
            first output, logits (see `uncertainty.disagreement`).
        background: windows that are not computed.
        sum_device: where sums are kept; None: where the image is.
        sum_bytes: what sums should keep to; windows are visited in smaller rows where that helps.
    """

    roi_size: Sequence[int] | int
    sw_batch_size: int = 1
    overlap: Sequence[float] | float = 0.25
    mode: str = "constant"
    sigma_scale: Sequence[float] | float = 0.125
    padding_mode: str = "constant"
    cval: float = 0.0
    even: bool = False
    stretch: float = 1.0
    mirror_axes: Sequence[int] = ()
    disagreement: bool = False
    background: Background | None = None
    sum_device: torch.device | str | None = None
    sum_bytes: float = 1e9

    def layout(self, size: Sequence[int]) -> Layout:
        """Where the windows of an image lie."""
        return Layout(size, self.roi_size, self.overlap, even=self.even, stretch=self.stretch)


class Row(NamedTuple):
    """Windows with one start along the first axis, and one or several along the second.

    Args:
        x: start along the first axis.
        ys: starts along the second axis; none, if nothing but what earlier rows left is to be handed out.
        finished: what leaves after this row: a range along the first axis and one along the second.
    """

    x: int
    ys: list[int]
    finished: tuple[slice, slice]


def rows(size: Sequence[int], roi: Sequence[int], starts: Sequence[Sequence[int]], *, whole: bool) -> list[Row]:
    """In which order windows are visited.

    Args:
        size: voxels along each axis.
        roi: voxels of a window.
        starts: of windows along each axis.
        whole: take all starts of the second axis together: larger batches, and more memory.
    """
    xs, ys, _ = starts
    end = xs[-1] + advanced(roi[0], xs)  # the last windows leave no more at once than others, and the rest afterwards
    groups = [list(ys)] if whole else [[y] for y in ys]
    edges = [*(group[0] for group in groups), size[1]]
    across = [slice(*both) for both in itertools.pairwise(edges)]
    found = [
        Row(x, group, (slice(x, x_end), part))
        for x, x_end in zip(xs, [*xs[1:], end], strict=True)
        for group, part in zip(groups, across, strict=True)
    ]
    return found + [Row(end, [], (slice(end, size[0]), part)) for part in across if end < size[0]]


class BlendedSum:
    """Weighted mean of windows, handed out row by row.

    For each row `begin`, `add` its windows, `finish`.

    Args:
        channels: of a window.
        size: voxels of the result.
        roi: voxels of a window.
        starts: of windows along each axis.
        weights: of a window's voxels, positive, shape `roi`.
        whole: see `rows`.
        device: where the sums are kept; float32.
        unseen: the value, one a channel, of voxels that no window covered.
    """

    def __init__(
        self,
        channels: int,
        size: Sequence[int],
        roi: Sequence[int],
        starts: Sequence[Sequence[int]],
        weights: Tensor,
        *,
        whole: bool,
        device: torch.device | str,
        unseen: Sequence[float] | None = None,
    ) -> None:
        self.unseen = unseen
        self.roi = tuple(roi)
        self.weights = weights.to(device)
        width = size[1] if whole else roi[1]
        # The last channel sums the weights.
        self.row = torch.zeros(channels + 1, advanced(roi[0], starts[0]), width, size[2], device=device)
        self.carry = torch.zeros(channels + 1, carried(roi[0], starts[0]), size[1], size[2], device=device)
        self.x = -1
        self.columns = slice(0, 0)  # of the result, that `row` holds
        self.depth = 0  # planes of this row that are finished after it; what windows add beyond goes to `carry`

    def begin(self, row: Row) -> None:
        """Make room for the windows of a row; what the last one gave out is overwritten."""
        if not row.ys:
            return
        columns = slice(row.ys[0], row.ys[0] + self.row.shape[2])
        new = columns
        if row.x == self.x:
            new = slice(self.columns.stop, columns.stop)
            kept = self.columns.stop - columns.start
            for channel in self.row:  # one at a time: the copy between is small
                channel[:, :kept] = channel[:, self.row.shape[2] - kept :].clone()
        self.x, self.columns, self.depth = row.x, columns, row.finished[0].stop - row.finished[0].start
        self._bring(new)

    def _bring(self, new: slice) -> None:
        """Move what earlier rows left for the finished planes of this one from `carry`, and shift the rest there."""
        here = slice(new.start - self.columns.start, new.stop - self.columns.start)
        moved = min(self.depth, self.carry.shape[1])
        for row, carry in zip(self.row, self.carry, strict=True):
            row[:moved, here] = carry[:moved, new]
            row[moved:, here] = 0
            rest = carry[moved:, new].clone()
            carry[: len(rest), new] = rest
            carry[len(rest) :, new] = 0

    def add(self, window: Tensor, y: int, z: int) -> None:
        """Add a window (C, *roi), which is left as it is.

        Args:
            window: any floating dtype, any device.
            y: its start along the second axis.
            z: its start along the third axis.
        """
        along, window = slice(z, z + self.roi[2]), window.to(self.row)
        first = y - self.columns.start
        for sums, y0, planes in (
            (self.row, first, slice(0, self.depth)),
            (self.carry, y, slice(self.depth, self.roi[0])),
        ):
            place = sums[:, : planes.stop - planes.start, y0 : y0 + self.roi[1], along]
            place[:-1].addcmul_(window[:, planes], self.weights[planes])
            place[-1] += self.weights[planes]

    def finish(self, row: Row) -> Tensor:
        """What leaves after this row, its windows added: (C, x, y, Z), until the next `begin`."""
        (planes, across), sums = row.finished, self.row if row.ys else self.carry
        y = across.start - self.columns.start if row.ys else across.start
        block = sums[:, : planes.stop - planes.start, y : y + across.stop - across.start]
        done = block[:-1].div_(block[-1:])
        if self.unseen is not None:
            nowhere = block[-1] == 0
            for channel, value in zip(done, self.unseen, strict=True):
                channel.masked_fill_(nowhere, value)
        return done


def advanced(roi: int, starts: Sequence[int]) -> int:
    """The most voxels from one window to the next along an axis."""
    return max((b - a for a, b in itertools.pairwise(starts)), default=roi)


def carried(roi: int, starts: Sequence[int]) -> int:
    """The most voxels that two neighbouring windows share along an axis."""
    return max((roi - (b - a) for a, b in itertools.pairwise(starts)), default=0)


def sum_bytes(
    channels: int, size: Sequence[int], roi: Sequence[int], starts: Sequence[Sequence[int]], *, whole: bool
) -> int:
    """Bytes that a `BlendedSum` holds."""
    row = advanced(roi[0], starts[0]) * (size[1] if whole else roi[1])
    return 4 * (channels + 1) * size[2] * (row + carried(roi[0], starts[0]) * size[1])
