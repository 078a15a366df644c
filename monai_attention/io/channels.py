"""A case of several files, one a channel, read as one volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from monai_attention.errors import Refusal
from monai_attention.io.content import Header
from monai_attention.io.payload import expect_memory
from monai_attention.io.read import DEFAULTS, read, read_header
from monai_attention.io.volume import ReadOptions, Requirements, Volume

READING = 2
"""Channels that are held beside all of them while these are put together: the first, and the one that is read."""


def read_channels(
    paths: Sequence[Path],
    options: ReadOptions = DEFAULTS,
    requirements: Requirements | None = None,
    *,
    scratch: Path | None = None,
) -> Volume:
    """Read a case as `read` does; of several files each is a channel, and all lie on one grid.

    Args:
        paths: one file that holds all channels, or one a channel, in order.
        options: see `read`.
        requirements: see `read`.
        scratch: see `read`.

    Returns:
        The volume; what is not of all channels (`source`, `series_uid`, `slice_files`) is the first one's.

    Raises:
        Refusal: E-CHANNELS, another number of files; E-GRID, they do not lie on one grid; E-SIZE, all of them together
            are too large; those of `read`.
    """
    first_path, *others = paths
    each = _of_each(paths, requirements)
    first = read(first_path, options, each, scratch=scratch)
    if not others:
        return first
    from monai_attention.io.label_maps import onto

    expect_memory(first_path, 4 * (len(paths) + READING) * math.prod(first.shape), options.max_memory)
    array = np.empty((len(paths), *first.shape), np.float32)
    array[0] = first.array[0]
    notes = list(first.notes)
    for number, path in enumerate(others, start=1):
        other = onto(read(path, options, each), first)
        array[number] = other.array[0]
        notes += [note for note in other.notes if note not in notes]
    return replace(first, array=array, notes=tuple(notes))


def read_channel_headers(
    paths: Sequence[Path], options: ReadOptions = DEFAULTS, requirements: Requirements | None = None
) -> Header:
    """What can be known, and refused, before voxels are read; as `read_channels`."""
    each = _of_each(paths, requirements)
    first, *others = [read_header(path, options, each) for path in paths]
    if not others:
        return first
    from monai_attention.io.label_maps import onto

    expect_memory(paths[0], 4 * (len(paths) + READING) * math.prod(first.shape), options.max_memory)
    notes = list(first.notes)
    for other in others:
        onto(_without_voxels(other), _without_voxels(first))
        notes += [note for note in other.notes if note not in notes]
    return replace(first, channels=len(paths), notes=tuple(notes))


def _of_each(paths: Sequence[Path], requirements: Requirements | None) -> Requirements | None:
    """What is required of each file."""
    if len(paths) == 1 or requirements is None:
        return requirements
    if len(paths) != requirements.channels:
        names = ", ".join(path.name for path in paths)
        raise Refusal(
            "E-CHANNELS",
            f"expected {requirements.channels} image channel(s), got {len(paths)} files: {names}",
            path=paths[0],
            remedy="give a file for each channel of the bundle, in its order, or one that holds them all",
        )
    return replace(requirements, channels=1)


def _without_voxels(header: Header) -> Volume:
    """A volume where a header's would be; it takes no memory."""
    return Volume(np.broadcast_to(np.float32(0), (1, *header.shape)), header.affine, header.source)
