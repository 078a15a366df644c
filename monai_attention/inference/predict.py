"""One volume through one bundle: preprocessing, sliding windows, and the labels back on the volume's own grid."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer, SlidingWindowInfererAdapt
from torch import Tensor, nn

from monai_attention.bundles import LoadedBundle
from monai_attention.cohort.phases import Phases, is_out_of_memory
from monai_attention.errors import Refusal
from monai_attention.inference.labels import PART_BYTES, LabelsOnGrid, aligned
from monai_attention.inference.resample import labels_on_grid, map_on_grid, on_orthogonal_grid
from monai_attention.inference.sliding_window import Piece, StreamingInferer, assembled, settings_of, stream
from monai_attention.inference.uncertainty import entropy
from monai_attention.inference.window_batches import Predict
from monai_attention.inference.windows import Layout, sum_bytes
from monai_attention.io.geometry import is_sheared
from monai_attention.io.volume import Volume

OnWindow = Callable[[int, int | None], None]
"""Called with the number of windows done and the number in all (None if the inferer does not tell)."""

STREAMED = (SlidingWindowInferer, SlidingWindowInfererAdapt, StreamingInferer)
"""Inferers whose windows we visit ourselves; their subclasses may mean something else, and are called as they are."""


class Prediction(NamedTuple):
    """What was found.

    Args:
        labels: uint8, shape of the volume, on its grid.
        maps: by name, float32, same shape, from 0 (sure) to 1, see `uncertainty`.
    """

    labels: np.ndarray
    maps: Mapping[str, np.ndarray]


def predict(
    volume: Volume,
    bundle: LoadedBundle,
    phases: Phases,
    *,
    replicas: Sequence[tuple[nn.Module, torch.device]] = (),
    uncertainty: bool = False,
    max_memory: int | None = None,
    on_window: OnWindow | None = None,
) -> Prediction:
    """Label every voxel of a volume.

    Args:
        volume: as the gate let it in.
        bundle: its network is on `phases.device`.
        phases: keeps the time of `prepare`, `network` and `labels`.
        replicas: of the network on further devices, which take their share of sliding windows.
        uncertainty: also give the map `entropy`, and `disagreement` if the bundle's inferer mirrors windows.
        max_memory: bytes; a volume whose logits would need more is refused before the network runs.
        on_window: progress.

    Raises:
        Refusal: `E-MEMORY`, `E-RESULT`, `E-BUNDLE-CONFIG`.
    """
    with phases.phase("prepare"):
        image, affine = prepare(volume, bundle.preprocessing)
    job = _Job(volume, bundle, image, affine, uncertainty, max_memory)
    on_window = on_window or (lambda done, total: None)
    if type(bundle.inferer) in STREAMED:
        networks = [(bundle.network, phases.device), *replicas]
        predicts = [_predict(bundle, network, device) for network, device in networks]
        return _streamed(job, predicts, phases, on_window)
    job.check_memory(memory_needed(volume.array.shape, tuple(image.shape), len(bundle.classes)))
    with phases.phase("network"):
        logits = run_inferer(image, bundle, phases.device, on_window)
    with phases.phase("labels"):
        return _on_the_volumes_grid(job, logits)


@dataclass(frozen=True)
class _Job:
    """What there is to do, and how much memory there is for it."""

    volume: Volume
    bundle: LoadedBundle
    image: Tensor
    affine: np.ndarray
    uncertainty: bool
    max_memory: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the network's grid."""
        return tuple(self.image.shape[1:])

    def check_memory(self, needed: int) -> None:
        """Refuse what would not fit."""
        if self.max_memory is not None and needed > self.max_memory:
            raise Refusal(
                "E-MEMORY",
                f"{len(self.bundle.classes)} classes on {' x '.join(map(str, self.shape))} voxels need about "
                f"{needed / 1e9:.1f} GB, {self.max_memory / 1e9:.1f} GB are allowed",
                path=self.volume.source,
                remedy="allow more with --max-memory, crop the image, or use a bundle with fewer classes",
            )


def _streamed(job: _Job, predicts: Sequence[Predict], phases: Phases, on_window: OnWindow) -> Prediction:
    """Labels from pieces that leave the sliding windows as soon as they are finished."""
    settings, classes = settings_of(job.bundle.inferer), len(job.bundle.classes)
    maps = ["entropy", "disagreement"] if settings.mirror_axes else ["entropy"]
    maps = maps if job.uncertainty else []
    straight = aligned(job.affine, job.volume.affine, job.volume.shape)
    layout = settings.layout(job.shape)
    given = memory_needed(job.volume.array.shape, tuple(job.image.shape), 0 if straight else classes + len(maps))
    given += 4 * len(maps) * math.prod(job.volume.shape)
    job.check_memory(given + streaming_memory(classes + len(maps), layout, whole=False))
    settings = replace(
        settings,
        disagreement="disagreement" in maps,
        sum_bytes=settings.sum_bytes if job.max_memory is None else (job.max_memory - given) / 2,
    )
    held = max(settings.sum_bytes, streaming_memory(classes + len(maps), layout, whole=False))
    settings = replace(settings, sum_device=settings.sum_device or _roomy(phases.device, 2 * held))
    done = itertools.count(1)
    image = _moved(job.image, phases.device)
    pieces = stream(image, predicts, settings, lambda total: on_window(next(done), total))
    if straight:
        labels = LabelsOnGrid(layout.order, job.shape, job.affine, job.volume.affine, job.volume.shape, maps=maps)
        for found in _timed(pieces, phases):
            with phases.phase("labels"):
                labels.add(*found)
        return Prediction(labels.labels, labels.maps)
    with phases.phase("network"):
        logits, *further = assembled(pieces)
    with phases.phase("labels"):
        return _on_the_volumes_grid(job, logits, *further)


def _timed(pieces: Iterator[list[Piece]], phases: Phases) -> Iterator[list[Piece]]:
    """The same, and the time they take to come."""
    while True:
        with phases.phase("network"):
            found = next(pieces, None)
        if found is None:
            return
        yield found


def _on_the_volumes_grid(job: _Job, logits: Tensor, *further: Tensor) -> Prediction:
    """Labels and maps from whole logits (classes, *S), which are overwritten, and whole further maps (1, *S)."""
    volume = job.volume
    labels = labels_on_grid(logits, job.affine, volume.affine, volume.shape)  # logits are probabilities from here on
    if not job.uncertainty:
        return Prediction(labels, {})
    names = ("entropy", "disagreement")[: 1 + len(further)]
    maps = map_on_grid(torch.cat([entropy(logits, dim=0)[None], *further]), job.affine, volume.affine, volume.shape)
    return Prediction(labels, dict(zip(names, maps, strict=True)))


def _roomy(device: torch.device, needed: float) -> torch.device:
    """The device, or the CPU if so many bytes are not free there for sums, and labels made of them."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, but free
        if torch.cuda.mem_get_info(device)[0] + kept < needed:
            return torch.device("cpu")
    return device


def _moved(image: Tensor, device: torch.device) -> Tensor:
    """An image on the device, so that no window has to be copied there, or as it is where there is no room for it."""
    try:
        return image.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return image


def prepare(volume: Volume, preprocessing: Callable[[dict[str, Any]], Mapping[str, Any]]) -> tuple[Tensor, np.ndarray]:
    """What the network sees, shape (C, *S), and where it lies.

    A sheared volume (gantry tilt) is first resampled to perpendicular axes: the network has never seen a sheared head.
    """
    if is_sheared(volume.affine):
        array, affine = on_orthogonal_grid(volume.array, volume.affine)
        volume = replace(volume, array=array, affine=affine)
    prepared = preprocessing({"image": volume.as_metatensor()})["image"]
    return prepared.as_tensor().float(), prepared.affine.double().numpy()


def memory_needed(shape: Sequence[int], network_shape: Sequence[int], classes: int) -> int:
    """Bytes: input (C, X, Y, Z) and prepared copy (C, *S) in float32, logits and counts on its grid, and the labels."""
    labels, others = math.prod(shape[1:]), math.prod(network_shape[1:]) * (1 + 2 * classes)
    return labels + 4 * (math.prod(shape) + math.prod(network_shape) + others)


def streaming_memory(classes: int, layout: Layout, *, whole: bool) -> int:
    """Bytes that sums and labels of pieces hold: the sums, a plane of probabilities, and parts of pieces."""
    size, roi, starts = layout.three()
    sums = sum_bytes(classes, size, roi, starts, whole=whole)
    return sums + 4 * classes * size[1] * size[2] + 3 * min(PART_BYTES, sums)


def _predict(bundle: LoadedBundle, network: nn.Module, device: torch.device) -> Predict:
    """Windows -> logits by the bundle's network, or its replica, of which nothing is believed that cannot be."""
    bfloat16 = getattr(bundle.inferer, "bfloat16", False)

    def predict(windows: Tensor, _: Sequence[tuple[slice, ...]]) -> list[Tensor]:
        with torch.autocast(device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext():
            logits = network(windows.to(device))
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
        return [logits]

    return predict


@torch.no_grad()
def run_inferer(image: Tensor, bundle: LoadedBundle, device: torch.device, on_window: OnWindow) -> Tensor:
    """Logits (classes, *S) of an image (C, *S), by an inferer that we know nothing about."""
    done = 0
    predict = _predict(bundle, bundle.network, device)

    def network(windows: Tensor) -> Tensor:
        nonlocal done
        (logits,) = predict(windows, [])
        done += len(windows)
        on_window(done, None)
        return logits

    return bundle.inferer(image[None].to(device), network)[0].float()
