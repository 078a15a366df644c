"""One volume through one bundle: preprocessing, sliding windows, and the labels back on the volume's own grid."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer, SlidingWindowInfererAdapt
from torch import Tensor

from monai_attention.bundles import LoadedBundle
from monai_attention.errors import Refusal
from monai_attention.inference.labels import LabelsOnGrid, aligned
from monai_attention.inference.phases import Phases
from monai_attention.inference.resample import labels_on_grid, on_orthogonal_grid
from monai_attention.inference.sliding_window import Settings, StreamingInferer, settings_of, stream
from monai_attention.inference.windows import Layout, sum_bytes
from monai_attention.io.geometry import is_sheared
from monai_attention.io.volume import Volume

OnWindow = Callable[[int, int | None], None]
"""Called with the number of windows done and the number in all (None if the inferer does not tell)."""

STREAMED = (SlidingWindowInferer, SlidingWindowInfererAdapt, StreamingInferer)
"""Inferers whose windows we visit ourselves; their subclasses may mean something else, and are called as they are."""


def predict(
    volume: Volume,
    bundle: LoadedBundle,
    phases: Phases,
    *,
    max_memory: int | None = None,
    on_window: OnWindow | None = None,
) -> np.ndarray:
    """Label every voxel of a volume.

    Args:
        volume: as the gate let it in.
        bundle: its network is on `phases.device`.
        phases: keeps the time of `prepare`, `network` and `labels`.
        max_memory: bytes; a volume whose logits would need more is refused before the network runs.
        on_window: progress.

    Returns:
        uint8, shape `volume.shape`, on the volume's grid.

    Raises:
        Refusal: `E-MEMORY`, `E-RESULT`, `E-BUNDLE-CONFIG`.
    """
    with phases.phase("prepare"):
        image, affine = prepare(volume, bundle)
    job = _Job(volume, bundle, image, affine, max_memory)
    on_window = on_window or (lambda done, total: None)
    if type(bundle.inferer) in STREAMED and aligned(affine, volume.affine, volume.shape):
        return _streamed(job, settings_of(bundle.inferer), phases, on_window)
    job.check_memory(memory_needed(volume.shape, tuple(image.shape[1:]), len(bundle.classes)))
    with phases.phase("network"):
        logits = run_inferer(image, bundle, phases.device, on_window)
    with phases.phase("labels"):
        return labels_on_grid(logits, affine, volume.affine, volume.shape)


@dataclass(frozen=True)
class _Job:
    """What there is to do, and how much memory there is for it."""

    volume: Volume
    bundle: LoadedBundle
    image: Tensor
    affine: np.ndarray
    max_memory: int | None

    def check_memory(self, needed: int) -> None:
        """Refuse what would not fit."""
        if self.max_memory is not None and needed > self.max_memory:
            raise Refusal(
                "E-MEMORY",
                f"{len(self.bundle.classes)} classes on {' x '.join(map(str, self.image.shape[1:]))} voxels need about "
                f"{needed / 1e9:.1f} GB, {self.max_memory / 1e9:.1f} GB are allowed",
                path=self.volume.source,
                remedy="allow more with --max-memory, crop the image, or use a bundle with fewer classes",
            )


def _streamed(job: _Job, settings: Settings, phases: Phases, on_window: OnWindow) -> np.ndarray:
    """Labels from pieces that leave the sliding windows as soon as they are finished."""
    layout = settings.layout(job.image.shape[1:])
    given = memory_needed(job.volume.shape, job.image.shape[1:], 0)
    job.check_memory(given + streaming_memory(len(job.bundle.classes), layout, whole=False))
    settings = replace(
        settings,
        sum_device=settings.sum_device or phases.device,
        sum_bytes=settings.sum_bytes if job.max_memory is None else (job.max_memory - given) / 2,
    )
    done = itertools.count(1)
    network = _checked(job.bundle, phases.device)
    pieces = stream(
        job.image, lambda windows, _: [network(windows)], settings, lambda total: on_window(next(done), total)
    )
    labels = LabelsOnGrid(layout.order, job.image.shape[1:], job.affine, job.volume.affine, job.volume.shape)
    while True:
        with phases.phase("network"):
            piece = next(pieces, None)
        if piece is None:
            return labels.labels
        with phases.phase("labels"):
            labels.add(piece[0])


def prepare(volume: Volume, bundle: LoadedBundle) -> tuple[Tensor, np.ndarray]:
    """What the network sees, shape (C, *S), and where it lies.

    A sheared volume (gantry tilt) is first resampled to perpendicular axes: the network has never seen a sheared head.
    """
    if is_sheared(volume.affine):
        array, affine = on_orthogonal_grid(volume.array, volume.affine)
        volume = replace(volume, array=array, affine=affine)
    prepared = bundle.preprocessing({"image": volume.as_metatensor()})["image"]
    return prepared.as_tensor().float(), prepared.affine.double().numpy()


def memory_needed(shape: Sequence[int], network_shape: Sequence[int], classes: int) -> int:
    """Bytes: the input and its prepared copy in float32, logits and counts on the network's grid, and the labels."""
    return math.prod(shape) * (4 + 1) + math.prod(network_shape) * 4 * (2 + 2 * classes)


def streaming_memory(classes: int, layout: Layout, *, whole: bool) -> int:
    """Bytes that sums and labels of pieces hold: twice the sums for what is handed on, and a plane of probabilities."""
    size, roi, starts = layout.three()
    return 2 * sum_bytes(classes, size, roi, starts, whole=whole) + 4 * classes * size[1] * size[2]


def _checked(bundle: LoadedBundle, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The bundle's network, of which nothing is believed that cannot be."""

    bfloat16 = getattr(bundle.inferer, "bfloat16", False)

    def network(windows: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext():
            logits = bundle.network(windows.to(device))
        expected = (len(windows), len(bundle.classes), *windows.shape[2:])
        if logits.shape != expected:
            raise Refusal(
                "E-BUNDLE-CONFIG",
                f"expected logits of shape {expected} (windows, classes, voxels), got {tuple(logits.shape)}",
                remedy="the bundle's channel_def and its network do not belong together",
            )
        if not logits.isfinite().all():
            raise Refusal(
                "E-RESULT",
                "the network's output holds NaN or infinity",
                remedy="compare the image's intensities with the bundle's card; if they fit, tell its authors",
            )
        return logits

    return network


@torch.no_grad()
def run_inferer(image: Tensor, bundle: LoadedBundle, device: torch.device, on_window: OnWindow) -> Tensor:
    """Logits (classes, *S) of an image (C, *S), by the bundle's inferer."""
    total, done = window_count(image.shape[1:], bundle.inferer), 0
    checked = _checked(bundle, device)

    def network(windows: Tensor) -> Tensor:
        nonlocal done
        logits = checked(windows)
        done += len(windows)
        on_window(done, total)
        return logits

    return bundle.inferer(image[None].to(device), network)[0].float()


def window_count(size: Sequence[int], inferer: object) -> int | None:
    """Windows of a MONAI `SlidingWindowInferer`, or ours, on an image; None for other inferers."""
    return settings_of(inferer).layout(size).count() if type(inferer) in STREAMED else None
