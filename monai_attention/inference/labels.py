"""From finished pieces of logits on the network's grid to labels on the volume's, without ever holding all of either.

Probabilities are interpolated, not labels, so borders come out smooth at the volume's resolution. This is done class by
class for small parts of the volume, and for those classes only that could win there; on the device that holds the
pieces, so that nothing but labels leaves it.

Affines map voxel index -> RAS mm. Grids are aligned if one is the other flipped, permuted, scaled and moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from monai_attention.inference.sliding_window import Piece
from monai_attention.inference.uncertainty import entropy

PART_BYTES = 2**26
"""Of probabilities that are made from a piece at a time, at least a plane."""

PART_VOXELS = 2**19
"""Voxels of the volume that are labelled at a time: what fits the cache."""


class LabelsOnGrid:
    """Labels of a volume, filled piece by piece.

    Args:
        order: axes of the network's grid, in the order that pieces come in (see `sliding_window.stream`).
        shape: voxels of the network's grid.
        affine: its affine.
        target_affine: affine of the volume, aligned with it.
        target_shape: voxels of the volume.
        maps: names of the maps wanted: none; `entropy`, of the probabilities; or this and others, which pieces bring.

    Attributes:
        labels: uint8, shape `target_shape`; 0 where the volume is outside the network's grid by more than a voxel (a
            grid made by rounding the field of view may end that far inside it).
        maps: by name, float32, shape `target_shape`, interpolated from the network's grid; 0 outside as well.
    """

    def __init__(
        self,
        order: Sequence[int],
        shape: Sequence[int],
        affine: np.ndarray,
        target_affine: np.ndarray,
        target_shape: Sequence[int],
        *,
        maps: Sequence[str] = (),
    ) -> None:
        to_source = np.linalg.inv(affine) @ target_affine
        self.targets = [int(np.argmax(np.abs(to_source[axis, :3]))) for axis in order]
        self.shape = [shape[axis] for axis in order]
        self.order = order
        self.labels = np.zeros(tuple(target_shape), np.uint8)
        self.maps = {name: np.zeros(tuple(target_shape), np.float32) for name in maps}
        # With axes in the order of pieces; views, so that writing to them fills the labels and maps.
        self.turned = torch.from_numpy(self.labels).permute(*self.targets)
        self.turned_maps = [torch.from_numpy(found).permute(*self.targets) for found in self.maps.values()]
        self.coordinates = [
            torch.from_numpy(to_source[axis, target] * np.arange(target_shape[target]) + to_source[axis, 3])
            for axis, target in zip(order, self.targets, strict=True)
        ]
        self.halo = _Halo(self.shape)

    def add(self, piece: Piece, *further: Piece) -> None:
        """Label the part of the volume that this piece, and the ones before it, decide.

        Args:
            piece: logits.
            further: the maps after the first one, one channel each.
        """
        values = piece.values.permute(0, *(1 + axis for axis in self.order))
        others = [other.values.permute(0, *(1 + axis for axis in self.order)) for other in further]
        box = [piece.box[axis] for axis in self.order]
        planes = max(1, PART_BYTES // (4 * values[:, 0].numel()))
        for first in range(0, box[0].stop - box[0].start, planes):
            # A few planes at a time, so that what is made of them is small.
            some = slice(first, first + planes)
            part = values[:, some].softmax(dim=0)
            if self.maps:
                part = torch.cat([part, entropy(part, dim=0)[None], *(other[:, some] for other in others)])
            start = box[0].start + first
            self._add([slice(start, start + part.shape[1]), *box[1:]], part, last=start + part.shape[1] == box[0].stop)

    def _add(self, box: Sequence[slice], values: Tensor, *, last: bool) -> None:
        """Label what some planes of a piece, probabilities and maps, decide."""
        start, values = self.halo.extend(box, values, last=last)
        most = values[: len(values) - len(self.maps)].amax(dim=(1, 2, 3)).tolist()
        least = 1 / len(most) - 1e-6  # of the winner, for probabilities add up to 1
        could_win = [c for c, highest in enumerate(most) if highest >= least]
        places = []
        for coordinate, part, first, n in zip(self.coordinates, box, start, self.shape, strict=True):
            low = -math.inf if part.start == 0 else part.start - 1
            high = math.inf if part.stop == n else part.stop - 1
            low, high = max(low, -1 - 1e-6), min(high, n + 1e-6)
            decided = torch.nonzero((coordinate >= low) & (coordinate < high)).flatten()
            places.append((decided, (coordinate[decided] - first).clamp(0, part.stop - first - 1)))
        if all(len(decided) for decided, _ in places):
            self._label(values, could_win, places)

    def _label(self, values: Tensor, could_win: Sequence[int], places: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Write labels at consecutive places of the volume, some planes at a time."""
        (rows, x), (columns, y), (depths, z) = places
        step = max(1, PART_VOXELS // (len(columns) * len(depths)))
        for first in range(0, len(rows), step):
            some, at = rows[first : first + step], x[first : first + step]
            low, high = int(at[0].floor()), int(at[-1].floor())
            low, high = min(low, high), max(low, high)
            near = values[:, low : high + 2].unbind()

            def there(channel: Tensor, x: Tensor = at - low) -> Tensor:
                return _at(_at(_at(channel, z, 2), y, 1), x, 0)

            probabilities = ((c, there(near[c])) for c in could_win)
            winner, best = next(probabilities)
            label = torch.full(best.shape, winner, dtype=torch.uint8, device=best.device)
            for c, probability in probabilities:
                label.masked_fill_(probability > best, c)
                best = torch.maximum(best, probability)
            place = (_between(some), _between(columns), _between(depths))
            self.turned[place] = label.cpu()
            for turned, channel in zip(self.turned_maps, near[len(near) - len(self.maps) :], strict=True):
                turned[place] = there(channel).cpu()


def aligned(affine: np.ndarray, target_affine: np.ndarray, target_shape: Sequence[int]) -> bool:
    """Whether each axis of one grid runs along one axis of the other, to a hundredth of a voxel over its length."""
    matrix = (np.linalg.inv(affine) @ target_affine)[:3, :3] * np.maximum(np.array(target_shape) - 1, 1)
    matters = np.abs(matrix) >= 0.01
    return bool((matters.sum(axis=0) == 1).all() and (matters.sum(axis=1) == 1).all())


class _Halo:
    """Puts the last voxels of what came earlier before each part, so that there is something to interpolate between.

    Args:
        shape: of the whole; pieces come in raster order, and are whole along the last axis; the parts of a piece are
            its planes along the first axis, in order.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = shape
        self.plane = torch.empty(0)  # last one along the first axis, at each place of the other two
        self.edge = torch.empty(0)  # last column of the piece before, from one plane before it on
        self.next_edge: list[Tensor] = []

    def extend(self, box: Sequence[slice], values: Tensor, *, last: bool) -> tuple[list[int], Tensor]:
        """First voxel, and values, of a part (C, x, y, Z) with one more row and column before it if it has these.

        Args:
            box: where the part lies.
            values: of the part.
            last: whether it is the last of its piece.
        """
        (x, y, _), (x_before, y_before) = box, (int(part.start > 0) for part in box[:2])
        if not len(self.plane):
            self.plane = values.new_empty(len(values), *self.shape[1:])
        if not self.next_edge:
            self.next_edge = [self.plane[:, None, y.stop - 1].clone()]
        _, depth, width, length = values.shape
        extended = values.new_empty(len(values), depth + x_before, width + y_before, length)
        extended[:, x_before:, y_before:] = values
        if x_before:
            extended[:, 0, y_before:] = self.plane[:, y]
        if y_before:
            seen = sum(edge.shape[1] for edge in self.next_edge)  # planes of this piece so far, and the one before it
            extended[:, :, 0] = self.edge[:, seen - x_before : seen + depth]
        self.plane[:, y] = values[:, -1]
        self.next_edge.append(values[:, :, -1].clone())
        if last:
            self.edge, self.next_edge = torch.cat(self.next_edge, dim=1), []
        return [x.start - x_before, y.start - y_before, 0], extended


def _at(values: Tensor, coordinates: Tensor, axis: int) -> Tensor:
    """Values at coordinates along an axis, which are on the CPU, interpolated linearly."""
    low = coordinates.floor()
    weight = coordinates - low
    index = low.long()
    if not weight.any() and bool((index.diff() == 1).all()):
        return values.narrow(axis, int(index[0]), len(index))  # the same grid: nothing to interpolate, nothing to copy
    before = values.index_select(axis, index.to(values.device))
    if not weight.any():
        return before
    after = (index + 1).clamp(max=values.shape[axis] - 1).to(values.device)
    shape = [-1 if a == axis else 1 for a in range(values.ndim)]
    return torch.lerp(before, values.index_select(axis, after), weight.view(shape).to(values))


def _between(indices: Tensor) -> slice:
    """Consecutive numbers as a range."""
    return slice(int(indices[0]), int(indices[-1]) + 1)
