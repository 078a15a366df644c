"""A label map on the grid of its image, whatever the format and the order of its axes; never resampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel
import numpy as np

from monai_attention.errors import Refusal
from monai_attention.io.cases import kind_of
from monai_attention.io.files import files_below
from monai_attention.io.geometry import corners
from monai_attention.io.read import DEFAULTS, read_stored
from monai_attention.io.volume import Note, ReadOptions, Volume

TOLERANCE_MM = 1e-3
"""Farthest that the corners of a label map may lie from those of its image."""


@dataclass(frozen=True)
class LabelMap:
    """Labels on an image's grid, as they are stored: not yet known to be whole numbers.

    Args:
        values: shape (X, Y, Z), float32, or uint16 from a DICOM SEG.
        source: the file.
        names: value -> name, where the file says; else empty.
        notes: what was noticed in reading.
    """

    values: np.ndarray
    source: Path
    names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


def read_labels(path: str | Path, image: Volume, options: ReadOptions = DEFAULTS) -> LabelMap:
    """Read the label map of an image.

    Args:
        path: a volume file, or a DICOM Segmentation, or a folder of nothing but that.
        image: on whose grid the labels must lie; the order and direction of the file's axes may differ.
        options: `affine` and `max_memory` count, the others belong to the image.

    Raises:
        Refusal: E-GRID if the labels lie on another grid, or what the reading of their format raises.
    """
    path = Path(path)
    if path.is_dir() and len(files := list(files_below(path))) == 1:
        path = files[0]
    if path.is_file() and kind_of(path) == "dicom":
        from monai_attention.io.dicom_seg_read import is_segmentation, read_segmentation

        if is_segmentation(path):
            values, names = read_segmentation(path, image)
            return LabelMap(values, path, names)
    volume = read_stored(path, replace(options, series=None, volume=None))
    return LabelMap(onto(volume, image).array[0], path, notes=volume.notes)


def onto(volume: Volume, image: Volume) -> Volume:
    """The volume with its axes in the image's order and direction, which loses nothing.

    Raises:
        Refusal: E-GRID, the two have different voxels.
    """
    orientation = nibabel.io_orientation(np.linalg.inv(image.affine) @ volume.affine)
    turned = np.moveaxis(nibabel.apply_orientation(np.moveaxis(volume.array, 0, -1), orientation), -1, 0)
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(orientation, volume.shape)
    turned_volume = replace(volume, array=turned, affine=affine)
    remedy = f"resample it onto {image.source.name} (labels: nearest neighbour), or give what belongs to it"
    if turned_volume.shape != image.shape:
        message = f"expected {_times(image.shape)} voxels as the image has, got {_times(turned_volume.shape)}"
        raise Refusal("E-GRID", message, path=volume.source, remedy=remedy)
    far = np.linalg.norm(corners(affine, image.shape) - corners(image.affine, image.shape), axis=1).max()
    if far > TOLERANCE_MM:
        message = f"its corners lie up to {far:.3g} mm from the image's; at most {TOLERANCE_MM:g} mm is rounding"
        raise Refusal("E-GRID", message, path=volume.source, remedy=remedy)
    return turned_volume


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
