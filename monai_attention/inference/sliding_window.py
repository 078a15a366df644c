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
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from monai import inferers
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import compute_importance_map
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from tqdm import tqdm

from monai_attention.cohort.phases import is_out_of_memory
from monai_attention.inference.window_batches import Computed, Predict, WindowBatches, all_channels
from monai_attention.inference.windows import Background, BlendedSum, Layout, WindowSettings, rows, sum_bytes

logger = logging.getLogger(__name__)

OnWindow = Callable[[int], None]
"""Called after each window with the number of windows in all."""


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
    image: Tensor,
    predict: Predict | Sequence[Predict],
    settings: WindowSettings,
    on_window: OnWindow = lambda total: None,
) -> Iterator[list[Piece]]:
    """Compute the windows of an image, and hand out parts of the outputs as soon as they are finished.

    Args:
        image: (C, *S), one to three spatial axes; it is not written to.
        predict: the network; called with at most `sw_batch_size` windows. Several of them, one on each of several
            devices say, compute at the same time, each in a thread of its own.
        settings: see `WindowSettings`.
        on_window: progress.

    Yields:
        A piece of each output of the network. The pieces of an output do not overlap, and together they are all of it.
        They come in raster order of the axes in `Layout.order`, and are whole along the last of these. Their values are
        overwritten when the next ones are asked for.

    Raises:
        ValueError: outputs are not as large as windows.
        MemoryError: there is not enough memory for a single window.
    """
    layout = settings.layout(image.shape[1:])
    size, roi, starts = layout.three()
    windows = WindowBatches(image, layout, [predict] if callable(predict) else predict, settings)
    results: Iterator[Computed] = windows.compute((x, y, z) for x, y, z in itertools.product(*starts))
    before, first = windows.until_one_is_computed(results)
    results = itertools.chain((before.pop(0) for _ in range(len(before))), results)
    channels = [len(x) for x in first]
    del first  # outputs are kept no longer than needed: a batch of them may be large
    whole = sum(sum_bytes(n, size, roi, starts, whole=True) for n in channels) <= settings.sum_bytes
    weights = compute_importance_map(layout.roi, mode=settings.mode, sigma_scale=settings.sigma_scale)
    makers = []
    for i, n in enumerate(channels):
        unseen = settings.background.logits(n) if settings.background else None
        if settings.disagreement and i == len(channels) - 1:
            unseen = [0.0]
        make = functools.partial(
            BlendedSum, n, size, roi, starts, layout.turn(weights[None])[0], whole=whole, unseen=unseen
        )
        makers.append(make)
    sums = _where_memory_is(makers, settings.sum_device or image.device)
    for row in rows(size, roi, starts, whole=whole):
        for blended in sums:
            blended.begin(row)
        for (_, y, z), outputs in itertools.islice(results, len(row.ys) * len(starts[2])):
            for i, blended in enumerate(sums if outputs is not None else ()):
                blended.add(layout.turn(outputs[i]), y, z)  # type: ignore[index]
            del outputs
            on_window(layout.count())
        box = layout.box_back((*row.finished, slice(0, size[2])))
        yield [_cropped(box, layout.turn_back(blended.finish(row)), image, layout) for blended in sums]


def assembled(pieces: Iterable[list[Piece]]) -> list[Tensor]:
    """Whole outputs, float32, each (channels, *S), from all of their pieces."""
    results: list[Tensor] = []
    for found in pieces:
        if not results:
            results = [piece.values.new_empty(piece.shape) for piece in found]
        for result, piece in zip(results, found, strict=True):
            result[all_channels(piece.box)] = piece.values
    return results


def _cropped(box: Sequence[slice], values: Tensor, image: Tensor, layout: Layout) -> Piece:
    """The piece of the image that a part of the padded image is."""
    inside, kept = [], []
    for part, (before, _), n in zip(box, layout.pads, image.shape[1:], strict=True):
        start, stop = max(part.start - before, 0), min(part.stop - before, n)
        inside.append(slice(start, stop))
        kept.append(slice(start + before - part.start, stop + before - part.start))
    return Piece(tuple(inside), values[all_channels(kept)], (len(values), *image.shape[1:]))


def _where_memory_is(makers: Sequence[Callable[..., BlendedSum]], device: torch.device | str) -> list[BlendedSum]:
    """Sums on a device, or all of them in the computer's own memory if the device's is not enough."""
    try:
        return [make(device=device) for make in makers]
    except RuntimeError as error:
        if torch.device(device).type == "cpu" or not is_out_of_memory(error):
            raise
    logger.warning("out of memory: sums are kept on the CPU")
    return [make(device="cpu") for make in makers]


class StreamingInferer(inferers.SlidingWindowInferer):
    """MONAI's `SlidingWindowInferer` on `stream`: use it in a bundle's configuration in its place.

    Args:
        args: those of MONAI's. `buffer_steps`, `buffer_dim` and `cache_roi_weight_map` change nothing here: memory is
            bounded and weights are kept in any case.
        even: see `windows.window_starts`.
        stretch: see `windows.Layout`.
        mirror_axes: see `WindowSettings`.
        background: see `WindowSettings`.
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

        def predict(i: int, windows: Tensor, boxes: list[tuple[slice, ...]]) -> list[Tensor]:
            nonlocal structure
            where = [[slice(i, i + 1), slice(None), *box] for box in boxes]
            with torch.autocast(computing.type, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext():
                outputs = network(windows.to(computing), *([where] if self.with_coord else []), *args, **kwargs)
            tensors, structure = tree_flatten(outputs)
            return tensors

        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        with tqdm(unit="window", disable=not self.progress) as bar:
            done = [
                assembled(stream(image, functools.partial(predict, i), settings, lambda _: bar.update()))
                for i, image in enumerate(images)
            ]
        results = [torch.stack(outputs) for outputs in zip(*done, strict=True)]
        if isinstance(inputs, MetaTensor):
            results = [MetaTensor(result, meta=inputs.meta) for result in results]
        return tree_unflatten(results, structure)


def settings_of(inferer: inferers.SlidingWindowInferer) -> WindowSettings:
    """What MONAI's inferer, or ours, was told."""
    ours = ("even", "stretch", "mirror_axes", "background")
    extra = {name: getattr(inferer, name) for name in ours if isinstance(inferer, StreamingInferer)}
    return WindowSettings(
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
