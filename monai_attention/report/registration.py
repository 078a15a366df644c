"""A picture of one registration: three planes through the fixed scan, what lies on it before and after, and the field.

Rows are axial, coronal and sagittal planes in radiological view. Nothing in it names the patient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import nibabel
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from monai_attention.io.geometry import directions, spacing
from monai_attention.report.preview import PLANES, grey_window, on_screen, slices_through
from monai_attention.report.sheet import BACKGROUND, FAINT, INK, LINE

PANEL = 230  # pixels of the longest side of a plane
GAP = 8
TILE_MM = 24.0  # of the checkerboard
MESH_MM = 8.0  # between lines of the deformed grid
HISTOGRAM = (420, 110)
FOLD = (230, 60, 50)
"""Colour of voxels where the field folds."""

Box = tuple[slice, ...]
"""Of voxels, a slice an axis."""

Look = Callable[[Box], np.ndarray]
"""What a volume has in a box, so that of large ones only what is drawn need be computed."""


def registration_sheet(
    fixed: np.ndarray,
    affine_only: Look,
    registered: Look,
    displacement_mm: Look,
    jacobian: np.ndarray,
    affine: np.ndarray,
    figures: Mapping[str, str],
) -> Image.Image:
    """Draw how a moving scan came to lie on a fixed one.

    Args:
        fixed: shape (X, Y, Z).
        affine_only: the moving scan on the same grid, after the affine registration.
        registered: after the whole of it.
        displacement_mm: of the deformation alone, RAS, three components.
        jacobian: determinant of the whole transformation, shape (X, Y, Z).
        affine: of the grid, voxel index -> RAS mm.
        figures: to print below, by name.
    """
    orientation = nibabel.io_orientation(affine)

    turned = affine @ nibabel.orientations.inv_ornt_aff(orientation, fixed.shape)
    steps, to_axes = spacing(turned), np.linalg.inv(directions(turned))
    images: tuple[Look, ...] = (fixed.__getitem__, affine_only, registered)
    windows = [grey_window(look(_sparse(fixed.shape, orientation))) for look in images]
    bright = np.empty(fixed.shape, bool)
    for plane, found in zip(fixed, bright, strict=True):
        found[...] = _scaled(plane, windows[0]) > 0.1
    bright = nibabel.apply_orientation(bright, orientation)
    index = slices_through(bright)
    rows = []
    for _, axis, _ in PLANES:
        box = _plane(fixed.shape, orientation, axis, index[axis])

        def screen(part: np.ndarray, axis: int = axis) -> np.ndarray:
            return on_screen(nibabel.apply_orientation(part, orientation), axis, 0)

        still, before, after = (
            _scaled(screen(look(box)), window) for look, window in zip(images, windows, strict=True)
        )
        places = _places(bright.shape, steps, axis)
        tiles = np.sum([np.floor(place / TILE_MM) for place in places], axis=0) % 2 == 0
        along_axes = np.tensordot(to_axes, displacement_mm(box), axes=1)
        moved = [screen(component) for other, component in enumerate(along_axes) if other != axis]
        pictures = [
            *map(_grey, (still, before, after)),
            *(_grey(np.where(tiles, still, image)) for image in (before, after)),
            *(_difference(still - image) for image in (before, after)),
            _mesh(places, moved, still, screen(jacobian[box]) <= 0),
        ]
        size = np.array([steps[other] for other in range(3) if other != axis]) * np.array(still.shape[::-1])
        scale = PANEL / max(np.asarray(bright.shape) * steps)
        rows.append(
            [p.resize(tuple(int(n) for n in np.ceil(size * scale)), Image.Resampling.BILINEAR) for p in pictures]
        )
    return _composed(rows, _histogram(jacobian), figures)


TITLES = (
    "fixed",
    "moving, affine",
    "moving, registered",
    "checkerboard, affine",
    "checkerboard, registered",
    "difference, affine",
    "difference, registered",
    "deformed grid",
)


def _composed(rows: list[list[Image.Image]], histogram: Image.Image, figures: Mapping[str, str]) -> Image.Image:
    font = ImageFont.load_default(size=14)
    width = max(picture.width for row in rows for picture in row) + GAP
    heights = [row[0].height + GAP for row in rows]
    sheet = Image.new("RGB", (width * len(TITLES), LINE + sum(heights) + histogram.height + 2 * LINE), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(TITLES):
        draw.text((column * width + width // 2, 3), title, INK, font, anchor="ma")
        top = LINE
        for row, height in zip(rows, heights, strict=True):
            sheet.paste(row[column], (column * width + (width - row[column].width) // 2, top))
            top += height
    top = LINE + sum(heights) + LINE
    sheet.paste(histogram, (GAP, top))
    draw.text((GAP, top - 4), "logarithm of the Jacobian", FAINT, font, anchor="ls")
    for number, (name, value) in enumerate(figures.items()):
        place = histogram.width + 4 * GAP + number // 5 * 420, top + number % 5 * LINE
        draw.text(place, f"{name}: {value}", INK, font, anchor="la")
    return sheet


def _plane(shape: tuple[int, ...], orientation: np.ndarray, axis: int, index: int) -> Box:
    """Where the voxels of a canonical plane are in the array."""
    across = int(np.flatnonzero(orientation[:, 0] == axis)[0])
    place = index if orientation[across, 1] > 0 else shape[across] - 1 - index
    return tuple(slice(place, place + 1) if i == across else slice(0, n) for i, n in enumerate(shape))


def _sparse(shape: tuple[int, ...], orientation: np.ndarray) -> Box:
    """At most a million voxels, counted from the canonical first one: those that `grey_window` looks at."""
    steps = [-(-n // 100) for n in shape]
    turned = orientation[:, 1] < 0
    return tuple(
        slice((n - 1) % step if back else 0, n, step) for n, step, back in zip(shape, steps, turned, strict=True)
    )


def _scaled(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """From 0 to 1 between two values."""
    low, high = window
    return ((image - low) / (high - low)).clip(0, 1).astype(np.float32)


def _grey(plane: np.ndarray) -> Image.Image:
    return Image.fromarray((plane * 255).astype(np.uint8)).convert("RGB")


def _difference(plane: np.ndarray) -> Image.Image:
    """Red where the fixed scan is brighter, blue where it is darker, black where they agree."""
    strength = (np.abs(plane) * 255).clip(0, 255).astype(np.uint8)
    nothing = np.zeros_like(strength)
    red, blue = np.where(plane > 0, strength, nothing), np.where(plane < 0, strength, nothing)
    return Image.fromarray(np.stack([red, strength // 3, blue], axis=-1))


def _places(shape: tuple[int, ...], steps: np.ndarray, axis: int) -> list[np.ndarray]:
    """Coordinates in mm along the two axes of a plane, as it is on the screen."""
    places = []
    for other in (o for o in range(3) if o != axis):
        line = np.arange(shape[other]) * steps[other]
        view = np.broadcast_to(line.reshape([-1 if o == other else 1 for o in range(3)]), shape)
        places.append(on_screen(view, axis, 0))
    return places


def _mesh(places: list[np.ndarray], moved: list[np.ndarray], plane: np.ndarray, folded: np.ndarray) -> Image.Image:
    """Lines of the moving scan's space as they come to lie on the fixed one, and folds in red."""
    far = [np.abs((x + u + MESH_MM / 2) % MESH_MM - MESH_MM / 2) for x, u in zip(places, moved, strict=True)]
    lines = np.minimum(*far) < MESH_MM / 10
    picture = np.repeat((plane * 90)[..., None], 3, axis=-1)
    picture[lines] = 220
    picture[folded] = FOLD
    return Image.fromarray(picture.astype(np.uint8))


def _histogram(jacobian: np.ndarray) -> Image.Image:
    """Of the logarithm where it has one; folds are counted in the figures."""
    width, height = HISTOGRAM
    counts = np.zeros(width // 6, np.int64)
    for plane in jacobian:
        counts += np.histogram(np.log(plane[plane > 0]).clip(-1.5, 1.5), bins=len(counts), range=(-1.5, 1.5))[0]
    picture = Image.new("RGB", HISTOGRAM, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for i, count in enumerate(counts):
        top = height - 18 - (height - 22) * count / max(1, counts.max())
        draw.rectangle((6 * i, top, 6 * i + 4, height - 18), fill=INK)
    font = ImageFont.load_default(size=12)
    for value in (-1, 0, 1):
        draw.text((width * (value + 1.5) / 3, height - 2), f"{value:+d}" if value else "0", FAINT, font, anchor="ms")
    return picture
