"""Sliding-window inference over any volume in bounded memory; a drop-in for MONAI's `SlidingWindowInferer`.

What differs from MONAI's: sums are float32 whatever comes in, and nothing that the network or the caller holds is
written to; finished parts leave while windows are still running (`stream`), so that classes times voxels need not fit
into memory; windows of background may be left out; when memory runs out, smaller batches go on where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai import inferers
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import compute_importance_map
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from tqdm import tqdm

from monai_attention.inference.windows import BlendedSum, Layout, rows, sum_bytes

logger = logging.getLogger(__name__)

Corner = tuple[int, int, int]
"""First voxel of a window in the padded image, along the axes in the order of `Layout.order`."""

Computed = tuple[Corner, "Sequence[Tensor] | None"]

Predict = Callable[[Tensor, list[tuple[slice, ...]]], Sequence[Tensor]]
"""From windows (b, C, *roi), and where they lie in the padded image, to outputs, each (b, channels, *roi)."""

OnWindow = Callable[[int], None]
"""Called after each window with the number of windows in all."""


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
class Settings:
    """How windows are laid and blended; the first seven are those of MONAI's `SlidingWindowInferer`.

    Args:
        roi_size: voxels of a window, one number or one an axis; 0, None or less takes the whole axis.
        sw_batch_size: windows computed at a time, at most.
        overlap: of neighbouring windows, as a share of `roi_size`, one number or one an axis.
        mode: `constant` or `gaussian`: how much the edge of a window counts.
        sigma_scale: width of the Gaussian, as a share of `roi_size`.
        padding_mode: of images smaller than a window.
        cval: what they are padded with.
        even: see `windows.window_starts`.
        stretch: see `windows.Layout`.
        mirror_axes: spatial axes; windows are also computed mirrored along each combination of them, and averaged.
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
    background: Background | None = None
    sum_device: torch.device | str | None = None
    sum_bytes: float = 1e9

    def layout(self, size: Sequence[int]) -> Layout:
        """Where the windows of an image lie."""
        return Layout(size, self.roi_size, self.overlap, even=self.even, stretch=self.stretch)


class Piece(NamedTuple):
    """A finished part of an output.

    Args:
        box: where it lies in the output.
        values: blended, float32, shape (channels, *box).
        shape: of the whole output, (channels, *S).
    """

    box: tuple[slice, ...]
    values: Tensor
    shape: tuple[int, ...]


@torch.no_grad()
def stream(
    image: Tensor, predict: Predict, settings: Settings, on_window: OnWindow = lambda total: None
) -> Iterator[list[Piece]]:
    """Compute the windows of an image, and hand out parts of the outputs as soon as they are finished.

    Args:
        image: (C, *S), one to three spatial axes; it is not written to.
        predict: the network; called with at most `sw_batch_size` windows.
        settings: see `Settings`.
        on_window: progress.

    Yields:
        A piece of each output of the network. The pieces of an output do not overlap, and together they are all of it.
        They come in raster order of the axes sorted by length, longest first (`Layout.order`), and are whole along the
        last of these.

    Raises:
        ValueError: outputs are not as large as windows.
        MemoryError: there is not enough memory for a single window.
    """
    layout = settings.layout(image.shape[1:])
    size, roi, starts = layout.three()
    windows = _Windows(image, layout, predict, settings)
    results: Iterator[Computed] = windows.compute((x, y, z) for x, y, z in itertools.product(*starts))
    before, first = windows.until_one_is_computed(results)
    results = itertools.chain((before.pop(0) for _ in range(len(before))), results)
    channels = [len(x) for x in first]
    del first  # outputs are kept no longer than needed: a batch of them may be large
    whole = sum(sum_bytes(n, size, roi, starts, whole=True) for n in channels) <= settings.sum_bytes
    weights = compute_importance_map(layout.roi, mode=settings.mode, sigma_scale=settings.sigma_scale)
    sums = []
    for n in channels:
        unseen = settings.background.logits(n) if settings.background else None
        make = functools.partial(
            BlendedSum, n, size, roi, starts, layout.turn(weights[None])[0], whole=whole, unseen=unseen
        )
        sums.append(_where_memory_is(make, settings.sum_device or image.device))
    for row in rows(size, starts, whole=whole):
        for (_, y, z), outputs in itertools.islice(results, len(row.ys) * len(starts[2])):
            for i, blended in enumerate(sums if outputs is not None else ()):
                blended.add(layout.turn(outputs[i]), y - row.ys[0], z)  # type: ignore[index]
            del outputs
            on_window(layout.count())
        box = layout.box_back((*row.finished, slice(0, size[2])))
        yield [_cropped(box, layout.turn_back(blended.finish(row)), image, layout) for blended in sums]


def _all_channels(box: Iterable[slice]) -> tuple[slice, ...]:
    """Index of a box in (C, *S)."""
    return (slice(None), *box)


def _cropped(box: Sequence[slice], values: Tensor, image: Tensor, layout: Layout) -> Piece:
    """The piece of the image that a part of the padded image is."""
    inside, kept = [], []
    for part, (before, _), n in zip(box, layout.pads, image.shape[1:], strict=True):
        start, stop = max(part.start - before, 0), min(part.stop - before, n)
        inside.append(slice(start, stop))
        kept.append(slice(start + before - part.start, stop + before - part.start))
    return Piece(tuple(inside), values[_all_channels(kept)], (len(values), *image.shape[1:]))


class _Windows:
    """Computes windows of an image, as many at a time as memory allows."""

    def __init__(self, image: Tensor, layout: Layout, predict: Predict, settings: Settings) -> None:
        if any(map(any, layout.pads)):
            pads = [p for pair in reversed(layout.pads) for p in pair]
            image = F.pad(image[None], pads, mode=settings.padding_mode, value=settings.cval)[0]
        self.image = image
        self.layout = layout
        self.predict = functools.partial(_mirrored, predict, settings.mirror_axes) if settings.mirror_axes else predict
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
        """The next corners, enough for a batch, and whether they are to be computed."""
        group: list[tuple[Corner, bool]] = []
        wanted = 0
        while wanted < self.batch_size and (corner := next(corners, None)) is not None:
            group.append((corner, not self._empty(corner)))
            wanted += group[-1][1]
        return group

    def _run(self, corners: Sequence[Corner]) -> Iterator[Sequence[Tensor]]:
        """Outputs of each window."""
        start = 0
        while start < len(corners):
            part = corners[start : start + self.batch_size]
            outputs = self._attempt(part)
            if outputs is None:
                self.batch_size = len(part) // 2
                logger.warning("out of memory: going on with %d windows at a time", self.batch_size)
            else:
                yield from zip(*outputs, strict=True)
                start += len(part)

    def _attempt(self, corners: Sequence[Corner]) -> Sequence[Tensor] | None:
        """Outputs of some windows, or None if there was not enough memory for so many."""
        boxes = [self._box(corner) for corner in corners]
        try:
            batch = torch.stack([self.image[_all_channels(box)] for box in boxes])
            outputs = self.predict(batch, boxes)
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
        return not bool((self.image[_all_channels(near)] > self.background.threshold).any())

    def _box(self, corner: Corner) -> tuple[slice, ...]:
        """A window in the padded image."""
        _, roi, _ = self.layout.three()
        return self.layout.box_back([slice(x, x + r) for x, r in zip(corner, roi, strict=True)])


def _mirrored(predict: Predict, axes: Sequence[int], windows: Tensor, boxes: list[tuple[slice, ...]]) -> list[Tensor]:
    """Mean over the windows mirrored along each combination of axes, and mirrored back; one combination at a time."""
    flips = [[2 + a for a in some] for k in range(len(axes) + 1) for some in itertools.combinations(axes, k)]
    sums: list[Tensor] = []
    for flip in flips:
        outputs = [output.flip(flip).float() for output in predict(windows.flip(flip), boxes)]
        sums = [total.add_(output) for total, output in zip(sums, outputs, strict=True)] if sums else outputs
    return [total.div_(len(flips)) for total in sums]


def _where_memory_is(make: Callable[..., BlendedSum], device: torch.device | str) -> BlendedSum:
    """Sums on a device, or in the computer's own memory if the device's is not enough."""
    try:
        return make(device=device)
    except RuntimeError as error:
        if torch.device(device).type == "cpu" or not is_out_of_memory(error):
            raise
    logger.warning("out of memory: sums are kept on the CPU")
    return make(device="cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    texts = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


class StreamingInferer(inferers.SlidingWindowInferer):
    """MONAI's `SlidingWindowInferer` on `stream`: use it in a bundle's configuration in its place.

    Args:
        args: those of MONAI's. `buffer_steps`, `buffer_dim` and `cache_roi_weight_map` change nothing here: memory is
            bounded and weights are kept in any case.
        even: see `windows.window_starts`.
        stretch: see `windows.Layout`.
        mirror_axes: see `Settings`.
        background: see `Settings`.
        bfloat16: let the network compute in bfloat16 where it can. Faster on GPUs, and on CPUs that have instructions
            for it; much slower on others.
        kwargs: those of MONAI's.

    Outputs of the network may be a tensor, a sequence or a dictionary of tensors, each as large as its window. There
    are no gradients, whatever the caller's mode.
    """

    def __init__(
        self,
        *args: Any,
        even: bool = False,
        stretch: float = 1.0,
        mirror_axes: Sequence[int] = (),
        background: Background | None = None,
        bfloat16: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.bfloat16 = bfloat16
        self.even = even
        self.stretch = stretch
        self.mirror_axes = mirror_axes
        self.background = background

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Outputs of the network on images (B, C, *S), blended: its structure, each tensor (B, channels, *S)."""
        if "condition" in kwargs:
            raise ValueError("condition is not supported here; use MONAI's SlidingWindowInferer")
        for needless in ("buffer_steps", "buffer_dim"):
            kwargs.pop(needless, None)
        settings = settings_of(self)
        settings = replace(settings, sum_device=kwargs.pop("device", settings.sum_device))
        if settings.sum_device is None and self.cpu_thresh is not None and inputs.shape[2:].numel() > self.cpu_thresh:
            settings = replace(settings, sum_device="cpu")
        computing = torch.device(self.sw_device or inputs.device)
        structure: Any = None

        def predict(windows: Tensor, boxes: list[tuple[slice, ...]]) -> list[Tensor]:
            nonlocal structure
            where = [[slice(i, i + 1), slice(None), *box] for box in boxes]
            with torch.autocast(computing.type, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext():
                outputs = network(windows.to(computing), *([where] if self.with_coord else []), *args, **kwargs)
            tensors, structure = tree_flatten(outputs)
            return tensors

        results: list[Tensor] = []
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        with tqdm(unit="window", disable=not self.progress) as bar:
            for i, image in enumerate(images):
                for pieces in stream(image, predict, settings, lambda _: bar.update()):
                    if not results:
                        results = [piece.values.new_empty((len(images), *piece.shape)) for piece in pieces]
                    for result, piece in zip(results, pieces, strict=True):
                        result[i][_all_channels(piece.box)] = piece.values
        if isinstance(inputs, MetaTensor):
            results = [MetaTensor(result, meta=inputs.meta) for result in results]
        return tree_unflatten(results, structure)


def settings_of(inferer: inferers.SlidingWindowInferer) -> Settings:
    """What MONAI's inferer, or ours, was told."""
    ours = ("even", "stretch", "mirror_axes", "background")
    extra = {name: getattr(inferer, name) for name in ours if isinstance(inferer, StreamingInferer)}
    return Settings(
        roi_size=inferer.roi_size,
        sw_batch_size=inferer.sw_batch_size,
        overlap=inferer.overlap,
        mode=str(inferer.mode.value),
        sigma_scale=inferer.sigma_scale,
        padding_mode=inferer.padding_mode,
        cval=inferer.cval,
        sum_device=inferer.device,
        **extra,
    )
