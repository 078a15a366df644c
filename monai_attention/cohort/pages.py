"""Memory that is used again instead of being given back."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h
_NEVER = -1  # the largest size there is


def keep_pages() -> bool:
    """Let this process keep what it frees, instead of asking the system for every large array anew.

    The system clears each page it gives, which takes a good part of a network's time on the CPU. The peak of memory
    becomes higher. Only where the C library is glibc, and before there are threads. It is for the whole process and
    cannot be undone, so only a command does it, not a library.

    Returns:
        Whether it could be done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # not Linux, or another C library
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _ARENA_MAX: 1}  # other threads' arenas take no large arrays
    done = [bool(mallopt(*setting)) for setting in settings.items()]
    return all(done)
