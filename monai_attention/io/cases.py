"""What the user typed -> the list of cases, each with a name of its own, before anything is read.

A file is a case. So is every volume file or zip below a folder. DICOM below a folder is one case if some of it lies
directly in that folder, or if it is all of one study and no volume file is there; otherwise each of its subfolders is
asked the same. A CSV names one case a row.

For bundles of several channels a case may be several files, one a channel: below a folder those that end with `_0000`,
`_0001`, ... (nnU-Net's names); in a CSV the columns `image_...`, in their order; typed, with commas between them.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from monai_attention.errors import Refusal
from monai_attention.io.files import files_below

logger = logging.getLogger(__name__)

SUFFIXES = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".hdr": "nifti",  # pairs are refused when they are read, by name, instead of being passed over
    ".nrrd": "itk",
    ".nhdr": "itk",
    ".mha": "itk",
    ".mhd": "itk",
    ".zip": "zip",
}

FORMATS = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), DICOM, a .zip of one, or a .csv of paths"

CHANNEL = re.compile(r"_(\d{4})$")
"""How the name of a channel's file ends."""

MAX_ID_BYTES = 120


@dataclass(frozen=True)
class Case:
    """One thing to segment.

    Args:
        id: name for its results, unique among the cases, safe as a folder name.
        path: the file or DICOM folder, absolute; of several channels the first one's.
        kind: `nifti`, `itk`, `dicom` or `zip`.
        more: the files of the other channels, in order.
    """

    id: str
    path: Path
    kind: str
    more: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of its files."""
        return (self.path, *self.more)


@dataclass(frozen=True)
class _Found:
    path: Path
    kind: str
    root: Path
    """The given folder, or the one that the given file or table lies in."""
    id: str | None = None
    more: tuple[Path, ...] = ()


def find_cases(inputs: Sequence[str | Path], *, channels: int = 1, apart: Path | None = None) -> list[Case]:
    """List the cases in files, folders and CSV tables.

    A CSV has a column `path` (or `image`, or one `image_...` a channel), relative to the CSV, and may have a column
    `id`. Other ids are the path below the given folder (for a file: its name), without the suffix. If two were equal,
    all are the path below the deepest folder that holds all inputs: `a/t1.nii.gz` and `b/t1.nii.gz` become `a__t1` and
    `b__t1`.
    Hidden files and folders are skipped; links are followed, never in circles.

    Args:
        inputs: what was typed.
        channels: of the bundle; if more than one, files below a folder that end with numbers are channels. Whether a
            case has as many as it should, its reading tells.
        apart: a folder that is not looked into where it lies below one of the inputs: that of the results.

    Returns:
        The cases in the order of the inputs, and by path within a folder.

    Raises:
        Refusal: E-NOT-FOUND, E-EMPTY (nothing readable in a folder), E-FORMAT, E-CSV, E-UNREADABLE (a folder that
            cannot be listed) or E-DUPLICATE-CASE.
    """
    found: list[_Found] = []
    for given in inputs:
        path = Path(os.path.abspath(given))  # noqa: PTH100 - normalises `..` without following links
        if _is_folder(path):
            inside = apart is not None and path in apart.parents
            below = _in_folder(path, apart if inside else None)
            found += _joined(below, channels)
        elif not os.path.lexists(path) and "," in str(given):
            found.append(_typed(str(given)))
        elif not os.path.lexists(path):
            raise _missing(path)
        elif path.suffix.lower() == ".csv":
            found += _in_table(path)
        else:
            found.append(_Found(path, _known_kind(path), path.parent))
    return _named(found)


def _missing(path: Path) -> Refusal:
    return Refusal("E-NOT-FOUND", "there is no such file or folder", path=path, remedy="check the path")


def _known_kind(path: Path) -> str:
    kind = kind_of(path)
    if kind is None:
        raise Refusal("E-FORMAT", f"expected {FORMATS}", path=path, remedy="convert the image to .nii.gz")
    return kind


def _typed(given: str) -> _Found:
    """The channels of a case, with commas between them."""
    parts = [part.strip() for part in given.split(",")]
    if not all(parts):
        remedy = "write the files of a case with a comma, and no blank, between each and the next"
        raise Refusal("E-NOT-FOUND", f"there is nothing beside a comma of {given!r}", remedy=remedy)
    paths = [Path(os.path.abspath(Path(part).expanduser())) for part in parts]  # noqa: PTH100 - as above
    for path in paths:
        if not os.path.lexists(path):
            raise _missing(path)
    kinds = [_known_kind(path) for path in paths]
    return _Found(paths[0], kinds[0], paths[0].parent, more=tuple(paths[1:]))


def _joined(found: Sequence[_Found], channels: int) -> list[_Found]:
    """Files that differ in nothing but the number of their channel become one, if these are 0, 1, ... without a gap."""
    numbered: dict[Path, list[tuple[int, _Found]]] = {}
    for one in found:
        name = strip_suffix(one.path)
        if one.kind != "dicom" and (match := CHANNEL.search(name.name)):
            numbered.setdefault(name.with_name(name.name[: match.start()]), []).append((int(match[1]), one))
    joined: dict[Path, _Found | None] = {}
    for files in numbered.values():
        numbers = [number for number, _ in files]
        if 1 < len(files) <= channels and numbers == list(range(len(files))):
            paths = [one.path for _, one in files]
            joined |= dict.fromkeys(paths[1:]) | {paths[0]: replace(files[0][1], more=tuple(paths[1:]))}
    kept = (joined.get(one.path, one) for one in found)
    return [one for one in kept if one is not None]


def kind_of(path: Path) -> str | None:
    """How to read a path: `nifti`, `itk`, `zip` by the name, `dicom` for folders and DICOM files, else None."""
    if _is_folder(path):
        return "dicom"
    return _kind_by_name(path) or ("dicom" if _is_dicom(path) else None)


def strip_suffix(path: Path) -> Path:
    """The path without the suffix that tells its format: `a.b.nii.gz` -> `a.b`."""
    name = path.name
    known = sorted((s for s in (*SUFFIXES, ".dcm") if name.lower().endswith(s)), key=len)
    return path.with_name(name[: -len(known[-1])] or name) if known else path


def _kind_by_name(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def _is_dicom(path: Path) -> bool:
    from monai_attention.io import dicom

    try:
        return os.path.isfile(path) and dicom.is_dicom(path)  # noqa: PTH113 - as in _is_folder
    except OSError as error:
        logger.warning("%s: skipped, it cannot be opened (%s)", path, error.strerror)
        return False


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a name that is too long


def _in_folder(root: Path, apart: Path | None) -> list[_Found]:
    volumes = []
    studies: dict[Path, str] = {}
    for path in files_below(root):
        if apart is not None and path.is_relative_to(apart):
            continue
        kind = _kind_by_name(path)
        if kind is not None:
            volumes.append(_Found(path, kind, root))
        elif path.parent not in studies and path.name.upper() != "DICOMDIR" and _is_dicom(path):
            studies[path.parent] = _study(path)
    series = [_Found(folder, "dicom", root) for folder in _split(root, studies, [volume.path for volume in volumes])]
    if not volumes and not series:
        raise Refusal("E-EMPTY", f"the folder holds no image: expected {FORMATS}", path=root, remedy="check the path")
    return sorted(volumes + series, key=lambda one: one.path)


def _study(path: Path) -> str:
    """StudyInstanceUID, or that of the series, to be compared and never shown; "" where the file cannot tell."""
    import pydicom

    from monai_attention.io import dicom_headers

    try:
        with dicom_headers.discreet(path):
            found = dicom_headers.read_dataset(path, ["StudyInstanceUID", "SeriesInstanceUID"])
            return str(found.get("StudyInstanceUID") or found.get("SeriesInstanceUID") or "")
    except (OSError, EOFError, ValueError, pydicom.errors.InvalidDicomError) as error:
        logger.warning("%s: its study is unknown (%s)", path, type(error).__name__)  # reading it gives the verdict
        return ""


def _split(folder: Path, studies: dict[Path, str], volumes: Sequence[Path]) -> list[Path]:
    """The folders that are one DICOM case each; `studies` maps every folder that holds DICOM to the study in it."""
    below = [place for place in studies if place.is_relative_to(folder)]
    among = {studies[place] for place in below}
    one_study = len(among) == 1 and "" not in among and not any(v.is_relative_to(folder) for v in volumes)
    if folder in studies or one_study:
        return [folder]
    children = sorted({folder / place.relative_to(folder).parts[0] for place in below})
    return [case for child in children for case in _split(child, studies, volumes)]


def _in_table(table: Path) -> list[_Found]:
    found: list[_Found] = []
    remedy = "write a column `path` (or `image`, or `image_T1`, `image_T2`, ...); a column `id` if you like; as UTF-8"
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                given = [(row.get("path") or row.get("image") or "").strip()]
                if not {"path", "image"} & row.keys():
                    given = [(row[name] or "").strip() for name in row if name and name.startswith("image_")] or [""]
                if not all(given):
                    raise Refusal("E-CSV", f"row {len(found) + 1} names no path", path=table, remedy=remedy)
                first, *more = (Path(os.path.abspath(table.parent / one)) for one in given)  # noqa: PTH100
                # A missing or odd file is the verdict of its own case, not of the table.
                name = (row.get("id") or "").strip() or None
                found.append(_Found(first, kind_of(first) or "dicom", table.parent, name, tuple(more)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise Refusal("E-CSV", f"the table cannot be parsed: {error}", path=table, remedy=remedy) from error
    except OSError as error:
        message = f"the table cannot be read: {error.strerror}"
        raise Refusal("E-UNREADABLE", message, path=table, remedy="check its permissions") from error
    if not found:
        raise Refusal("E-EMPTY", "the table has no rows", path=table, remedy=remedy)
    return found


def _named(found: Sequence[_Found]) -> list[Case]:
    """Names from each input's own folder; where two would be equal, from the deepest folder that holds all inputs."""
    names = [_name(one, one.root) for one in found]
    if len({name.casefold() for name in names}) < len(names):  # some file systems do not tell A from a
        base = Path(os.path.commonpath([one.root for one in found]))
        names = [_name(one, base) for one in found]
    taken: dict[str, Path] = {}
    for one, name in zip(found, names, strict=True):
        if name.casefold() in taken:
            raise Refusal(
                "E-DUPLICATE-CASE",
                f"this case and {taken[name.casefold()]} would both be named {name}",
                path=one.path,
                remedy="rename one, give it once, or give a CSV with a column `id`",
            )
        taken[name.casefold()] = one.path
    return [Case(name, one.path, one.kind, one.more) for one, name in zip(found, names, strict=True)]


def _name(found: _Found, base: Path) -> str:
    below = os.path.relpath(strip_suffix(found.path), base)
    below = CHANNEL.sub("", below) if found.more else below
    return safe_name(found.id or (base.name if below == "." else below))


def safe_name(text: str) -> str:
    """A folder name for every file system: no separators, blanks or reserved characters, and not too long."""
    name = unicodedata.normalize("NFC", text).replace(os.sep, "__")
    name = re.sub(r"[\s<>:\"/\\|?*\x00-\x1f\x7f\ud800-\udfff]+", "_", name).strip(".") or "case"
    packed = name.encode()
    if len(packed) <= MAX_ID_BYTES:
        return name
    digest = hashlib.sha256(packed).hexdigest()[:8]
    return packed[: MAX_ID_BYTES - 9].decode(errors="ignore") + "-" + digest
