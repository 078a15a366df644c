"""A picture of one result: three planes through the labels, plain and overlaid, to see at a glance what went wrong.

Radiological view: the patient's right is on the left of axial and coronal planes. Nothing in it names the patient, and
there is no surface rendering that could show a face.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from monai_attention.io.geometry import directions, spacing
from monai_attention.io.write import replacing
from monai_attention.report.colours import colour
from monai_attention.report.sheet import Edges, Panel, compose
from monai_attention.report.tables import measure

PANEL = 400  # pixels of the longest side over all planes
OPACITY = 0.45
OBLIQUE_DEGREES = 5.0

PLANES = (
    ("axial", 2, Edges("R", "L", "A", "P")),
    ("coronal", 1, Edges("R", "L", "S", "I")),
    ("sagittal", 0, Edges("A", "P", "S", "I")),
)
"""Name, axis of the canonical (RAS) volume that it cuts, and what lies at its edges on the screen."""


def preview(
    image: np.ndarray,
    labels: np.ndarray,
    affine: np.ndarray,
    classes: Mapping[int, str],
    colours: Mapping[int, tuple[int, int, int]] | None = None,
) -> Image.Image:
    """Draw axial, coronal and sagittal planes through the centre of the labels, with legend and scale bars.

    Args:
        image: shape (X, Y, Z), any intensities; shown between their 1st and 99th percentile.
        labels: uint8, same shape.
        affine: shape (4, 4), voxel index -> RAS world mm; the letters name the nearest body axis.
        classes: label -> name; background, 0, is not drawn.
        colours: label -> RGB; the package's own colours without it.

    Returns:
        An RGB picture. Planes have their true proportions in mm, whatever the spacing.
    """
    if image.ndim != 3 or image.shape != labels.shape:
        raise ValueError(f"image and labels must share one shape (X, Y, Z), got {image.shape} and {labels.shape}")
    palette = {label: colour(label) for label in range(1, 256)} | dict(colours or {})
    steps, image, turned = upright(affine, image, labels)
    panels = [
        Panel(one.name, one.edges, one.grey, overlay(one.grey, one.maps[0], palette), one.pixels_per_mm)
        for one in planes(image, [turned], steps, slices_through(turned))
    ]
    return compose(panels, measure(labels, affine, classes), palette, tilt_remark(affine))


def write_preview(path: str | Path, picture: Image.Image) -> None:
    """Write a picture as PNG, without any text inside the file."""
    encoded = BytesIO()
    picture.save(encoded, format="PNG")
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


class Plane(NamedTuple):
    """A plane as it is on the screen: the image, and label maps as arrays (rows, columns) of the same size."""

    name: str
    edges: Edges
    grey: Image.Image
    maps: list[np.ndarray]
    pixels_per_mm: float


def upright(affine: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mm between voxels along the axes nearest to right, anterior and superior; and the arrays with these axes.

    Args:
        affine: shape (4, 4), voxel index -> RAS mm.
        arrays: of one shape (X, Y, Z).
    """
    import nibabel

    orientation = nibabel.io_orientation(affine)
    steps = spacing(affine @ nibabel.orientations.inv_ornt_aff(orientation, arrays[0].shape))
    return steps, *(nibabel.apply_orientation(one, orientation) for one in arrays)  # views: nothing is copied


def planes(image: np.ndarray, maps: Sequence[np.ndarray], steps: np.ndarray, index: Sequence[int]) -> Iterator[Plane]:
    """Axial, coronal and sagittal planes in their true proportions.

    Args:
        image: upright, shape (X, Y, Z).
        maps: uint8, same shape.
        steps: mm between voxels.
        index: of the plane across each axis.
    """
    low, high = grey_window(image)
    for name, axis, edges in PLANES:
        pixels_per_mm = _pixels_per_mm(image.shape, steps, axis)
        grey = on_screen(image, axis, index[axis])
        grey = np.nan_to_num(grey, nan=low, posinf=high, neginf=low).clip(low, high)
        grey = ((grey - low) * (255.0 / (high - low))).astype(np.uint8)
        size = tuple(max(1, round(mm * pixels_per_mm)) for mm in np.delete(image.shape * steps, axis))
        plain = Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR).convert("RGB")
        slices = (Image.fromarray(on_screen(one, axis, index[axis])) for one in maps)
        marks = [np.asarray(one.resize(size, Image.Resampling.NEAREST)) for one in slices]
        yield Plane(name, edges, plain, marks, pixels_per_mm)


def slices_through(labels: np.ndarray) -> list[int]:
    """Index per axis of the slice through the labels' centre of mass, or of the nearest one that has any label.

    The centre of two kidneys lies between them, where there is nothing to see. Without labels: the middle.
    """
    found = labels > 0
    indices = []
    for axis in range(3):
        counts = found.sum(axis=tuple(other for other in range(3) if other != axis))
        filled = np.flatnonzero(counts)
        if filled.size == 0:
            indices.append(labels.shape[axis] // 2)
            continue
        centre = np.average(np.arange(counts.size), weights=counts)
        indices.append(int(filled[np.abs(filled - centre).argmin()]))
    return indices


def on_screen(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A canonical slice as rows and columns: superior (or anterior) up, right (or anterior) to the left."""
    return np.ascontiguousarray(array.take(index, axis=axis).T[::-1, ::-1])


def grey_window(image: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of at most a million voxels; the extremes where those two are equal."""
    sample = image[tuple(slice(None, None, -(-n // 100)) for n in image.shape)]
    sample = sample[np.isfinite(sample)].astype(np.float64)
    if sample.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(sample, (1, 99))
    if high <= low:
        low, high = sample.min(), sample.max()
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def _pixels_per_mm(shape: Sequence[int], steps: np.ndarray, axis: int) -> float:
    """One scale for all planes, unless that would draw this one smaller than half a panel."""
    extent = np.asarray(shape) * steps
    return float(max(PANEL / extent.max(), PANEL / 2 / np.delete(extent, axis).max()))


def overlay(
    plain: Image.Image, labels: np.ndarray, palette: Mapping[int, tuple[int, int, int]], opacity: float = OPACITY
) -> Image.Image:
    """Tint the labelled pixels and draw the border of every class in its full colour."""
    table = np.zeros((256, 3))
    for label, rgb in palette.items():
        table[label] = rgb
    colours = table[labels]
    padded = np.pad(labels, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border = np.any([neighbour != labels for neighbour in neighbours], axis=0)
    weight = np.where(border, 1.0, opacity) * (labels > 0)
    mixed = np.asarray(plain) * (1 - weight[..., None]) + colours * weight[..., None]
    return Image.fromarray(mixed.round().astype(np.uint8))


def tilt_remark(affine: np.ndarray) -> str:
    """What the letters cannot say: that the image axes are tilted against the body's."""
    tilt = np.degrees(np.arccos(np.clip(np.abs(directions(affine)).max(axis=0), 0, 1))).max()
    return f"oblique: up to {tilt:.0f}° between image and body axes" if tilt >= OBLIQUE_DEGREES else ""
