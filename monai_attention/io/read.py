"""One case -> one `Volume`, or a `Refusal`: the format found, the header checked, then the voxels read and checked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from monai_attention.errors import Refusal
from monai_attention.io import cases, content
from monai_attention.io.content import Header
from monai_attention.io.volume import ReadOptions, Requirements, Volume

if TYPE_CHECKING:
    from monai_attention.io.dicom import Series

DEFAULTS = ReadOptions()


def read(
    path: str | Path,
    options: ReadOptions = DEFAULTS,
    requirements: Requirements | None = None,
    *,
    scratch: Path | None = None,
) -> Volume:
    """Read one case, whatever its format.

    Args:
        path: a volume file, a DICOM folder or file, or a zip of one of these.
        options: the user's choices about what cannot be read unambiguously.
        requirements: what a bundle accepts; None checks only what holds for any.
        scratch: where zips are unpacked, each in a new folder; the caller removes them when `slice_files` are no longer
            needed. Without it they are unpacked for the reading only, and `slice_files` is empty.

    Returns:
        The volume: float32 (C, X, Y, Z), RAS affine, and notes of what was noticed.

    Raises:
        Refusal: the case cannot be read, or not without guessing, or is not for this bundle.
    """
    path = Path(path)
    with _enough_memory(path):
        return content.examine(_whole(path, options, requirements, scratch), requirements)


def read_stored(path: str | Path, options: ReadOptions = DEFAULTS) -> Volume:
    """As `read`, but voxels are let in whatever they hold: a label map may be empty.

    Raises:
        Refusal: the file cannot be read, or not without guessing.
    """
    path = Path(path)
    with _enough_memory(path):
        return _whole(path, options, None, None)


def read_header(path: str | Path, options: ReadOptions = DEFAULTS, requirements: Requirements | None = None) -> Header:
    """All that can be known, and refused, of one case before its voxels are read; arguments as for `read`."""
    path = Path(path)
    with _unpacked(path, None) as found:
        if _kind(found) == "dicom":
            header = _series_header(_series(found, options, requirements), options)
        else:
            header = _reader(found).read_header(found, options, requirements)
        notes = (*header.notes, *content.examine_geometry(header, requirements))
    return Header(
        source=path,
        shape=header.shape,
        affine=header.affine,
        channels=header.channels,
        modality=header.modality,
        notes=notes,
    )


def _whole(path: Path, options: ReadOptions, requirements: Requirements | None, scratch: Path | None) -> Volume:
    with _unpacked(path, scratch) as found:
        volume = _read(found, options, requirements)
    if found == path:
        return volume
    return replace(volume, source=path, slice_files=volume.slice_files if scratch else ())


@contextmanager
def _enough_memory(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        remedy = "crop or downsample the image, or close other programs"
        raise Refusal("E-SIZE", "there is not enough memory to read it", path=path, remedy=remedy) from error


def _read(path: Path, options: ReadOptions, requirements: Requirements | None) -> Volume:
    if _kind(path) == "dicom":
        from monai_attention.io import dicom

        series = _series(path, options, requirements)
        content.examine_geometry(_series_header(series, options), requirements)
        return dicom.read_series(series, options)
    reader = _reader(path)
    content.examine_geometry(reader.read_header(path, options, requirements), requirements)
    return reader.read(path, options, requirements)


def _kind(path: Path) -> str:
    kind = cases.kind_of(path)
    if kind is not None:
        return kind
    if not os.path.lexists(path):
        raise Refusal("E-NOT-FOUND", "there is no such file or folder", path=path, remedy="check the path")
    raise Refusal("E-FORMAT", f"expected {cases.FORMATS}", path=path, remedy="convert the image to .nii.gz")


def _reader(path: Path) -> ModuleType:
    if _kind(path) == "nifti":
        from monai_attention.io import nifti

        return nifti
    from monai_attention.io import itk_formats

    return itk_formats


def _series(folder: Path, options: ReadOptions, requirements: Requirements | None) -> Series:
    from monai_attention.io import dicom

    return dicom.choose(dicom.scan(folder), options, requirements)


def _series_header(series: Series, options: ReadOptions) -> Header:
    from monai_attention.io import dicom

    stack = dicom.check_series(series, options)
    return Header(
        source=series.source,
        shape=stack.shape,
        affine=stack.affine,
        modality=series.modality or None,
        notes=(*series.notes, *stack.notes),
    )


@contextmanager
def _unpacked(path: Path, scratch: Path | None) -> Iterator[Path]:
    """The path itself, or the one case inside a zip; refusals then name the zip, since what is inside will be gone."""
    if _kind(path) != "zip":
        yield path
        return
    from monai_attention.io import archives

    with tempfile.TemporaryDirectory(prefix="monai-attention-") as temporary:
        folder = Path(temporary) if scratch is None else Path(tempfile.mkdtemp(dir=scratch))
        archives.extract(path, folder)
        try:
            inside = cases.find_cases([folder])
            if [case.kind for case in inside] in (["nifti"], ["itk"], ["dicom"]):
                yield inside[0].path
                return
            found = ", ".join(str(case.path.relative_to(folder)) for case in inside[:5])
            message = f"expected one image, got {len(inside)}: {found}"
            raise Refusal("E-SEVERAL", message, path=path, remedy="unpack it and give the folder")
        except Refusal as error:
            raise Refusal(error.code, f"inside the archive: {error.message}", path=path, remedy=error.remedy) from error
