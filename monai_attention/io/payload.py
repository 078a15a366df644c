"""The bytes of an image file: whole, checked, and never more than its header promises.

A reader opens the file with `opened`, parses its header, moves to the voxels with `skip`, takes them with `take` and
runs to the end with `finish`, which is where gzip and zlib compare their checksums. Nothing else decompresses.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from monai_attention.errors import Refusal

CHUNK = 1 << 20
SLACK = 1 << 20
"""Bytes a file may hold after its voxels; more means that the header does not belong to the file."""

MAX_DEFLATE_RATIO = 1032
"""The most that one byte of a deflate stream can unfold to."""

MEMORY_SHARE = 0.8
"""Share of the physical memory that one volume may take where the user sets no limit."""


@contextmanager
def opened(path: Path, *, offset: int = 0, compression: str | None = None) -> Iterator[BinaryIO]:
    """Open `path` for reading and turn everything that can go wrong with its bytes into a `Refusal`.

    Args:
        path: the file.
        offset: bytes before the (compressed) data.
        compression: `gzip`, `zlib` or None.

    Raises:
        Refusal: E-NOT-FOUND, E-UNREADABLE, E-TRUNCATED (the stream ends early), E-CORRUPT (checksum or code wrong).
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            if compression == "gzip":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield cast(BinaryIO, unpacked)
            elif compression == "zlib":
                yield cast(BinaryIO, io.BufferedReader(_Inflated(file), CHUNK))
            else:
                yield file
    except EOFError as error:
        raise Refusal(
            "E-TRUNCATED", "the compressed data end early", path=path, remedy="copy or download the file again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Refusal(
            "E-CORRUPT",
            f"the compressed data are damaged: {error}",
            path=path,
            remedy="copy or download the file again",
        ) from error
    except FileNotFoundError as error:
        raise Refusal("E-NOT-FOUND", "there is no such file", path=path, remedy="check the path") from error
    except OSError as error:
        raise Refusal(
            "E-UNREADABLE", f"the file cannot be read: {error.strerror}", path=path, remedy="check path and permissions"
        ) from error


def skip(stream: BinaryIO, count: int, path: Path) -> None:
    """Read `count` bytes and forget them; E-TRUNCATED when there are fewer."""
    while count:
        got = len(stream.read(min(count, CHUNK)))
        if not got:
            raise truncated(path, count)
        count -= got


def take(stream: BinaryIO, count: int, path: Path) -> np.ndarray:
    """Read exactly `count` bytes into one new buffer, shape (count,) uint8; E-TRUNCATED when there are fewer."""
    buffer = np.empty(count, np.uint8)
    done = 0
    while done < count:
        chunk = stream.read(min(count - done, CHUNK))
        if not chunk:
            raise truncated(path, count - done)
        buffer[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
        done += len(chunk)
    return buffer


def finish(stream: BinaryIO, path: Path) -> None:
    """Read to the end, so that checksums are compared; E-SIZE when more than `SLACK` bytes are left."""
    left = 0
    while chunk := stream.read(CHUNK):
        left += len(chunk)
        if left > SLACK:
            raise Refusal(
                "E-SIZE",
                "the file holds far more data than its header promises",
                path=path,
                remedy="the header is damaged or not of this file; export the image again",
            )


def expect_size(path: Path, promised: int, *, offset: int = 0, compression: str | None = None) -> None:
    """Refuse, from the size on disk alone, a file that cannot hold the `promised` bytes after `offset`.

    Raises:
        Refusal: E-TRUNCATED, also for a compressed file that could not unfold to that much at deflate's highest ratio.
    """
    with opened(path) as file:
        stored = max(0, os.fstat(file.fileno()).st_size - offset)
    missing = promised - (stored if compression is None else stored * MAX_DEFLATE_RATIO)
    if missing > 0:
        raise truncated(path, missing)


def expect_memory(path: Path, needed: int, max_memory: int | None) -> None:
    """Refuse (E-SIZE) a volume that needs more bytes than the user, or `MEMORY_SHARE` of this machine, allows."""
    limit = int(physical_memory() * MEMORY_SHARE) if max_memory is None else max_memory
    if needed > limit:
        raise Refusal(
            "E-SIZE",
            f"the image needs {needed / 2**30:.1f} GiB to be read, by its header; the limit is {limit / 2**30:.1f} GiB",
            path=path,
            remedy="crop or downsample the image, or raise --max-memory on a larger machine",
        )


def physical_memory() -> int:
    """Bytes of memory in this machine; 8 GiB where the operating system does not say (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return 8 << 30


def to_float32(
    buffer: np.ndarray,
    dtype: np.dtype,
    shape: tuple[int, int, int],
    *,
    channels: int = 1,
    scaling: tuple[float, float] | None = None,
) -> np.ndarray:
    """Bytes stored with x fastest and channels slowest -> float32 array of shape (C, X, Y, Z), C-contiguous.

    Args:
        buffer: uint8, as `take` returns it.
        dtype: of the stored values, with byte order.
        shape: voxels along x, y, z.
        channels: number of images stored one after the other.
        scaling: (slope, inter), applied in float64 before rounding to float32; None for stored values as they are.
    """
    stored = buffer.view(dtype).reshape(*shape, channels, order="F")
    array = np.empty((channels, *shape), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes inf, and inf is looked for later
        for c in range(channels):
            if scaling is None:
                array[c] = stored[..., c]
                continue
            slope, inter = np.float64(scaling[0]), np.float64(scaling[1])
            for x in range(shape[0]):  # plane by plane, so that no float64 copy of the whole is made
                array[c, x] = stored[x, ..., c] * slope + inter
    return array


def truncated(path: Path, missing: int) -> Refusal:
    """The refusal of a file that ends before its voxels do."""
    return Refusal(
        "E-TRUNCATED",
        f"the file ends at least {missing} bytes before the voxels that its header promises",
        path=path,
        remedy="copy or download the file again",
    )


class _Inflated(io.RawIOBase):
    """A zlib stream as a readable file; the checksum is compared when its end is reached."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(CHUNK)
            if not packed:
                raise EOFError
            piece = self._inflate.decompress(packed, len(target))
            if piece:
                target[: len(piece)] = piece
                return len(piece)
        return 0
