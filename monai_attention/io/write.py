"""Writing results so that a final name never holds a partial file.

Everything goes to a temporary file in the same folder first, is flushed to the disk, and takes its name in one step.
"""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.io.geometry import corners, spacing
from monai_attention.io.process import Process

if TYPE_CHECKING:
    from nibabel import Nifti1Header

logger = logging.getLogger(__name__)

FOREIGN_LEFTOVER_SECONDS = 24 * 3600
"""A temporary file of another machine counts as abandoned when nobody wrote to it for this long."""

QFORM_TOLERANCE = 1e-3
"""Largest disagreement of qform and sform at the volume's corners, in voxels, with which both are written."""

_TEMPORARY = re.compile(r"\.tmp-(?P<machine>[0-9a-f]{12})-(?P<pid>\d+)-(?P<started>\d+)-[0-9a-f]{8}(\..*)?")


@contextmanager
def replacing(final: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `final`; on success it becomes `final`, on any exception it disappears.

    Args:
        final: where the finished file goes; its folder must exist. The temporary keeps its suffix, because writers
            choose their format by it.

    Raises:
        Refusal: `E-DISK-FULL` or `E-READ-ONLY` in place of the system's error. What stood under `final` is untouched.
    """
    final = Path(final)
    temporary = final.with_name(_temporary_name(final.name))
    try:
        yield temporary
        _flush_file(temporary)
        temporary.replace(final)
        _flush_folder(final.parent)
    except BaseException as error:
        refusal = explain(error, final, temporary)  # before the removal: it tells how far the writing came
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()
        if refusal is not None:
            raise refusal from error
        raise


def explain(error: BaseException, final: Path, temporary: Path | None = None) -> Refusal | None:
    """The refusal that a failed write of `final` deserves, or None if the error is about something else."""
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        written = temporary.stat().st_size if temporary is not None and temporary.exists() else 0
        free = shutil.disk_usage(final.parent).free
        what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        return Refusal(
            "E-DISK-FULL",
            f"{what}: writing stopped after {_size(written)}, {_size(free)} are free; no partial file was left",
            path=final,
            remedy="free some space or choose another output folder, then run the same command again: "
            "finished cases are kept",
        )
    ours = {str(path) for path in (final, final.parent, temporary)}
    if str(error.filename) in ours and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _read_only(final, error)
    return None


def check_writable(folder: str | Path) -> None:
    """Make the output folder if needed and write a byte there, before hours are spent on results.

    Raises:
        Refusal: `E-READ-ONLY` if nothing can be written there, `E-DISK-FULL` if there is no room for a single byte.
    """
    folder = Path(folder)
    probe = folder / _temporary_name("probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\n")
        _flush_file(probe)
        probe.unlink()
    except OSError as error:
        raise (explain(error, probe) or _read_only(folder, error)) from error


def sweep_leftovers(folder: str | Path) -> list[Path]:
    """Remove temporary files whose writer is gone (killed, power loss) from a folder, and say which."""
    removed = []
    for path in sorted(Path(folder).glob(".tmp-*")):
        if _is_abandoned(path):
            path.unlink(missing_ok=True)
            removed.append(path)
            logger.info("removed %s, left by a run that was interrupted", path)
    return removed


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8 with Unix line ends; what is no text (undecodable file names) is written as escapes."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON that any parser reads: indented, UTF-8, keys in the given order, no NaN."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_labels(path: str | Path, labels: np.ndarray, affine: np.ndarray) -> None:
    """Write a label map as compressed NIfTI; see `write_nifti`.

    Args:
        path: ends in `.nii.gz`.
        labels: uint8, shape (X, Y, Z).
        affine: shape (4, 4), voxel index -> RAS world mm.
    """
    if labels.dtype != np.uint8 or labels.ndim != 3:
        raise TypeError(f"labels must be uint8 with shape (X, Y, Z), got {labels.dtype} with shape {labels.shape}")
    write_nifti(path, labels, affine)


def write_map(path: str | Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write numbers from 0 to 1 as compressed NIfTI, in 255 steps (one byte a voxel); see `write_nifti`.

    Args:
        path: ends in `.nii.gz`.
        values: floating, shape (X, Y, Z).
        affine: shape (4, 4), voxel index -> RAS world mm.
    """
    write_nifti(path, np.rint(values * 255).astype(np.uint8), affine, slope=1 / 255)


def write_nifti(path: str | Path, array: np.ndarray, affine: np.ndarray, *, slope: float = 1) -> None:
    """Write an array as compressed NIfTI; the same array and affine always give the same bytes.

    The sform carries the affine. The qform says the same where it can; it cannot express shear, and loses precision
    near half turns, and then stays unset rather than wrong.

    Args:
        path: ends in `.nii.gz`.
        array: shape (X, Y, Z), or (X, Y, Z, C) of several channels; its dtype is the file's.
        affine: shape (4, 4), voxel index -> RAS world mm.
        slope: readers multiply the array by it.
    """
    if not str(path).endswith(".nii.gz"):
        raise ValueError(f"the name must end in .nii.gz, got {path}")
    header = nifti_header(array.shape, array.dtype, affine)
    header.set_slope_inter(slope, 0)
    volumes = np.moveaxis(array, 3, 0) if array.ndim == 4 else array[None]
    write_planes(path, header, (plane for volume in volumes for plane in np.moveaxis(volume, 2, 0)))


def nifti_header(shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray) -> Nifti1Header:
    """Of an image in mm whose sform and, where it can say the same, qform are the affine; see `write_nifti`."""
    import nibabel

    image = nibabel.Nifti1Image(np.broadcast_to(np.zeros((), dtype), shape), affine)  # takes no memory
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner", strip_shears=True)
    difference = corners(image.get_qform(), shape[:3]) - corners(affine, shape[:3])
    if np.abs(difference).max() > QFORM_TOLERANCE * spacing(affine).min():
        image.set_qform(None, code="unknown")
    image.header.set_slope_inter(1, 0)
    return image.header


def write_planes(path: str | Path, header: Nifti1Header, planes: Iterable[np.ndarray]) -> None:
    """Write a NIfTI image, compressed if the name ends in `.gz`; the same image always gives the same bytes.

    Args:
        path: ends in `.nii.gz` or `.nii`.
        header: of the image.
        planes: shape (X, Y), in the order of the file, that is along the third axis, then the fourth. One at a time is
            copied.
    """
    dtype = header.get_data_dtype()
    # Digits of measured numbers hardly compress: on fields more effort takes several times as long for nothing.
    level = 1 if dtype.kind == "f" else 6
    with replacing(path) as temporary, temporary.open("wb") as file:
        stream: BinaryIO = file
        if str(path).endswith(".gz"):
            packed = gzip.GzipFile(filename="", mode="wb", compresslevel=level, fileobj=file, mtime=0)
            stream = cast(BinaryIO, packed)
        with stream:
            header.write_to(stream)
            for plane in planes:
                stream.write(plane.astype(dtype, copy=False).tobytes(order="F"))


def _temporary_name(name: str) -> str:
    writer = Process.current()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix
    return f".tmp-{writer.machine}-{writer.pid}-{writer.started}-{secrets.token_hex(4)}{suffix}"


def _is_abandoned(path: Path) -> bool:
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    writer = Process(match["machine"], int(match["pid"]), match["started"])
    if writer.is_here:
        return writer.is_dead
    with suppress(FileNotFoundError):  # its owner finished meanwhile
        return time.time() - path.stat().st_mtime > FOREIGN_LEFTOVER_SECONDS
    return False


def _flush_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the new name itself survive a power loss, where the system and the file system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _read_only(path: Path, error: OSError) -> Refusal:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return Refusal(
        "E-READ-ONLY",
        f"results must be written here, but the system says: {reason}",
        path=path,
        remedy="choose a folder that you may write to with -o",
    )


def _size(count: int) -> str:
    """Bytes for people: 1.2 GB."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"
