"""DICOM in: find the series in a folder, choose one, check it by its headers, read it as a volume.

    scan(folder) -> choose(scan) -> check_series(series) -> read_series(series)

Values are the scanner's (modality LUT applied, nothing displayed), geometry is what the headers say, checked, or a
refusal. Nothing of the patient is parsed on the way.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.io.dicom_geometry import Stack, arrange
from monai_attention.io.dicom_headers import Plane, Skip, is_dicom, read_planes
from monai_attention.io.dicom_pixels import check_codec, check_scalar, read_frames
from monai_attention.io.files import files_below
from monai_attention.io.payload import expect_memory
from monai_attention.io.volume import Note, ReadOptions, Requirements, Volume

__all__ = ["Scan", "Series", "check_series", "choose", "is_dicom", "read", "read_series", "scan"]

logger = logging.getLogger(__name__)

DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class Series:
    """The image planes that share a SeriesInstanceUID.

    Args:
        uid: SeriesInstanceUID, "" where it was emptied (then series are told apart by folder and frame of reference).
        source: the folder or file it was found in.
        planes: its image planes, as found.
        notes: why this series was taken, and what was skipped beside it.
    """

    uid: str
    source: Path
    planes: tuple[Plane, ...]
    notes: tuple[Note, ...] = ()

    @property
    def modality(self) -> str:
        """DICOM Modality, or ""."""
        return self.planes[0].header.modality

    @property
    def obstacle(self) -> str:
        """Why the series is no candidate for a volume, "" if it is one. Says nothing about its geometry's faults."""
        first = self.planes[0].header
        try:
            check_scalar(replace(first, photometric=first.photometric.replace("MONOCHROME1", "MONOCHROME2")))
        except Refusal:
            return "not a scalar image"
        if all(plane.header.localizer for plane in self.planes):
            return "localizer"
        if not any(plane.placed for plane in self.planes):
            return "no positions"
        return "" if len(self.planes) > 1 else "single slice"


@dataclass(frozen=True)
class Scan:
    """What a folder holds.

    Args:
        source: the folder or file.
        series: in order of series number and UID.
        skipped: how many files were left aside, by reason.
        damaged: refusals of files that are DICOM but broken; any series may miss them.
    """

    source: Path
    series: tuple[Series, ...]
    skipped: Mapping[Skip, int]
    damaged: tuple[Refusal, ...] = ()


def scan(source: Path) -> Scan:
    """Looks into the headers of all files below a folder (or of one file), following links but never in circles."""
    found: dict[tuple[str, ...], list[Plane]] = defaultdict(list)
    skipped: Counter[Skip] = Counter()
    damaged: list[Refusal] = []
    for path in _files(Path(source)):
        try:
            planes = read_planes(path)
        except Refusal as refusal:
            damaged.append(refusal)
            continue
        if isinstance(planes, Skip):
            skipped[planes] += 1
            continue
        header = planes[0].header
        uid = header.series_uid
        found[(uid,) if uid else ("", str(path.parent), header.frame_of_reference, header.modality)] += planes
    series = [Series(key[0], Path(source), tuple(planes)) for key, planes in found.items()]
    series.sort(key=lambda one: (one.planes[0].header.series_number or 0, one.uid))
    return Scan(Path(source), tuple(series), skipped, tuple(damaged))


def choose(scan: Scan, options: ReadOptions = DEFAULTS, requirements: Requirements | None = None) -> Series:
    """The series to read: the one asked for, the only one, or the only one that a bundle could take.

    Raises:
        Refusal: `E-TRUNCATED` if a file of the folder is damaged, `E-NO-IMAGES` if it has no DICOM images,
            `E-SERIES` with a table if several series could be meant or the one asked for is not there.
    """
    if scan.damaged:
        raise scan.damaged[0]
    if not scan.series:
        counts = _counts(scan.skipped) or "no files"
        raise Refusal("E-NO-IMAGES", f"expected DICOM images, but found {counts}", path=scan.source)
    chosen = _chosen(scan, options, requirements)
    notes = []
    if len(scan.series) > 1:
        what = f"took series {chosen.uid or '(no UID)'}, one of {len(scan.series)}"
        notes.append(Note("info", "I-SERIES", f"{what}: {chosen.modality}, {len(chosen.planes)} images"))
    if scan.skipped:
        notes.append(Note("info", "I-SKIPPED", f"skipped files: {_counts(scan.skipped)}"))
    if scan.skipped.get(Skip.UNREADABLE):
        what = (
            f"{scan.skipped[Skip.UNREADABLE]} files cannot be opened; slices at the ends of the series may be missing"
        )
        notes.append(Note("flag", "F-UNREADABLE", what))
    return replace(chosen, notes=(*chosen.notes, *notes))


def check_series(series: Series, options: ReadOptions = DEFAULTS) -> Stack:
    """The order and grid of a series, by its headers alone (and the pixels of slices that are there twice).

    Raises:
        Refusal: `E-NOT-SCALAR`, `E-MONOCHROME1`, `E-CODEC`, `E-ORIENTATION`, `E-GEOMETRY`, `E-GAP`, `E-TOO-SMALL`,
            `E-DUPLICATE`, `E-4D`, `E-SIZE`.
    """
    headers = dict.fromkeys(plane.header for plane in series.planes)
    for header in [one for one in headers if not one.localizer] or headers:
        check_scalar(header)
        check_codec(header)
    stack = arrange(series.planes, allow_gaps=options.allow_gaps)
    slices = stack.shape[2] + (len(stack.planes) if stack.has_gaps else 0)
    expect_memory(series.source, 4 * stack.shape[0] * stack.shape[1] * slices, options.max_memory)
    return replace(stack, notes=(*stack.notes, *_check_copies(stack), *_burned_in(stack)))


def read_series(series: Series, options: ReadOptions = DEFAULTS) -> Volume:
    """The volume of a series: float32 (1, X, Y, Z), x along rows, z along the slices' normal, RAS affine.

    `slice_files` lists the files in order of z: one a slice for single-frame series, unless gaps were resampled; for
    multi-frame files every file once.

    Raises:
        Refusal: all of `check_series`, and `E-TRUNCATED`.
    """
    stack = check_series(series, options)
    array = np.empty((1, *stack.shape[:2], len(stack.planes)), dtype=np.float32)
    for index, values in enumerate(read_frames(stack.planes)):
        array[0, :, :, index] = values.T
    if stack.has_gaps:
        array = _resample(array, stack.distances, stack.grid)
    notes = (*series.notes, *stack.notes)
    for note in notes:
        logger.info("%s: %s %s", series.source, note.code, note.message)
    return Volume(
        array,
        stack.affine,
        source=series.source,
        modality=series.modality or None,
        series_uid=series.uid or None,
        slice_files=tuple(dict.fromkeys(plane.header.path for plane in stack.planes)),
        notes=notes,
    )


def read(path: Path, options: ReadOptions = DEFAULTS, requirements: Requirements | None = None) -> Volume:
    """The volume in a folder of DICOM files or in one (multi-frame) file.

    Raises:
        Refusal: all of `choose` and `read_series`.
    """
    return read_series(choose(scan(path), options, requirements), options)


def _files(source: Path) -> Iterator[Path]:
    """The file, or the visible ones below a folder."""
    if source.is_file():
        yield source
    else:
        yield from (path for path in files_below(source) if not path.is_fifo())  # one would block


def _chosen(scan: Scan, options: ReadOptions, requirements: Requirements | None) -> Series:
    if isinstance(options.series, str):
        asked = [series for series in scan.series if series.uid == options.series]
        if not asked:
            raise _series_refusal(scan, f"expected series {options.series}, but it is not among")
        return asked[0]
    if held := [series for series in scan.series if series.uid in (options.series or ())]:
        if len(held) > 1:
            raise _series_refusal(scan, f"expected one of the series asked for, but {len(held)} of them are among")
        return held[0]
    if len(scan.series) == 1:
        return scan.series[0]
    wanted = requirements.modalities if requirements else ()
    fitting = [one for one in scan.series if not one.obstacle and (not wanted or one.modality in wanted)]
    if len(fitting) != 1:
        raise _series_refusal(scan, f"expected one series that fits, but {len(fitting)} do of")
    return fitting[0]


def _series_refusal(scan: Scan, what: str) -> Refusal:
    lines = []
    for series in scan.series:
        rows, columns = series.planes[0].header.size
        number = series.planes[0].header.series_number
        facts = [
            "-" if number is None else str(number),
            series.modality or "?",
            f"{columns}x{rows}x{len(series.planes)}",
        ]
        lines.append("  " + "  ".join([*facts, series.uid or "(no UID)", series.obstacle]).rstrip())
    table = "\n".join(["  number  modality  columns x rows x images  UID", *lines])
    return Refusal(
        "E-SERIES", f"{what} these {len(scan.series)}:\n{table}\n", path=scan.source, remedy="pass --series UID"
    )


def _counts(skipped: Mapping[Skip, int]) -> str:
    return ", ".join(f"{count} {reason.value}" for reason, count in skipped.items())


def _check_copies(stack: Stack) -> tuple[Note, ...]:
    """Lets slices in the same place pass if their pixels are the same; only the first of each is kept."""
    for kept, others in stack.copies:
        first = next(read_frames([kept]))
        for other, values in zip(others, read_frames(others), strict=True):
            if not np.array_equal(first, values):
                raise _differing(stack, kept, other)
    dropped = sum(len(others) for _, others in stack.copies)
    note = Note("repair", "R-DUPLICATE", f"dropped {dropped} slices that are there twice with identical pixels")
    return (note,) if dropped else ()


def _burned_in(stack: Stack) -> tuple[Note, ...]:
    count = sum(plane.header.burned_in for plane in stack.planes)
    note = Note("flag", "F-BURNED-IN", f"{count} images say that annotation is burned into their pixels")
    return (note,) if count else ()


def _differing(stack: Stack, kept: Plane, other: Plane) -> Refusal:
    times = {1 + len(others) for _, others in stack.copies}
    if len(stack.copies) == len(stack.planes) and len(times) == 1:
        message = (
            f"expected one volume, but every position holds {times.pop()} different slices (times, echoes, phases)"
        )
        remedy = "export one time point, echo or phase as a series of its own"
        return Refusal("E-4D", message, path=other.header.path, remedy=remedy)
    where = np.round(np.array(other.position), 2).tolist()
    return Refusal(
        "E-DUPLICATE",
        f"expected one slice at {where} mm, but it differs from the one in {kept.header.path.name}",
        path=other.header.path,
        remedy="remove the one that does not belong to the series",
    )


def _resample(array: np.ndarray, distances: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Linear interpolation along the last axis from slices at `distances` to slices at `grid`, both in mm."""
    out = np.empty((*array.shape[:-1], len(grid)), dtype=array.dtype)
    above = np.clip(np.searchsorted(distances, grid, side="right"), 1, len(distances) - 1)
    for index, (at, right) in enumerate(zip(grid, above, strict=True)):
        left = right - 1
        weight = np.float32((at - distances[left]) / (distances[right] - distances[left]))
        out[..., index] = (1 - weight) * array[..., left] + weight * array[..., right]
    return out
