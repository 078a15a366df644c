"""What a bundle for heads makes of other contrasts, resolutions, noise and bias: Dice and HD95 of people new to it.

    python -m benchmarks.robustness --labels FOLDER --work FOLDER --bundle brain_mri_anatomy_nnformer --save

FOLDER of `--labels` holds whole-head label maps with FreeSurfer's values (see
bundles/brain_mri_tissue_flexunetr/docs/README.md for where to get them). The last three people, whom the bundles were
not trained on, are rendered by `cohorts`, which shares nothing but the label maps with the generator that the bundles
were trained by: once in each of `CONDITIONS`, which differ from the first, T1-weighted at 2 mm, in one thing. Classes
are those of the bundle's `configs/train.json`.

Each condition is judged by `monai-attention evaluate` in a folder of `--work`; what is finished there is not done
again. With `--save` the tables go into the bundle's card, docs/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/robustness.py`

from benchmarks import cohorts
from benchmarks.cohorts import FLUID, GREY, HEAD, HELD_OUT, WHITE, Task
from benchmarks.networks import save
from benchmarks.registration import T1, T2
from benchmarks.side_by_side import Settings as Machine
from benchmarks.side_by_side import machine
from monai_attention import DEFAULT_BUNDLE, bundles
from monai_attention.finetune.evaluate import evaluate
from monai_attention.finetune.evaluation import Evaluation

LIKE_T1 = HEAD | T1
LIKE_T2 = HEAD | {cohorts.FAT: 0.60, cohorts.ARTERY: 0.05, cohorts.VEIN: 0.10} | dict.fromkeys(FLUID, 1.0) | T2
LIKE_FLAIR = LIKE_T2 | dict.fromkeys(GREY, 0.66) | dict.fromkeys(WHITE, 0.52) | dict.fromkeys(FLUID, 0.10)
LIKE_PD = (
    LIKE_T2 | dict.fromkeys(GREY, 0.85) | dict.fromkeys(WHITE, 0.70) | dict.fromkeys(FLUID, 0.95) | {cohorts.BONE: 0.2}
)

START = Task({}, LIKE_T1, noise=0.03)


def any_contrast(seed: int) -> dict[int, float]:
    """A brightness of its own for every structure."""
    generator = np.random.default_rng(seed)
    return {value: float(generator.uniform(0.05, 0.95)) for value in sorted(LIKE_T1)}


CONDITIONS: dict[str, Task] = {"like T1, 2 mm": START}
CONDITIONS |= {
    name: replace(START, brightness=brightness)
    for name, brightness in {
        "like T2": LIKE_T2,
        "like FLAIR": LIKE_FLAIR,
        "like PD": LIKE_PD,
        "like CT": cohorts.CT,
        "any, first": any_contrast(1),
        "any, second": any_contrast(2),
        "any, third": any_contrast(3),
    }.items()
}
CONDITIONS |= {f"slices of {mm} mm, 1 mm within": replace(START, voxel_mm=(1.0, 1.0, mm)) for mm in range(1, 6)}
CONDITIONS |= {f"voxels of {mm} mm": replace(START, voxel_mm=(mm, mm, mm)) for mm in (3, 4)}
CONDITIONS |= {f"noise of {noise:g}": replace(START, noise=noise) for noise in (0.06, 0.12, 0.24)}
CONDITIONS |= {f"bias of {bias:g}": replace(START, bias=bias) for bias in (0.3, 0.6)}


def judge(name: str, task: Task, maps: Sequence[Path], bundle: str, work: Path) -> Evaluation:
    """Render the people in a condition, and evaluate.

    Raises:
        RuntimeError: a scan was refused.
    """
    folder = work / name.replace(" ", "_").replace(",", "")
    people = range(len(maps) - HELD_OUT + 1, len(maps) + 1)
    for person in people:
        cohorts.render_files(task, maps[person - 1], person, (0,), folder)
    cohorts.describe(task, cohorts.cohort(folder, 0), [(person, 0) for person in people])
    found = evaluate(bundle, cohorts.cohort(folder, 0), folder / Path(bundle).name, device="cpu")
    if found.refused:
        raise RuntimeError(f"expected scores of all scans; refused: {found.refused}")
    return found


def figures(found: Evaluation) -> dict[str, Any]:
    """Of a condition: by person, and of each class by person, Dice and HD95."""
    dice, hd95 = found.values("dice"), found.values("hd95_mm")
    return {
        "dice": np.nanmean(dice, axis=1).tolist(),
        "hd95_mm": np.nanmean(hd95, axis=1).tolist(),
        "classes": {
            name: {"dice": dice[:, i].tolist(), "hd95_mm": hd95[:, i].tolist()}
            for i, name in enumerate(found.classes.values())
        },
    }


def condition_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a line a condition."""
    lines = ["| images | Dice, mean of classes | worst to best person | HD95, mm |", "|---|---|---|---|"]
    for name, one in results.items():
        dice, hd95 = one["dice"], statistics.fmean(one["hd95_mm"])
        lines.append(f"| {name} | {statistics.fmean(dice):.2f} | {min(dice):.2f} to {max(dice):.2f} | {hd95:.1f} |")
    return "\n".join(lines) + "\n"


def class_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a line a class, over all conditions and people; a class that is found nowhere has no HD95."""
    lines = ["| class | Dice | SD | worst | best | median HD95, mm |", "|---|---|---|---|---|---|"]
    for name in next(iter(results.values()))["classes"]:
        dice, hd95 = (
            np.array([value for one in results.values() for value in one["classes"][name][metric]], dtype=float)
            for metric in ("dice", "hd95_mm")
        )
        cells = [f"{number:.2f}" for number in (np.nanmean(dice), np.nanstd(dice), np.nanmin(dice), np.nanmax(dice))]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.nanmedian(hd95):.1f} |")
    return "\n".join(lines) + "\n"


def main(given: list[str] | None = None) -> None:
    """Measure, print, and save if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True, help="folder of label maps")
    parser.add_argument("--work", type=Path, required=True, help="folder of all that is made; give it again to go on")
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help="name or folder")
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=list(CONDITIONS), metavar="CONDITION")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="into the bundle's card, and numbers.json beside this file")
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    info = bundles.info(arguments.bundle)
    title, card = f"robustness, {info.name}", info.folder / "docs/README.md"
    if arguments.save and f"<!-- {title} -->\n" not in card.read_text():
        parser.error(f"{card} has no lines '<!-- {title} -->' and '<!-- end of {title} -->' to put the tables between")
    classes = json.loads((info.folder / "configs/train.json").read_text())["classes"]
    maps = sorted(arguments.labels.glob("*.nii*"))
    results = {}
    for name in arguments.only:
        task = replace(CONDITIONS[name], classes=classes)
        results[name] = figures(judge(name, task, maps, arguments.bundle, arguments.work / info.name))
        print(f"{name}: {statistics.mean(results[name]['dice']):.2f}", file=sys.stderr, flush=True)
    people = f"{HELD_OUT} people, one scan each. {machine(Machine(threads=arguments.threads))}.\n"
    text = f"{condition_table(results)}\n{class_table(results)}\n{people}"
    print(text, flush=True)
    if arguments.save:
        save(title, results, text, card)


if __name__ == "__main__":
    main()
