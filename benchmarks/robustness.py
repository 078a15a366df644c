"""What a bundle for heads makes of other contrasts, resolutions, noise and bias: Dice and HD95 of people new to it.

    python -m benchmarks.robustness --labels FOLDER --work FOLDER --bundle brain_mri_anatomy_nnformer --save

FOLDER of `--labels` holds whole-head label maps with FreeSurfer's values (see
bundles/brain_mri_tissue_flexunetr/docs/README.md for where to get them). The last three people, whom the bundles were
not trained on, are rendered by `cohorts`, which shares nothing but the label maps with the generator that the bundles
were trained by: once in each of `CONDITIONS`, which differ from the first, T1-weighted at 2 mm, in one thing. For a
bundle that knows tumours: twice in each of `TUMOUR_CONDITIONS`, with a tumour simulated as in its training. Classes are
those of the bundle's `configs/train.json`.

Each condition is judged by `monai-attention evaluate` in a folder of `--work`; what is finished there is not done
again. With `--save` the tables go into the bundle's card, docs/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/robustness.py`

from benchmarks import cohorts
from benchmarks.cohorts import FLUID, GREY, HELD_OUT, LIKE_FLAIR, LIKE_T1, LIKE_T2, WHITE, Task
from benchmarks.networks import save
from benchmarks.side_by_side import Machine, machine
from monai_attention import DEFAULT_BUNDLE, bundles
from monai_attention.finetune.evaluate import evaluate
from monai_attention.finetune.evaluation import Evaluation

LIKE_PD = (
    LIKE_T2 | dict.fromkeys(GREY, 0.85) | dict.fromkeys(WHITE, 0.70) | dict.fromkeys(FLUID, 0.95) | {cohorts.BONE: 0.2}
)

START = Task({}, {"image": LIKE_T1}, noise=0.03)


def any_contrast(seed: int) -> dict[int, float]:
    """A brightness of its own for every structure."""
    generator = np.random.default_rng(seed)
    return {value: float(generator.uniform(0.05, 0.95)) for value in sorted(LIKE_T1)}


CONDITIONS: dict[str, Task] = {"like T1, 2 mm": START}
CONDITIONS |= {
    name: replace(START, sequences={"image": brightness})
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

TUMOUR = cohorts.TASKS["tumours"]
TUMOUR_CONDITIONS: dict[str, Task] = {
    "brains at 2 mm": TUMOUR,
    "without tumour": replace(TUMOUR, tumour=False),
    "with skull": replace(TUMOUR, skull=True),
}
TUMOUR_CONDITIONS |= {f"slices of {mm} mm": replace(TUMOUR, voxel_mm=(1.0, 1.0, mm)) for mm in (1, 3, 5)}
TUMOUR_CONDITIONS |= {"voxels of 3 mm": replace(TUMOUR, voxel_mm=(3.0, 3.0, 3.0))}
TUMOUR_CONDITIONS |= {f"noise {noise:g}": replace(TUMOUR, noise=noise) for noise in (0.06, 0.12)}
TUMOUR_CONDITIONS |= {"bias 0.3": replace(TUMOUR, bias=0.3)}
TUMOURS = 2
"""Of each person."""


def conditions_of(training: Mapping[str, Any]) -> dict[str, Task]:
    """Those that a bundle is judged in, with its classes; by its `configs/train.json`."""
    conditions = TUMOUR_CONDITIONS if "seats" in training else CONDITIONS
    return {name: replace(task, classes=training["classes"]) for name, task in conditions.items()}


def judge(name: str, task: Task, maps: Sequence[Path], bundle: str, work: Path) -> Evaluation:
    """Render the people in a condition, and evaluate.

    Raises:
        RuntimeError: a scan was refused.
        ValueError: there are fewer people than are kept for validation.
    """
    if len(maps) < HELD_OUT:
        raise ValueError(f"expected label maps of {HELD_OUT} people and more; got {len(maps)}")
    folder = work / name.replace(" ", "_").replace(",", "")
    people, scans = range(len(maps) - HELD_OUT + 1, len(maps) + 1), range(TUMOURS if len(task.sequences) > 1 else 1)
    for person in people:
        cohorts.render_files(task, maps[person - 1], person, scans, folder)
    members = [(person, scan) for person in people for scan in scans]
    cohorts.describe(task, cohorts.cohort(folder, 0), members)
    found = evaluate(bundle, cohorts.cohort(folder, 0), folder / Path(bundle).name, device="cpu")
    if found.refused:
        raise RuntimeError(f"expected scores of all scans; refused: {found.refused}")
    return found


def figures(found: Evaluation) -> dict[str, Any]:
    """Of a condition: by scan, and of each class by scan, Dice and HD95, None where n/a; true and found volumes, mL.

    Where there is nothing to find in a whole scan the volume found tells more than a Dice of 0.
    """
    hd95, truth = found.values("hd95_mm"), found.values("truth_ml").sum(axis=1)
    dice = np.where(truth[:, None] > 0, found.values("dice"), np.nan)
    return {
        "dice": _means(dice),
        "hd95_mm": _means(hd95),
        "truth_ml": truth.tolist(),
        "found_ml": found.values("found_ml").sum(axis=1).tolist(),
        "classes": {
            name: {"dice": _listed(dice[:, i]), "hd95_mm": _listed(hd95[:, i])}
            for i, name in enumerate(found.classes.values())
        },
    }


def condition_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a line a condition."""
    lines = ["| images | Dice, mean of classes | worst to best scan | HD95, mm | mL, true and found |"]
    lines.append("|---|---|---|---|---|")
    for name, one in results.items():
        dice, hd95 = _known(one["dice"]), _known(one["hd95_mm"])
        cells = [f"{np.mean(dice):.2f}", f"{dice.min():.2f} to {dice.max():.2f}"] if len(dice) else ["", ""]
        cells += [f"{np.mean(hd95):.1f}" if len(hd95) else ""]
        cells += [" and ".join(f"{statistics.fmean(one[which]):.0f}" for which in ("truth_ml", "found_ml"))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def class_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a line a class, over all conditions and scans; a class that is found nowhere has no HD95."""
    lines = ["| class | Dice | SD | worst | best | median HD95, mm |", "|---|---|---|---|---|---|"]
    for name in next(iter(results.values()))["classes"]:
        dice, hd95 = (
            _known(value for one in results.values() for value in one["classes"][name][metric])
            for metric in ("dice", "hd95_mm")
        )
        cells = [f"{number:.2f}" for number in (dice.mean(), dice.std(), dice.min(), dice.max())]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{np.median(hd95):.1f}' if len(hd95) else ''} |")
    return "\n".join(lines) + "\n"


def _known(values: Iterable[float | None]) -> np.ndarray:
    return np.array([value for value in values if value is not None], dtype=float)


def _listed(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _means(values: np.ndarray) -> list[float | None]:
    """Of each scan, over the classes it has."""
    return [float(row[~np.isnan(row)].mean()) if (~np.isnan(row)).any() else None for row in values]


def main(given: list[str] | None = None) -> None:
    """Measure, print, and save if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True, help="folder of label maps")
    parser.add_argument("--work", type=Path, required=True, help="folder of all that is made; give it again to go on")
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help="name or folder")
    parser.add_argument("--only", nargs="+", metavar="CONDITION", help="some of them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="into the bundle's card, and numbers.json beside this file")
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    info = bundles.info(arguments.bundle)
    if arguments.save and arguments.only:
        parser.error("--save writes the whole table, not that of --only")
    title, card = f"robustness, {info.name}", info.folder / "docs/README.md"
    if arguments.save and f"<!-- {title} -->\n" not in card.read_text():
        parser.error(f"{card} has no lines '<!-- {title} -->' and '<!-- end of {title} -->' to put the tables between")
    conditions = conditions_of(json.loads((info.folder / "configs/train.json").read_text()))
    if unknown := sorted(set(arguments.only or ()) - set(conditions)):
        parser.error(f"--only: expected some of {', '.join(conditions)}; got {', '.join(unknown)}")
    maps = sorted(arguments.labels.glob("*.nii*"))
    results = {}
    for name in arguments.only or conditions:
        results[name] = figures(judge(name, conditions[name], maps, arguments.bundle, arguments.work / info.name))
        print(f"{name}: {results[name]['dice']}", file=sys.stderr, flush=True)
    scans = len(next(iter(results.values()))["dice"])
    people = f"{scans} scans of {HELD_OUT} people. {machine(Machine(threads=arguments.threads))}.\n"
    text = f"{condition_table(results)}\n{class_table(results)}\n{people}"
    print(text, flush=True)
    if arguments.save:
        save(title, results, text, card)


if __name__ == "__main__":
    main()
