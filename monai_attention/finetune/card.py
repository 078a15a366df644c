"""The card of a fine-tuned bundle, written from what was done: numbers, never names of cases."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

from monai_attention.io.write import write_text


def write_card(folder: Path, story: dict[str, Any], runs: Path, score: float, epoch: int) -> None:
    """Write `docs/README.md`.

    Args:
        folder: of the bundle.
        story: see `run.STORY`.
        score: mean Dice over the held-out cases and classes.
        runs: folder of the training, with `epochs.csv`.
        epoch: of the weights that were kept.
    """
    held_out = sum(one == story["fold"] for one in story["folds"].values())
    plan = "\n".join(f"| {name.replace('_', ' ')} | {_spelled(value)} |" for name, value in story["plan"].items())
    classes = "\n".join(_class(name, ml) for name, ml in story["classes"].items())
    weights = "\n".join(f"- {line}" for line in story["weights"])
    with (runs / "epochs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    curve = "\n".join(f"| {row['epoch']} | {row['loss']} | {row.get('val_mean_dice') or ''} |" for row in _few(rows))
    seconds = sum(float(row["seconds"]) for row in rows)
    write_text(
        folder / "docs/README.md",
        f"""# {folder.name}

Segments {", ".join(story["classes"])}. **For research. Not a medical device.**

Fine-tuned from {story["source"]} on {story["cases"] - held_out} cases; {held_out} others were held out.

## Trained on

{story["cases"]} cases of {story["people"]} people as far as the data tell; channels: {", ".join(story["channels"])}.

| class | in cases | mL, smallest | median | largest |
|---|---|---|---|---|
{classes}

What became of the source's weights:

{weights}

| plan | |
|---|---|
{plan}

That is what was planned; `configs/train.json` is what was run, by `python -m monai.bundle run --config_file
configs/train.json --bundle_root .`, and then `... run release ...`; where `runs/` holds a training, it goes on with it.

## Scores

Mean Dice over classes and the {held_out} held-out cases: **{score:.3f}** (weights of epoch {epoch}, chosen by this very
score, so it flatters; `monai-attention evaluate` on cases that are not in `data/` does not).

| epoch | loss | validation Dice |
|---|---|---|
{curve}

{len(rows)} epochs took {seconds / 60:.0f} minutes.

## Where it fails

Not known. It was judged on {held_out} cases like those it was trained on, and on nothing else.

## Licence

That of the source bundle, see LICENSE, as far as the data it was fine-tuned on allow.
""",
    )


def _class(name: str, ml: list[float]) -> str:
    if not ml:
        return f"| {name} | 0 | n/a | n/a | n/a |"
    return f"| {name} | {len(ml)} | {min(ml):.2f} | {statistics.median(ml):.2f} | {max(ml):.2f} |"


def _few(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """About a dozen epochs, the last one among them."""
    step = max(1, len(rows) // 12)
    return rows[::-1][::step][::-1]


def _spelled(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
