"""The layout of a preview: plain planes above, the same with their labels below, then scale bars and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from monai_attention.report.manifest import ClassVolume

MARGIN = 26  # pixels around a panel, for the letters
LINE = 20
NARROWEST = 120  # of a column, so that the scale bar's text fits
LEGEND_NAME = 220  # pixels at which a class name is cut short
LEGEND_ENTRIES = 24
BACKGROUND, INK, FAINT = (10, 10, 12), (235, 235, 235), (150, 150, 150)

Entry = tuple[str, ClassVolume]


class Edges(NamedTuple):
    """The body directions at the four edges of a panel."""

    left: str
    right: str
    top: str
    bottom: str


class Panel(NamedTuple):
    """One plane, plain and with labels, both of the same size."""

    name: str
    edges: Edges
    plain: Image.Image
    overlay: Image.Image
    pixels_per_mm: float


def compose(
    panels: Sequence[Panel],
    volumes: Mapping[str, ClassVolume],
    palette: Mapping[int, tuple[int, int, int]],
    remark: str = "",
) -> Image.Image:
    """Put panels side by side, with the legend of `volumes` and a remark below them."""
    font = ImageFont.load_default(size=15)
    columns = [max(panel.plain.width, NARROWEST) + 2 * MARGIN for panel in panels]
    height = max(panel.plain.height for panel in panels)
    row = height + 2 * MARGIN
    legend = _legend(volumes, palette, sum(columns), font, remark)
    sheet = Image.new("RGB", (sum(columns), 2 * LINE + 2 * row + legend.height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    left = 0
    for panel, column in zip(panels, columns, strict=True):
        middle = left + column // 2
        draw.text((middle, 4), panel.name, INK, font, anchor="ma")
        for picture, top in ((panel.plain, LINE), (panel.overlay, LINE + row)):
            place = middle - picture.width // 2, top + MARGIN + (height - picture.height) // 2
            sheet.paste(picture, place)
            _letters(draw, font, (*place, place[0] + picture.width, place[1] + picture.height), panel.edges)
        _scale_bar(draw, font, left + MARGIN, LINE + 2 * row + 4, panel.pixels_per_mm)
        left += column
    sheet.paste(legend, (0, sheet.height - legend.height))
    return sheet


def _letters(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, box: tuple[int, int, int, int], edges: Edges
) -> None:
    """Body directions outside the four edges of a picture."""
    left, top, right, bottom = box
    across, down = (left + right) // 2, (top + bottom) // 2
    draw.text((left - 6, down), edges.left, INK, font, anchor="rm")
    draw.text((right + 6, down), edges.right, INK, font, anchor="lm")
    draw.text((across, top - 3), edges.top, INK, font, anchor="md")
    draw.text((across, bottom + 3), edges.bottom, INK, font, anchor="ma")


def _scale_bar(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, x: int, y: int, pixels_per_mm: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten mm, at most 80 pixels long."""
    longest = 80 / pixels_per_mm
    decade = 10.0 ** np.floor(np.log10(longest))
    length = next(step * decade for step in (5, 2, 1) if step * decade <= longest)
    end = x + length * pixels_per_mm
    draw.line((x, y, end, y), fill=INK, width=2)
    for tick in (x, end):
        draw.line((tick, y - 4, tick, y + 4), fill=INK, width=1)
    draw.text((end + 6, y), f"{length:g} mm", INK, font, anchor="lm")


def _legend(
    volumes: Mapping[str, ClassVolume],
    palette: Mapping[int, tuple[int, int, int]],
    width: int,
    font: ImageFont.FreeTypeFont,
    remark: str,
) -> Image.Image:
    """Colour, name and mL of each class in as many columns as fit, absent classes in grey."""
    entries, left_out = _worth_listing(volumes)
    rows = [(_shortened(font, name), volume, f"{volume['ml']:,.1f} mL") for name, volume in entries]
    column = max((round(font.getlength(name + amount)) + 64 for name, _, amount in rows), default=width)
    columns = max(1, (width - MARGIN) // column)
    lines = -(-len(rows) // columns)
    footer = [text for text in (left_out, remark) if text]
    legend = Image.new("RGB", (width, (lines + len(footer)) * LINE + MARGIN // 2), BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for number, (name, volume, amount) in enumerate(rows):
        x, y = MARGIN + number % columns * column, number // columns * LINE + LINE // 2
        ink = INK if volume["voxels"] else FAINT
        draw.rectangle((x, y - 6, x + 12, y + 6), fill=palette[volume["label"]])
        draw.text((x + 20, y), name, ink, font, anchor="lm")
        draw.text((x + column - 28, y), amount, ink, font, anchor="rm")
    for number, text in enumerate(footer):
        draw.text((MARGIN, (lines + number) * LINE + LINE // 2), text, FAINT, font, anchor="lm")
    return legend


def _worth_listing(volumes: Mapping[str, ClassVolume]) -> tuple[list[Entry], str]:
    """The classes to list, of very many only the largest, and a word on those left out."""
    entries = list(volumes.items())
    if not any(volume["voxels"] for volume in volumes.values()):
        return entries[:LEGEND_ENTRIES], "no voxel was labelled"
    if len(entries) <= LEGEND_ENTRIES:
        return entries, ""
    largest = sorted(entries, key=lambda entry: -entry[1]["ml"])[:LEGEND_ENTRIES]
    return largest, f"and {len(entries) - LEGEND_ENTRIES} smaller or absent classes"


def _shortened(font: ImageFont.FreeTypeFont, name: str) -> str:
    if font.getlength(name) <= LEGEND_NAME:
        return name
    while font.getlength(name + "...") > LEGEND_NAME:
        name = name[:-1]
    return name + "..."
