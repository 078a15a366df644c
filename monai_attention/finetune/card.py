"""The card of a fine-tuned bundle, written from what was done: numbers, never names of cases."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_attention.finetune.comparison import refusals, table
from monai_attention.finetune.training import output_of
from monai_attention.io.write import write_text
from monai_attention.report.evaluation import METRICS


def write_card(folder: Path, story: Mapping[str, Any], judged: Mapping[str, Any]) -> None:
    """Write `docs/README.md`.

    Args:
        folder: of the bundle.
        story: see `begin.STORY`.
        judged: see `comparison.comparison`.
    """
    crossed = len(story["trainings"]) > 1
    held_out = sum(one in story["trainings"] for one in story["folds"].values())
    scored = next(iter(judged["contenders"].values()))["scored"]
    learned_from = story["cases"] - (0 if crossed else held_out)
    plan = "\n".join(f"| {name.replace('_', ' ')} | {_spelled(value)} |" for name, value in story["plan"].items())
    classes = "\n".join(_class(name, ml) for name, ml in story["classes"].items())
    weights = "\n".join(f"- {line}" for line in story["weights"])
    fresh = story["plan"]["method"] == "scratch"
    source = "random weights" if fresh else Path(story["source"]).name
    write_text(
        folder / "docs/README.md",
        f"""# {folder.name}

Segments {", ".join(story["classes"])}. **For research. Not a medical device.**

Trained on {_cases(learned_from)}, beginning with {source}.

## Trained on

{_cases(story["cases"])} of {story["people"]} people as far as the data tell; channels: {", ".join(story["channels"])}.

| class | in cases | mL, smallest | median | largest |
|---|---|---|---|---|
{classes}

{_fingerprint(story)}

What became of the source's weights:

{weights}

| plan | |
|---|---|
{plan}

That is what was planned; `configs/train.json` is what was run, by `python -m monai.bundle run --config_file
configs/train.json --bundle_root .`, and then `... run release ...`; where `runs/` holds a training, it goes on with it.

## Scores

{_how_judged(story, held_out)}

{_markdown(table(judged))}

Dice; in brackets 95 % intervals of the mean over people, where there are three or more. The other measures, of this
bundle:

{_markdown(_others(judged))}

{_lacking(judged)}

{_seen(story)}

## Training

{_curve(folder, story)}

## Where it fails

Lowest Dice: {_lowest(judged)}. It was judged on {_cases(scored)} like those it was trained on, and on nothing else.

## Made with

{_made_with(folder, story)}

## Licence

That of the source bundle, see LICENSE, as far as the data it was trained on allow.
""",
    )


def _fingerprint(story: Mapping[str, Any]) -> str:
    rows = [(name, f"{low:g}", f"{high:g}") for name, (low, high) in story["fingerprint"].items()]
    return _markdown([("of all cases", "smallest", "largest"), *rows])


def _made_with(folder: Path, story: Mapping[str, Any]) -> str:
    """Programs, machine, and hashes of weights."""
    metadata = json.loads((folder / "configs/metadata.json").read_text(encoding="utf-8"))
    hashes = {"this bundle's weights": metadata["weights"]["models/model.pt"]["sha256"]}
    hashes |= {"the source's weights": story["source_sha256"]} if story["source"] is not None else {}
    programs = ", ".join(f"{name} {version}" for name, version in story["program"].items())
    rows = [("sha256 of", ""), *((name, f"`{digest}`") for name, digest in hashes.items())]
    return f"{programs}; {story['device']}.\n\n{_markdown(rows)}"


def _how_judged(story: Mapping[str, Any], held_out: int) -> str:
    """Whose weights were judged, and what that is worth."""
    if len(story["trainings"]) > 1:
        count = len(story["trainings"]) - 1
        return (
            f"Cross-validated: the people were divided into {count} folds, and each case was segmented by a training "
            "that had not seen its person. The weights in `models/` are of one more training, as long, on all cases; "
            "these scores are what is known of it."
        )
    return (
        f"Of {_cases(held_out)} held out, from which no weight was learned and by which none was chosen. What the "
        "bundle takes for plausible (volumes, extents, intensities) is that of all cases, and so is a preprocessing "
        "that was planned by the cohort."
    )


def _others(judged: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Class, surface Dice and HD95."""
    surface, distance = (table(judged, metric) for metric in ("surface_dice", "hd95_mm"))
    rows = [(one[0], one[1], other[1]) for one, other in zip(surface, distance, strict=True)]
    return [("class", METRICS["surface_dice"], METRICS["hd95_mm"]), *rows[1:]]


def _lowest(judged: Mapping[str, Any], count: int = 3) -> str:
    """The classes that it finds worst; what no case has is unknown."""
    classes = next(iter(judged["contenders"].values()))["classes"]
    known = {name: one["dice"]["mean"] for name, one in classes.items() if one["dice"]["mean"] is not None}
    told = [f"{name} {known[name]:.2f}" for name in sorted(known, key=known.__getitem__)[:count]]
    return ", ".join(told + [f"{name} unknown" for name in classes if name not in known])


def _cases(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"


def _lacking(judged: Mapping[str, Any]) -> str:
    lines = [f"Not compared with {name}: {why}." for name, why in judged["lacking"].items()]
    return "\n".join([*lines, *(f"Without scores of {line}." for line in refusals(judged))])


def _seen(story: Mapping[str, Any]) -> str:
    """What the source knew before."""
    if story["source"] is None:
        return ""
    if story["source_saw"]:
        count = _cases(story["source_saw"])
        return f"The source was itself fine-tuned on {count} of these: that flatters it, and this bundle as well."
    return "What the source was trained on, its own card says; whether these people were among it, nobody checked."


def _curve(folder: Path, story: Mapping[str, Any]) -> str:
    """Of the training whose weights the bundle has."""
    with (output_of(folder, story["trainings"][-1]) / "epochs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shown = [(row["epoch"], row["loss"], row.get("val_mean_dice") or "") for row in _few(rows)]
    minutes = sum(float(row["seconds"]) for row in rows) / 60
    lines = _markdown([("epoch", "loss", "validation Dice"), *shown])
    return f"{lines}\n\n{len(rows)} epochs took {minutes:.0f} minutes."


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """A table, its heading first."""
    heading, *others = rows
    lines = (heading, ("---",) * len(heading), *others)
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def _class(name: str, ml: list[float]) -> str:
    if not ml:
        return f"| {name} | 0 | n/a | n/a | n/a |"
    return f"| {name} | {len(ml)} | {min(ml):.2f} | {statistics.median(ml):.2f} | {max(ml):.2f} |"


def _few(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """About a dozen epochs, the last one among them, validated ones where there are some."""
    rows = [row for row in rows if row.get("val_mean_dice")] or rows
    step = max(1, len(rows) // 12)
    return rows[::-1][::step][::-1]


def _spelled(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(value) or "none"
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
