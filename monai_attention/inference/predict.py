"""One volume through one bundle: preprocessing, sliding windows, and the labels back on the volume's own grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from monai_attention.bundles import LoadedBundle
from monai_attention.errors import Refusal
from monai_attention.inference.phases import Phases
from monai_attention.inference.resample import labels_on_grid, on_orthogonal_grid
from monai_attention.io.geometry import is_sheared
from monai_attention.io.volume import Volume

OnWindow = Callable[[int, int | None], None]
"""Called with the number of windows done and the number in all (None if the inferer does not tell)."""


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
        Refusal: `E-MEMORY`.
    """
    with phases.phase("prepare"):
        image, affine = prepare(volume, bundle)
    needed = memory_needed(volume.shape, tuple(image.shape[1:]), len(bundle.classes))
    if max_memory is not None and needed > max_memory:
        raise Refusal(
            "E-MEMORY",
            f"{len(bundle.classes)} classes on {' x '.join(map(str, image.shape[1:]))} voxels need about "
            f"{needed / 1e9:.1f} GB, {max_memory / 1e9:.1f} GB are allowed",
            path=volume.source,
            remedy="allow more with --max-memory, crop the image, or use a bundle with fewer classes",
        )
    with phases.phase("network"):
        logits = run_windows(image, bundle, phases.device, on_window)
    with phases.phase("labels"):
        return labels_on_grid(logits, affine, volume.affine, volume.shape)


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


@torch.no_grad()
def run_windows(image: Tensor, bundle: LoadedBundle, device: torch.device, on_window: OnWindow | None) -> Tensor:
    """Logits (classes, *S) of an image (C, *S), by the bundle's inferer."""
    total, done = window_count(image.shape[1:], bundle.inferer), 0

    def network(windows: Tensor) -> Tensor:
        nonlocal done
        logits = bundle.network(windows)
        done += len(windows)
        if on_window is not None:
            on_window(done, total)
        return logits

    logits = bundle.inferer(image[None].to(device), network)[0]
    expected = (len(bundle.classes), *image.shape[1:])
    if logits.shape != expected:
        raise Refusal(
            "E-BUNDLE-CONFIG",
            f"expected logits of shape {expected} (classes, then the image's), got {tuple(logits.shape)}",
            remedy="the bundle's channel_def and its network do not belong together",
        )
    return logits.float()


def window_count(size: Sequence[int], inferer: object) -> int | None:
    """Windows of a MONAI `SlidingWindowInferer` on an image; None for other inferers."""
    roi, overlap = getattr(inferer, "roi_size", None), getattr(inferer, "overlap", None)
    if roi is None or overlap is None:
        return None
    count = 1
    for axis, n in enumerate(size):
        r = min(roi[axis] if isinstance(roi, Sequence) else roi, max(n, 1))
        step = max(1, int(r * (1 - (overlap[axis] if isinstance(overlap, Sequence) else overlap))))
        count *= math.ceil(max(0, n - r) / step) + 1
    return count
