"""Windows on grids of tokens (Liu et al. 2021, arXiv:2103.14030), for any number of axes: geometry only.

Shifted windows are usually made by rolling the grid, cutting it into windows, and masking the pairs of tokens that the
roll has brought together. The pairs left are those within boxes: whole windows inside, and at the border the pieces
that the shifted cuts leave over. So here nothing is rolled and nothing is masked: the grid is cut into boxes, equal
ones are computed together, and a box's position bias is the part of the window's that belongs to its tokens.

Grids of tokens are (B, *G, C) everywhere in this file. Notation: B batch, G grid, C channels, N tokens of a window, T
tokens of a box.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Boxes(NamedTuple):
    """Equal boxes side by side; each field has one element an axis.

    Args:
        start: first token of the first box.
        size: tokens of a box.
        number: boxes.
        offset: first token of a box inside the window that it is a piece of.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]
    number: tuple[int, ...]
    offset: tuple[int, ...]


def cut(grid: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> list[Boxes]:
    """The boxes that (shifted) windows are without their masked pairs: at most three kinds an axis.

    Args:
        grid: tokens along each axis, multiples of `window`.
        window: tokens of a window along each axis.
        shift: tokens that the windows are shifted by along each axis, 0 <= shift < window.
    """
    kinds = [_cut_axis(*axis) for axis in zip(grid, window, shift, strict=True)]
    return [Boxes(*zip(*combination, strict=True)) for combination in itertools.product(*kinds)]


def _cut_axis(n: int, window: int, shift: int) -> list[tuple[int, int, int, int]]:
    """Start, size, number and offset of the boxes along one axis."""
    if n % window or not 0 <= shift < window:
        raise ValueError(f"expected a multiple of the window and a smaller shift; got {n=}, {window=}, {shift=}")
    if not shift:
        return [(0, window, n // window, 0)]
    rest = window - shift  # the window that wraps around: its head is the grid's last tokens, its tail the first ones
    kinds = [(0, shift, 1, rest), (shift, window, n // window - 1, 0), (n - rest, rest, 1, 0)]
    return [kind for kind in kinds if kind[2]]


def to_boxes(x: Tensor, boxes: Boxes) -> Tensor:
    """Gather (B, *G, C) into (B * number of boxes, T, C)."""
    inside = _inside(x, boxes)
    n = len(boxes.size)
    order = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return inside.permute(order).reshape(-1, math.prod(boxes.size), x.shape[-1])


def from_boxes(y: Tensor, boxes: Boxes, out: Tensor) -> None:
    """Write (B * number of boxes, T, C) to where `to_boxes` found them in `out`, (B, *G, C)."""
    n = len(boxes.size)
    order = (0, *(axis for pair in zip(range(1, n + 1), range(n + 1, 2 * n + 1), strict=True) for axis in pair))
    split = y.view(out.shape[0], *boxes.number, *boxes.size, y.shape[-1])
    _inside(out, boxes).copy_(split.permute(*order, 2 * n + 1))


def _inside(x: Tensor, boxes: Boxes) -> Tensor:
    """View of the boxes in (B, *G, C): (B, number, size, number, size, ..., C)."""
    for axis, (start, size, number) in reversed(
        list(enumerate(zip(boxes.start, boxes.size, boxes.number, strict=True), start=1))
    ):
        x = x.narrow(axis, start, size * number).unflatten(axis, (number, size))
    return x


def inside_window(boxes: Boxes, window: Sequence[int], device: torch.device | None = None) -> Tensor | None:
    """Numbers, in the window's raster order, of the tokens of a box; None if it is the whole window."""
    if tuple(boxes.size) == tuple(window):
        return None
    numbers = torch.arange(math.prod(window), device=device).view(*window)
    for axis, (offset, size) in enumerate(zip(boxes.offset, boxes.size, strict=True)):
        numbers = numbers.narrow(axis, offset, size)
    return numbers.flatten()


def relative_index(window: Sequence[int]) -> Tensor:
    """Row of the bias table for each pair of a window's tokens, int64, shape (N, N).

    Token i minus token j, an offset from -(w - 1) to w - 1 along each axis, is read as a number with the digits
    offset + w - 1 in base 2 w - 1, first axis most significant: every offset has a row of its own.
    """
    position = torch.stack(torch.meshgrid(*[torch.arange(w) for w in window], indexing="ij")).flatten(1)
    offsets = position[:, :, None] - position[:, None, :]
    index = torch.zeros(offsets.shape[1:], dtype=torch.int64)
    for offset, w in zip(offsets, window, strict=True):
        index = index * (2 * w - 1) + offset + w - 1
    return index


def pad_grid(x: Tensor, multiples: Sequence[int]) -> Tensor:
    """Zero-pad (B, *G, C) at the end of each axis to the next multiple; `crop_grid` undoes it."""
    pads = [p for n, m in zip(reversed(x.shape[1:-1]), reversed(multiples), strict=True) for p in (0, -n % m)]
    return F.pad(x, (0, 0, *pads)) if any(pads) else x


def crop_grid(x: Tensor, grid: Sequence[int]) -> Tensor:
    """The first `grid` tokens of each axis of (B, *G, C); see `blocks.patches.crop_to`."""
    for axis, n in enumerate(grid, start=1):
        x = x if x.shape[axis] == n else x.narrow(axis, 0, n)
    return x
