"""Large grids are worked on some planes at a time, so that what is made in between takes little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

PART_VOXELS = 2**21
"""Of a part; one plane, if that has more."""


def planes(size: Sequence[int]) -> list[slice]:
    """Slices along the first axis that cover a grid of this size, one after the other."""
    step = max(1, PART_VOXELS // max(1, math.prod(size[1:])))
    return [slice(start, min(start + step, size[0])) for start in range(0, size[0], step)]
