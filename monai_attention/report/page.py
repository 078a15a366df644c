"""One page over all cases of a run: `report.html`, self-contained, offline, without scripts, ready to print."""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError

from monai_attention.io.write import write_text
from monai_attention.report.colours import colour
from monai_attention.report.manifest import VERDICTS

logger = logging.getLogger(__name__)

THUMBNAIL = 420
"""Longest side of the small preview inside the page, in pixels."""

FOUND = {"figures": "Figures", "scores": "Scores"}
"""Titles of what was found, by the key that records have."""

LARGE = 1000
"""The same, of records that say `large`."""

MARKS = {"ok": "✓", "flagged": "!", "refused": "✕"}

POLICY = "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'"
"""What a browser may load for the page: its own style and pictures, nothing else from anywhere."""

STYLE = """
:root { --ok: #1b7f4b; --flagged: #9a6200; --refused: #b3261e; --line: #dcdfe4; --faint: #5f6671; }
* { box-sizing: border-box; }
body { margin: 2rem auto; max-width: 1280px; padding: 0 1.5rem; color: #1c2026; background: #fff;
       font: 14px/1.45 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; font-weight: 600; margin: 0 0 .75rem; }
.counts { display: flex; gap: .75rem; margin: 0 0 1rem; padding: 0; list-style: none; }
.counts li { border: 1px solid var(--line); border-radius: 6px; padding: .4rem .9rem; }
.counts b { font-size: 1.25rem; margin-right: .35rem; }
.summary { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: 0 0 1.5rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.cases { border-collapse: collapse; width: 100%; }
.cases > thead th { text-align: left; font-weight: 600; color: var(--faint); border-bottom: 2px solid var(--line);
                    padding: .4rem .8rem .4rem 0; }
.cases > tbody > tr { border-bottom: 1px solid var(--line); break-inside: avoid; }
.cases > tbody > tr > td { vertical-align: top; padding: .9rem 1.2rem .9rem 0; }
.thumbnail { width: 300px; } .thumbnail img { width: 280px; height: auto; display: block; border-radius: 4px; }
.large { width: 540px; } .large img { width: 520px; }
.none { color: var(--faint); font-style: italic; }
.id { font-weight: 600; font-size: 1.05rem; overflow-wrap: anywhere; }
.verdict { display: inline-block; border-radius: 4px; padding: 0 .5rem; margin: .2rem 0 .4rem; color: #fff;
           font-weight: 600; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.ok { background: var(--ok); } .flagged { background: var(--flagged); } .refused { background: var(--refused); }
p { margin: 0 0 .35rem; overflow-wrap: anywhere; } ul { margin: .2rem 0; padding-left: 1.1rem; }
code { font: .92em ui-monospace, Consolas, monospace; }
.volumes { border-collapse: collapse; white-space: nowrap; } .volumes td { padding: .05rem .9rem .05rem 0; }
.volumes td:last-child { text-align: right; font-variant-numeric: tabular-nums; padding-right: 0; }
.classes { margin: 0 0 1.5rem; } .volumes th { text-align: left; font-weight: 600; color: var(--faint);
                                               padding-right: .9rem; }
.absent { color: var(--faint); }
.swatch { display: inline-block; width: .75em; height: .75em; margin-right: .5em; border-radius: 2px;
          print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.facts { display: grid; grid-template-columns: max-content minmax(11rem, 1fr); gap: .1rem .8rem; margin: 0;
         font-size: .93em; }
footer { margin-top: 1.5rem; color: var(--faint); }
@media print { body { margin: 0; max-width: none; font-size: 11px; } .thumbnail { width: 200px; }
               .thumbnail img { width: 190px; } a { color: inherit; text-decoration: none; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<ul class="counts">{counts}</ul>
{summary}
<table class="cases">
<thead><tr><th>Preview</th><th>Case and verdict</th><th>{found}</th><th>Details</th></tr></thead>
<tbody>
{cases}
</tbody>
</table>
<footer>Made by monai_attention. For research; not a medical device. Previews are in radiological view: the patient's
right is on the left of axial and coronal planes.</footer>
</body>
</html>
"""


def write_report(
    path: str | Path,
    results: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    *,
    title: str = "Segmentation report",
    classes: Sequence[Sequence[Any]] = (),
    columns: Sequence[str] = (),
    in_order: bool = False,
) -> None:
    """Write the page, cases that need attention first.

    Args:
        path: the page, in the output folder that holds the folder of every case.
        results: one record a case, see `report.manifest.CaseRecord`; nothing else is read but the preview pictures.
        summary: facts about the whole run in the order to show them, for example bundle, device, seconds.
        title: of the page.
        classes: label (None for all of them), name and what is to be said of each class of the whole run.
        columns: titles of what is said of the classes.
        in_order: show the cases as they come.
    """
    folder = Path(path).parent
    ordered = sorted(results, key=lambda record: (VERDICTS.index(record["verdict"]), record["case_id"]))
    ordered = list(results) if in_order else ordered
    cases = "\n".join(_case(record, folder) for record in ordered)
    parts = {"counts": _counts(results), "summary": _facts(summary, "summary") + _classes(classes, columns)}
    found = next((title for key, title in FOUND.items() if any(key in record for record in results)), "Volumes")
    write_text(path, PAGE.format(policy=POLICY, style=STYLE, title=_text(title), found=found, **parts, cases=cases))


def _counts(results: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(record["verdict"] for record in results)
    total = f"<li><b>{len(results)}</b>{'case' if len(results) == 1 else 'cases'}</li>"
    return total + "".join(f"<li><b>{counts[verdict]}</b>{verdict}</li>" for verdict in reversed(VERDICTS))


def _case(record: Mapping[str, Any], folder: Path) -> str:
    figures = record.get("figures")
    found = _facts(figures, "facts") if figures else _scores(record) or _volumes(record.get("volumes", {}))
    cells = (_thumbnail(record, folder), _verdict(record), found, _details(record))
    first, *rest = cells
    size = "thumbnail large" if record.get("picture") or record.get("large") else "thumbnail"
    return f'<tr><td class="{size}">{first}</td>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"


def _thumbnail(record: Mapping[str, Any], folder: Path) -> str:
    """The preview inside the page: small, leading to the full one, or the one that the record brings."""
    if picture := record.get("picture"):
        return _embedded(record, picture)
    name = record.get("outputs", {}).get("preview")
    if name is None:
        return '<span class="none">no preview</span>'
    encoded, longest = BytesIO(), LARGE if record.get("large") else THUMBNAIL
    try:
        with Image.open(folder / record["case_id"] / name) as picture:
            small = picture.convert("RGB")
        small.thumbnail((longest, longest))
        small.save(encoded, format="JPEG", quality=80)
    except (OSError, UnidentifiedImageError) as error:
        logger.warning("the page shows no preview of %s: %s", record["case_id"], error)
        return '<span class="none">the preview is missing or damaged</span>'
    return f'<a href="{_link(record["case_id"], name)}">{_embedded(record, encoded.getvalue())}</a>'


def _embedded(record: Mapping[str, Any], jpeg: bytes) -> str:
    data = base64.b64encode(jpeg).decode("ascii")
    return f'<img alt="Preview of {_text(record["case_id"])}" src="data:image/jpeg;base64,{data}">'


def _verdict(record: Mapping[str, Any]) -> str:
    verdict = record["verdict"]
    parts = [
        f'<div class="id">{_text(record["case_id"])}</div>',
        f'<span class="verdict {verdict}">{MARKS[verdict]} {verdict}</span>',
    ]
    if record.get("code") or record.get("message"):
        code = f"<code>{_text(record['code'])}</code> " if record.get("code") else ""
        parts.append(f"<p>{code}{_text(record.get('message', ''))}</p>")
    if record.get("path"):
        parts.append(f"<p><b>Where:</b> <code>{_text(record['path'])}</code></p>")
    if record.get("remedy"):
        parts.append(f"<p><b>What to do:</b> {_text(record['remedy'])}</p>")
    notes = [note for note in record.get("notes", ()) if note["message"] != record.get("message")]
    if notes:
        items = (f"<li><code>{_text(note['code'])}</code> {_text(note['message'])}</li>" for note in notes)
        parts.append(f"<ul>{''.join(items)}</ul>")
    return "".join(parts)


def _volumes(volumes: Mapping[str, Mapping[str, Any]]) -> str:
    if not volumes:
        return '<span class="none">none</span>'
    rows = []
    for name, volume in volumes.items():
        absent = "" if volume["voxels"] else ' class="absent"'
        swatch = _swatch(volume["label"])
        rows.append(f"<tr{absent}><td>{swatch}{_text(name)}</td><td>{volume['ml']:,.1f} mL</td></tr>")
    return f'<table class="volumes">{"".join(rows)}</table>'


def _scores(record: Mapping[str, Any]) -> str:
    rows = []
    for name, one in record.get("scores", {}).items():
        numbers = [f"{one['dice']:.3f}", f"{one['surface_dice']:.3f}"] if one["dice"] is not None else ["n/a", "n/a"]
        numbers.append("n/a" if one["hd95_mm"] is None else f"{one['hd95_mm']:.1f} mm")
        cells = "".join(f"<td>{cell}</td>" for cell in (*numbers, _text(one["where"])))
        rows.append(f"<tr><td>{_swatch(one['label'])}{_text(name)}</td>{cells}</tr>")
    head = "<tr><th></th><th>Dice</th><th>surface Dice</th><th>HD95</th><th></th></tr>"
    return f'<table class="volumes scores">{head}{"".join(rows)}</table>' if rows else ""


def _classes(classes: Sequence[Sequence[Any]], columns: Sequence[str]) -> str:
    head = f"<tr><th></th><th></th>{''.join(f'<th>{_text(title)}</th>' for title in columns)}</tr>" if columns else ""
    rows = []
    for label, name, *said in classes:
        first = "<td></td><td>" if label is None else f"<td>{label}</td><td>{_swatch(label)}"
        rows.append(f"<tr>{first}{_text(name)}</td>{''.join(f'<td>{_text(one)}</td>' for one in said)}</tr>")
    return f'<table class="volumes classes">{head}{"".join(rows)}</table>' if rows else ""


def _swatch(label: int) -> str:
    red, green, blue = colour(label)
    return f'<span class="swatch" style="background: rgb({red} {green} {blue})"></span>'


def _details(record: Mapping[str, Any]) -> str:
    facts: dict[str, str] = {}
    if geometry := record.get("geometry"):
        facts["voxels"] = " × ".join(str(n) for n in geometry["shape"])
        facts["spacing"] = " × ".join(f"{mm:.3g}" for mm in geometry["spacing_mm"]) + " mm"
        facts["axes"] = geometry["orientation"]
    if seconds := record.get("seconds"):
        phases = ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
        facts["time"] = f"{sum(seconds.values()):.1f} s ({phases})"
    if memory := record.get("peak_memory_mb"):
        facts["peak memory"] = f"{max(memory.values()):,.0f} MB"
    facts |= record.get("facts", {})
    body = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in facts.items())
    files = record.get("outputs", {}).values()
    links = ", ".join(f'<a href="{_link(record["case_id"], name)}">{_text(name)}</a>' for name in files)
    body += f"<dt>files</dt><dd>{links}</dd>" if links else ""
    return f'<dl class="facts">{body}</dl>' if body else ""


def _facts(facts: Mapping[str, Any], style: str) -> str:
    rows = (f"<dt>{_text(key.replace('_', ' '))}</dt><dd>{_text(_spelled(value))}</dd>" for key, value in facts.items())
    return f'<dl class="{style}">{"".join(rows)}</dl>'


def _spelled(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_spelled(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_spelled(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return escape(str(value), quote=True)


def _link(case_id: str, name: str) -> str:
    """A relative address inside the output folder, whatever characters (or bytes) the names are made of."""
    return "./" + quote(f"{case_id}/{name}", errors="surrogateescape")
