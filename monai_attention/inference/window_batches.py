"""Windows of an image through a network, as many at a time as memory allows, on as many devices as there are."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_attention.cohort.phases import is_out_of_memory
from monai_attention.inference.uncertainty import disagreement
from monai_attention.inference.windows import Layout, WindowSettings

logger = logging.getLogger(__name__)

Corner = tuple[int, int, int]
"""First voxel of a window in the padded image, along the axes in the order of `Layout.order`."""

Computed = tuple[Corner, "Sequence[Tensor] | None"]

Predict = Callable[[Tensor, list[tuple[slice, ...]]], Sequence[Tensor]]
"""From windows (b, C, *roi), and where they lie in the padded image, to outputs, each (b, channels, *roi)."""


class WindowBatches:
    """Computes windows of an image, as many at a time as memory allows, on as many devices as there are."""

    def __init__(self, image: Tensor, layout: Layout, predicts: Sequence[Predict], settings: WindowSettings) -> None:
        if any(map(any, layout.pads)):
            pads = [p for pair in reversed(layout.pads) for p in pair]
            image = F.pad(image[None], pads, mode=settings.padding_mode, value=settings.cval)[0]
        self.image = image
        self.layout = layout
        self.predicts = [_mirrored(predict, settings) for predict in predicts]
        self.background = settings.background
        self.batch_size = settings.sw_batch_size

    def compute(self, corners: Iterable[Corner]) -> Iterator[Computed]:
        """Corners as they come, each with its window's outputs, (channels, *roi), or None if it is background."""
        corners = iter(corners)
        while group := self._group(corners):
            outputs = self._run([corner for corner, wanted in group if wanted])
            yield from ((corner, next(outputs) if wanted else None) for corner, wanted in group)

    def until_one_is_computed(self, results: Iterator[Computed]) -> tuple[list[Computed], Sequence[Tensor]]:
        """The first results, up to the first that has outputs, and these; of a window of background if need be."""
        before = []
        for result in results:
            before.append(result)
            if result[1] is not None:
                return before, result[1]
        return before, next(self._run([before[0][0]]))

    def _group(self, corners: Iterator[Corner]) -> list[tuple[Corner, bool]]:
        """The next corners, enough for a batch on each device, and whether they are to be computed."""
        group: list[tuple[Corner, bool]] = []
        wanted = 0
        while wanted < self.batch_size * len(self.predicts) and (corner := next(corners, None)) is not None:
            group.append((corner, not self._empty(corner)))
            wanted += group[-1][1]
        return group

    def _run(self, corners: Sequence[Corner]) -> Iterator[Sequence[Tensor]]:
        """Outputs of each window."""
        start = 0
        while start < len(corners):
            rest = corners[start : start + self.batch_size * len(self.predicts)]
            parts = [rest[i : i + self.batch_size] for i in range(0, len(rest), self.batch_size)]
            for part, outputs in zip(parts, self._at_once(parts), strict=True):
                if outputs is None:
                    self.batch_size = len(part) // 2
                    logger.warning("out of memory: going on with %d windows at a time", self.batch_size)
                    break  # what other devices did of the parts after this one is done again
                yield from zip(*outputs, strict=True)
                start += len(part)

    def _at_once(self, parts: Sequence[Sequence[Corner]]) -> Iterable[Sequence[Tensor] | None]:
        """Each part's outputs, the i-th part by the i-th predictor; None where there was not enough memory."""
        if len(self.predicts) == 1:
            return map(self._attempt, self.predicts, parts)
        with ThreadPoolExecutor(len(self.predicts)) as pool:
            return list(pool.map(self._attempt, self.predicts[: len(parts)], parts))

    @torch.no_grad()  # a setting of each thread
    def _attempt(self, predict: Predict, corners: Sequence[Corner]) -> Sequence[Tensor] | None:
        """Outputs of some windows, or None if there was not enough memory for so many."""
        boxes = [self._box(corner) for corner in corners]
        try:
            batch = torch.stack([self.image[all_channels(box)] for box in boxes])
            outputs = predict(batch, boxes)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(corners) == 1:
                raise MemoryError("there is not enough memory for a single window") from error
        else:
            for output in outputs:
                if output.shape[0] != len(batch) or output.shape[2:] != batch.shape[2:]:
                    raise ValueError(
                        f"expected an output of {len(batch)} windows of {tuple(batch.shape[2:])} voxels, got shape "
                        f"{tuple(output.shape)}"
                    )
            return outputs
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # after the error is forgotten, and with it the tensors that its frames held
        return None

    def _empty(self, corner: Corner) -> bool:
        """Whether there is nothing but background in and around a window."""
        if self.background is None:
            return False
        margin = self.background.margin
        near = (slice(max(0, part.start - margin), part.stop + margin) for part in self._box(corner))
        return not bool((self.image[all_channels(near)] > self.background.threshold).any())

    def _box(self, corner: Corner) -> tuple[slice, ...]:
        """A window in the padded image."""
        _, roi, _ = self.layout.three()
        return self.layout.box_back([slice(x, x + r) for x, r in zip(corner, roi, strict=True)])


def _mirrored(predict: Predict, settings: WindowSettings) -> Predict:
    """Mean over the windows mirrored along each combination of axes, and mirrored back; one combination at a time."""
    axes = settings.mirror_axes
    flips = [[2 + a for a in some] for k in range(len(axes) + 1) for some in itertools.combinations(axes, k)]
    if len(flips) == 1 and not settings.disagreement:
        return predict

    def mirrored(windows: Tensor, boxes: list[tuple[slice, ...]]) -> list[Tensor]:
        sums: list[Tensor] = []
        classes: list[Tensor] = []
        for flip in flips:
            outputs = [output.flip(flip).float() for output in predict(windows.flip(flip), boxes)]
            if settings.disagreement:
                classes.append(outputs[0].softmax(dim=1))
            sums = [total.add_(output) for total, output in zip(sums, outputs, strict=True)] if sums else outputs
        means = [total.div_(len(flips)) for total in sums]
        return [*means, disagreement(classes, dim=1)[:, None]] if settings.disagreement else means

    return mirrored


def all_channels(box: Iterable[slice]) -> tuple[slice, ...]:
    """Index of a box in (C, *S)."""
    return (slice(None), *box)
