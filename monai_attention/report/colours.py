"""One colour per class, the same in every picture and every release."""

from __future__ import annotations

import colorsys

# Okabe and Ito's palette, made to stay distinct for colour-blind readers; blue is lightened to show on black.
_FIRST = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (40, 130, 210),
    (213, 94, 0),
    (204, 121, 167),
)
_GOLDEN_RATIO = 0.618034


def colour(label: int) -> tuple[int, int, int]:
    """RGB of a label, from 1 on; after the first seven, hues a golden angle apart at three changing lightnesses."""
    if label < 1:
        raise ValueError(f"labels with a colour start at 1, got {label}")
    if label <= len(_FIRST):
        return _FIRST[label - 1]
    red, green, blue = colorsys.hls_to_rgb(label * _GOLDEN_RATIO % 1.0, (0.45, 0.6, 0.75)[label % 3], 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)
