"""From image planes to a volume's grid, or a refusal: pure functions on positions and orientations.

highdicom's strict reading decides whether planes are evenly spaced along their normal. It knows right-angled stacks
only, and lets up to 2.5 degrees of tilt pass as none, so the stacking direction is measured here and kept: a tilted
gantry gives a sheared affine, not a wrong one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.io.dicom_headers import Plane
from monai_attention.io.geometry import RAS_LPS, is_sheared, lps_to_ras
from monai_attention.io.volume import Note

ORIENTATION_TOLERANCE = 1e-4
"""Largest difference of two direction cosines that count as the same: 0.05 mm at the edge of a 500 mm slice."""
PERPENDICULAR_TOLERANCE = 1e-3
"""Largest deviation from unit, perpendicular row and column directions in a header."""
SPACING_TOLERANCE = 0.01
"""Largest deviation of a slice distance from the mean one, as a part of it (highdicom's own default)."""
POSITION_TOLERANCE_MM = 0.02
"""Positions are decimal texts, often rounded to 0.01 mm: no two are told apart below this."""
MINORITY = 0.2
"""Largest part of a series that may lie differently and still be dropped as stray localizers."""
PARALLEL = 0.985
"""Cosine of 10 degrees: what lies closer to the other slices than that is one of them, and no localizer."""
MOST_STRAYS = 3
"""Largest number of such images."""
GAP = 1.5
"""A slice distance above this many typical ones is a place where slices are missing."""
MOST_INVENTED = 0.5
"""Largest part of a volume that resampling across gaps may invent."""


@dataclass(frozen=True)
class Stack:
    """Parallel planes in order along their normal, and the regular grid they lie on or are to be resampled to.

    Args:
        planes: one plane for each position, ascending along the normal (row direction x column direction).
        copies: for planes at the same position, (the one kept, the others): to be dropped if their pixels agree.
        distances: mm of every plane along the normal from the first, shape (N,).
        grid: mm of every slice of the volume along the normal from the first; equals `distances` without gaps.
        affine: voxel (x, y, z) -> RAS mm of the volume, x along a row.
        notes: what was noticed.
    """

    planes: tuple[Plane, ...]
    copies: tuple[tuple[Plane, tuple[Plane, ...]], ...]
    distances: np.ndarray
    grid: np.ndarray
    affine: np.ndarray
    notes: tuple[Note, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        rows, columns = self.planes[0].header.size
        return columns, rows, len(self.grid)

    @property
    def has_gaps(self) -> bool:
        """Whether the volume has to be resampled from planes that are not evenly spaced."""
        return self.grid is not self.distances


def arrange(planes: Sequence[Plane], *, allow_gaps: bool = False) -> Stack:
    """Puts the planes of one series in order and checks that they make one volume.

    Args:
        planes: all planes of a series, in any order.
        allow_gaps: plan to resample unevenly spaced planes on a regular grid instead of refusing them.

    Raises:
        Refusal: `E-GEOMETRY`, `E-ORIENTATION`, `E-GAP`, `E-TOO-SMALL`.
    """
    folder = planes[0].header.path.parent
    kept, notes = _drop_localizers(planes)
    _check_alike(kept)
    normal = _normal(kept[0])
    order = sorted(kept, key=lambda plane: (float(normal @ np.array(plane.position)), plane.header.path, plane.frame))
    places = _group_by_position(order)
    ordered = tuple(group[0] for group in places)
    if len(ordered) < 2:
        raise Refusal("E-TOO-SMALL", "expected a stack of parallel slices, but there is a single one", path=folder)
    positions = np.array([plane.position for plane in ordered])
    distances = (positions - positions[0]) @ normal
    step = _direction(positions, distances, ordered)
    typical = float(np.median(np.diff(distances)))
    grid = distances
    if not _evenly_spaced(distances, ordered[0]):
        if not allow_gaps:
            raise _gap(positions @ normal, typical, folder)
        grid = _regular_grid(distances, typical, folder)
        notes = (*notes, _gap_note(distances, grid))
    affine = _affine(ordered[0], step * (grid[-1] / (len(grid) - 1)))
    if is_sheared(affine):
        degrees = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
        notes = (*notes, Note("info", "I-TILT", f"slices are stacked {degrees:.1f} degrees off their normal (tilt)"))
    copies = tuple((group[0], group[1:]) for group in places if len(group) > 1)
    return Stack(ordered, copies, distances, grid, affine, notes)


def _drop_localizers(planes: Sequence[Plane]) -> tuple[tuple[Plane, ...], tuple[Note, ...]]:
    """Without images that say they are localizers, and without a few strays that lie across all others."""
    rest = [plane for plane in planes if not plane.header.localizer] or list(planes)
    unplaced = next((plane for plane in rest if not plane.placed), None)
    if unplaced is not None:
        raise Refusal(
            "E-GEOMETRY",
            "expected ImagePositionPatient, ImageOrientationPatient and PixelSpacing, but not all three are there",
            path=unplaced.header.path,
            remedy="convert the series from its original files, or remove files that do not belong to it",
        )
    groups = sorted(_group_by_orientation(rest), key=len, reverse=True)
    strays = len(rest) - len(groups[0])
    normal = _normal(groups[0][0])
    along = any(abs(float(normal @ _normal(group[0]))) > PARALLEL for group in groups[1:])
    if along or strays > MOST_STRAYS or strays > MINORITY * len(rest):
        sizes = ", ".join(str(len(group)) for group in groups)
        raise Refusal(
            "E-ORIENTATION",
            f"expected parallel slices in one series, but {len(groups)} orientations came, of {sizes} images",
            path=groups[1][0].header.path,
            remedy="move the images of one orientation to a folder of their own",
        )
    dropped = len(planes) - len(groups[0])
    note = Note("repair", "R-LOCALIZER", f"dropped {dropped} localizer images from a series of {len(planes)}")
    return tuple(groups[0]), (note,) if dropped else ()


def _group_by_orientation(planes: Sequence[Plane]) -> list[list[Plane]]:
    groups: list[list[Plane]] = []
    for plane in planes:
        for group in groups:
            difference = np.subtract(plane.orientation, group[0].orientation)  # type: ignore[arg-type]
            if np.abs(difference).max() <= ORIENTATION_TOLERANCE:
                group.append(plane)
                break
        else:
            groups.append([plane])
    return groups


def _check_alike(planes: Sequence[Plane]) -> None:
    """All planes share matrix, pixel spacing and frame of reference, and their axes are unit and perpendicular."""
    facts = {
        "matrix": lambda plane: plane.header.size,
        "pixel spacing": lambda plane: plane.pixel_spacing,
        "frame of reference": lambda plane: plane.header.frame_of_reference,
    }
    for what, fact in facts.items():
        (_, most), *others = Counter(fact(plane) for plane in planes).most_common()
        if others:
            odd = next(plane for plane in planes if fact(plane) == others[0][0])
            raise Refusal(
                "E-GEOMETRY",
                f"expected one {what} in a series, but {most} images have one and {len(planes) - most} another",
                path=odd.header.path,
                remedy="move the images that do not belong together to folders of their own",
            )
    first = planes[0]
    row, column = _axes(first)
    cosines = np.array([row @ row - 1, column @ column - 1, row @ column])
    if np.abs(cosines).max() > PERPENDICULAR_TOLERANCE:
        message = "expected perpendicular unit vectors in ImageOrientationPatient, but others came"
        raise Refusal("E-ORIENTATION", message, path=first.header.path)
    if np.min(first.pixel_spacing) <= 0:  # type: ignore[arg-type]
        raise Refusal(
            "E-GEOMETRY", f"expected a positive pixel spacing, got {first.pixel_spacing}", path=first.header.path
        )


def _axes(plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    orientation = np.array(plane.orientation, dtype=np.float64)
    return orientation[:3], orientation[3:]


def _normal(plane: Plane) -> np.ndarray:
    normal = np.cross(*_axes(plane))
    return normal / np.linalg.norm(normal)


def _group_by_position(order: Sequence[Plane]) -> list[tuple[Plane, ...]]:
    """Planes in the same place, for planes sorted along the normal."""
    groups: list[list[Plane]] = []
    for plane in order:
        if groups:
            away = np.subtract(plane.position, groups[-1][0].position)  # type: ignore[arg-type]
            if np.linalg.norm(away) <= POSITION_TOLERANCE_MM:
                groups[-1].append(plane)
                continue
        groups.append([plane])
    return [tuple(group) for group in groups]


def _direction(positions: np.ndarray, distances: np.ndarray, planes: Sequence[Plane]) -> np.ndarray:
    """Travel in LPS for every mm along the normal, shape (3,), after checking that it is the same everywhere."""
    tolerance = max(SPACING_TOLERANCE * distances[-1] / (len(planes) - 1), POSITION_TOLERANCE_MM)
    if (np.diff(distances) <= POSITION_TOLERANCE_MM).any():
        off = 1 + int(np.argmin(np.diff(distances)))
    else:
        direction = (positions[-1] - positions[0]) / distances[-1]
        away = np.linalg.norm(positions - positions[0] - distances[:, None] * direction, axis=1)
        off = int(away.argmax())
        if away[off] <= tolerance:
            return direction
    raise Refusal(
        "E-GEOMETRY",
        f"expected slices whose corners lie on one line, but {positions[off].round(2).tolist()} mm lies beside it",
        path=planes[off].header.path,
        remedy="keep only the images of one stack in the folder",
    )


def _evenly_spaced(distances: np.ndarray, plane: Plane) -> bool:
    """What highdicom says about the planes moved along themselves until one stands above the other."""
    from highdicom.spatial import get_volume_positions

    straight = np.array(plane.position) + distances[:, None] * _normal(plane)
    tolerance = max(SPACING_TOLERANCE * distances[-1] / (len(distances) - 1), POSITION_TOLERANCE_MM)
    spacing, _ = get_volume_positions(straight, np.array(plane.orientation), atol=tolerance)
    even = np.linspace(0, distances[-1], len(distances))
    # highdicom compares neighbours; comparing with the grid itself keeps small deviations from adding up.
    return spacing is not None and bool(np.abs(distances - even).max() <= tolerance)


def _gap(along: np.ndarray, typical: float, folder: Path) -> Refusal:
    steps = np.diff(along)
    wide = np.flatnonzero(steps > GAP * typical)
    if len(wide):
        places = [f"between {along[i]:.2f} and {along[i + 1]:.2f} mm" for i in wide[:5]]
        more = f" and {len(wide) - 5} more places" if len(wide) > 5 else ""
        missing = int(sum(round(steps[i] / typical) - 1 for i in wide))
        what = f"{missing} slices are missing: along the slice normal {', '.join(places)}{more}"
    else:
        what = f"their distances range from {steps.min():.3f} to {steps.max():.3f} mm"
    return Refusal(
        "E-GAP",
        f"expected evenly spaced slices, typically {typical:.3f} mm apart, but {what}",
        path=folder,
        remedy="export the series again, or pass --allow-gaps to interpolate at the true positions",
    )


def _regular_grid(distances: np.ndarray, typical: float, folder: Path) -> np.ndarray:
    count = round(float(distances[-1]) / typical) + 1
    if count - len(distances) > MOST_INVENTED * count:
        raise Refusal(
            "E-GAP",
            f"expected at least half of the slices, but only {len(distances)} of {count} are there",
            path=folder,
            remedy="export the series again",
        )
    return np.linspace(0, distances[-1], count)


def _gap_note(distances: np.ndarray, grid: np.ndarray) -> Note:
    message = f"{len(distances)} unevenly spaced slices were resampled to {len(grid)}, {grid[1]:.3f} mm apart"
    return Note(
        "flag", "F-GAP", f"{message}; the largest distance between two of them is {np.diff(distances).max():.2f} mm"
    )


def plane_affine(plane: Plane) -> np.ndarray:
    """(column, row, 0) of a plane's pixel -> RAS mm, shape (4, 4); the third column is zero."""
    row, column = _axes(plane)
    between_rows, between_columns = plane.pixel_spacing  # type: ignore[misc]
    lps = np.eye(4)
    lps[:3, 0] = row / np.linalg.norm(row) * between_columns
    lps[:3, 1] = column / np.linalg.norm(column) * between_rows
    lps[:3, 2] = 0
    lps[:3, 3] = plane.position
    return lps_to_ras(lps)


def _affine(first: Plane, step_lps: np.ndarray) -> np.ndarray:
    affine = plane_affine(first)
    affine[:3, 2] = RAS_LPS[:3, :3] @ step_lps
    return affine
