"""One labelled case -> its image and its labels on one grid, through the same gate as any other input."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.finetune.label_values import as_labels
from monai_attention.finetune.labelled import LabelledCase
from monai_attention.io.channels import read_channels
from monai_attention.io.label_maps import read_labels
from monai_attention.io.read import DEFAULTS
from monai_attention.io.volume import ReadOptions, Requirements, Volume


@dataclass(frozen=True)
class LoadedCase:
    """Voxels of a case.

    Args:
        image: shape (C, X, Y, Z), all channels; notes of all files.
        labels: uint8, shape (X, Y, Z).
        counts: voxels of each value, shape (256,).
        names: value -> name where the label file says (DICOM SEG), else empty.
    """

    image: Volume
    labels: np.ndarray
    counts: np.ndarray
    names: dict[int, str]


def load(
    case: LabelledCase,
    channels: int,
    *,
    classes: Collection[int] | None = None,
    options: ReadOptions = DEFAULTS,
) -> LoadedCase:
    """Read a case.

    Args:
        case: an image a channel, or one image that holds them all.
        channels: how many there must be.
        classes: values that may occur beside 0; None for any from 1 to 255.
        options: the user's choices about what cannot be read unambiguously.

    Raises:
        Refusal: E-SWAPPED, E-GRID, E-LABELS, or what reading either file raises.
    """
    for path in case.images:
        _expect_two_files(path, case.label)
    several = Requirements(channels=channels, needs_orientation=False, spacing_mm=(0.0, math.inf))
    image = read_channels(case.images, options, several if channels > 1 else None)
    found = read_labels(case.label, image, options)
    labels, counts = as_labels(found.values, image, path=case.label, allowed=classes)
    return LoadedCase(image.noting(*found.notes), labels, counts, dict(found.names))


def _expect_two_files(image: Path, label: Path) -> None:
    try:
        same = image.samefile(label)
    except OSError:
        return  # a file that is not there, or cannot be looked at: reading it says so
    if same:
        raise Refusal("E-SWAPPED", "image and label map are the same file", path=label, remedy="give the label map")
