"""What the user typed -> the list of pairs to register, each with a name of its own, before anything is read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.io.cases import safe_name, strip_suffix

COLUMNS = ("fixed", "moving", "labels", "fixed_labels", "landmarks", "id")
POINTS = ("fixed_x", "fixed_y", "fixed_z", "moving_x", "moving_y", "moving_z")


@dataclass(frozen=True)
class Pair:
    """Two scans, and what is known of them.

    Args:
        id: name for the results, safe as a folder name.
        fixed: file or DICOM folder; the results lie on its grid.
        moving: file or DICOM folder.
        labels: label map of the moving scan, to be warped.
        fixed_labels: label map of the fixed scan, to compare with.
        landmarks: table of corresponding points, see `read_landmarks`.
    """

    id: str
    fixed: Path
    moving: Path
    labels: Path | None = None
    fixed_labels: Path | None = None
    landmarks: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Those there are, by their role."""
        roles = ("fixed", "moving", "labels", "fixed_labels", "landmarks")
        return {role: path for role in roles if (path := getattr(self, role)) is not None}


def find_pairs(
    fixed: str | Path,
    moving: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    fixed_labels: str | Path | None = None,
    landmarks: str | Path | None = None,
) -> list[Pair]:
    """One pair from two paths, or many from a CSV.

    The CSV has columns `fixed` and `moving` and may have `labels`, `fixed_labels`, `landmarks` and `id`; paths are
    relative to it. Without ids a pair is called `<moving>_to_<fixed>`. That a file is missing is the verdict of its own
    pair.

    Raises:
        Refusal: E-CSV, E-EMPTY (a table without rows), E-DUPLICATE-CASE, E-NOT-FOUND, E-UNREADABLE.
    """
    if moving is not None:
        given = {"fixed": fixed, "moving": moving, "labels": labels, "fixed_labels": fixed_labels}
        given["landmarks"] = landmarks
        return [_pair({name: str(path) for name, path in given.items() if path is not None}, Path.cwd(), Path(fixed))]
    table = Path(fixed)
    if table.suffix.lower() != ".csv":
        message = "expected two scans, or a .csv of pairs"
        raise Refusal("E-CSV", message, path=table, remedy="name the moving scan as well")
    if any(path is not None for path in (labels, fixed_labels, landmarks)):
        remedy = "write them into its columns labels, fixed_labels and landmarks"
        raise Refusal(
            "E-CSV", "labels and landmarks of a single pair were given beside a table", path=table, remedy=remedy
        )
    rows = _rows(table, ("fixed", "moving"), COLUMNS)
    pairs = [_pair({name: value for name, value in row.items() if value}, table.parent, table) for row in rows]
    if not pairs:
        raise Refusal("E-EMPTY", "the table has no rows", path=table, remedy="write a row a pair")
    names = [pair.id.casefold() for pair in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        remedy = "give each row an `id` of its own"
        raise Refusal("E-DUPLICATE-CASE", f"several pairs are called {', '.join(twice)}", path=table, remedy=remedy)
    return pairs


def read_landmarks(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Corresponding points from a CSV with columns `fixed_x`, `fixed_y`, `fixed_z`, `moving_x`, ..., RAS mm.

    Returns:
        Points of the fixed and of the moving scan, each (N, 3).

    Raises:
        Refusal: E-NOT-FOUND, E-UNREADABLE, E-CSV.
    """
    rows = _rows(path, POINTS, POINTS)
    try:
        points = np.array([[float(row[name]) for name in POINTS] for row in rows])
    except (ValueError, TypeError) as error:
        raise Refusal("E-CSV", "a coordinate is no number", path=path, remedy="write numbers in mm, RAS") from error
    if not len(points) or not np.isfinite(points).all():
        raise Refusal("E-CSV", "expected rows of finite numbers", path=path, remedy="write numbers in mm, RAS")
    return points[:, :3], points[:, 3:]


def _rows(path: Path, needed: Sequence[str], known: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            found = reader.fieldnames or []
            if not set(needed) <= set(found) <= set(known):
                message = f"expected the columns {', '.join(needed)}, got {', '.join(found) or 'none'}"
                raise Refusal("E-CSV", message, path=path, remedy=f"columns may be {', '.join(known)}")
            rows = [dict(row) for row in reader]
    except FileNotFoundError as error:
        raise Refusal("E-NOT-FOUND", "there is no such file", path=path, remedy="check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refusal("E-CSV", "this is no table in UTF-8", path=path, remedy="save it as CSV, UTF-8") from error
    except OSError as error:
        message = f"the table cannot be read: {error.strerror}"
        raise Refusal("E-UNREADABLE", message, path=path, remedy="check its permissions") from error
    for number, row in enumerate(rows, start=1):
        if None in row:
            remedy = "put names that hold commas into quotes"
            raise Refusal("E-CSV", f"row {number} has more cells than there are columns", path=path, remedy=remedy)
    return rows


def _pair(given: dict[str, str], folder: Path, source: Path) -> Pair:
    for name in ("fixed", "moving"):
        if name not in given:
            remedy = "fill the column, or drop the row"
            raise Refusal("E-CSV", f"a row has no {name} scan", path=source, remedy=remedy)
    if "fixed_labels" in given and "labels" not in given:
        remedy = "give the moving scan's labels as well, or none"
        raise Refusal("E-CSV", "labels of the fixed scan alone cannot be compared", path=source, remedy=remedy)
    paths = {name: Path(folder / value).absolute() for name, value in given.items() if name != "id"}
    fixed, moving = (strip_suffix(paths[name]).name for name in ("fixed", "moving"))
    return Pair(safe_name(given.get("id", f"{moving}_to_{fixed}")), **paths)
