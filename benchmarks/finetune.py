"""What fine-tuning gives: a packaged bundle adapted to small cohorts, against itself and training from scratch.

    python -m benchmarks.finetune --labels FOLDER --work FOLDER --save
    python -m benchmarks.finetune --labels FOLDER --work FOLDER --task tumours --source brain_mri_tumor_mbanet --cases 5

FOLDER of `--labels` holds whole-head label maps with FreeSurfer's values (see
bundles/brain_mri_tissue_flexunetr/docs/README.md for where to get them). Each person becomes an image of 2 mm in one
contrast a task, see `cohorts`. The last three people, whom the source bundle was not trained on, are the test
cohort, two scans each, six where there are tumours; cohorts of `--cases` people to train on are the first of the
others. These the source knows: its training drew other images from the same label maps.

Every contender is trained and then evaluated in a process of its own, with the same number of steps, and has a folder
in `--work`. What is finished there is not done again, and a killed training goes on: give the same command, and another
folder when the program has changed.

Dice is the mean over scans and classes, with `evaluate`'s 95 % interval of the mean, by person; minutes are those of
the epochs, validation included and preparation left out, all counted as the quickest, for others may have been
disturbed; peak is that of the training's process.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/finetune.py`

from benchmarks.cohorts import HELD_OUT, TASKS, cohort, make_cohorts
from benchmarks.networks import save
from benchmarks.side_by_side import Machine, machine
from monai_attention import DEFAULT_BUNDLE, bundles
from monai_attention.cohort.phases import peak_bytes
from monai_attention.finetune.begin import STORY
from monai_attention.finetune.evaluate import evaluate
from monai_attention.finetune.evaluation import Evaluation
from monai_attention.finetune.run import finetune
from monai_attention.finetune.training import output_of
from monai_attention.io.write import write_json

METHODS = ("source", "full", "lora", "head", "scratch")
EPOCHS = 4
"""Of 50 steps of two crops."""


@dataclass(frozen=True)
class Contender:
    """One training, or none.

    Args:
        source: the bundle's name, and the beginning of its weights' hash.
        task: one of `TASKS`.
        method: one of `METHODS`; `source` is the bundle as it is.
        people: in the training cohort; 0 of the source.
        epochs: of the training.
    """

    source: str
    task: str
    method: str
    people: int
    epochs: int

    @property
    def folder(self) -> Path:
        """Below that of all work: whatever changes the result is in it."""
        name = "source" if self.method == "source" else f"{self.method}_{self.people}people_{self.epochs}epochs"
        return Path(self.source, self.task, name)


def contenders(arguments: argparse.Namespace, task: str) -> list[Contender]:
    """Those of a task; its classes decide whether the source can take part."""
    able = TASKS[task].classes.keys() <= set(bundles.info(arguments.source).classes.values())
    source = named(arguments.source)
    found = [Contender(source, task, "source", 0, 0)] if able and "source" in arguments.methods else []
    trained = [method for method in METHODS if method in arguments.methods and method != "source"]
    return found + [
        Contender(source, task, method, people, arguments.epochs) for people in arguments.cases for method in trained
    ]


def named(bundle: str) -> str:
    """A bundle's name with its weights': what was adapted from others is not taken for what these give."""
    info = bundles.info(bundle)
    return f"{info.name}_{(info.weights_sha256 or 'untrained')[:8]}"


def contend(one: Contender, work: Path, source: str) -> None:
    """Train and evaluate, in the process that `run` starts; `result.json` is written last.

    Raises:
        RuntimeError: a test case was refused.
    """
    folder, cohorts = work / one.folder, work / "cohorts" / one.task
    with (folder / "lock").open("w") as lock:  # one that outlived a killed parent may still be at it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "result.json").is_file():
            return
        bundle: str | Path = source
        figures: dict[str, Any] = {}
        if one.method != "source":
            bundle = folder / "bundle"
            if not (folder / "trained.json").is_file():
                write_json(folder / "trained.json", trained(one, cohort(cohorts, one.people), bundle, source))
            figures = json.loads((folder / "trained.json").read_text())
        found = evaluate(bundle, cohort(cohorts, 0), folder / "evaluation", device="cpu")
        if found.refused:
            raise RuntimeError(f"expected scores of all test cases; refused: {found.refused}")
        write_json(folder / "result.json", figures | judged(found))


def trained(one: Contender, data: Path, bundle: Path, source: str | Path) -> dict[str, Any]:
    """Train a contender, or go on with it, and tell what it took."""
    begun = (bundle / STORY).is_file()
    finetune(data, bundle, source=source, method=one.method, epochs=one.epochs, device="cpu", resume=begun)
    peak = peak_bytes(torch.device("cpu")) / 1e9
    return {
        "parameters": trainable(bundle),
        "minutes": minutes(bundle),
        "peak_gb": peak,
        "epochs": one.epochs,
    }


def minutes(bundle: Path) -> float:
    """Of a training, undisturbed: as if all epochs had been as quick as the quickest."""
    with (output_of(bundle, 0) / "epochs.csv").open(newline="", encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return len(seconds) * min(seconds) / 60


def trainable(bundle: Path) -> int:
    """Numbers that a training learns."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs/train.json"))
    parser.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')"})
    parser.get_parsed_content("imports")
    network = parser.get_parsed_content("adapted")
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def judged(found: Evaluation) -> dict[str, Any]:
    """Dice over all, by class and by person."""
    classes, overall = found.estimates("dice")
    people = defaultdict(list)
    for case in found.cases:
        if case.dice is not None:
            people[case.group].append(case.dice)
    return {
        "dice": overall.mean,
        "interval": overall.interval,
        "people": {group: statistics.fmean(values) for group, values in sorted(people.items())},
        "classes": {name: one.mean for name, one in classes.items()},
    }


def run(one: Contender, arguments: argparse.Namespace) -> dict[str, Any]:
    """A contender in a process of its own, if it has no result yet."""
    folder = arguments.work / one.folder
    if not (folder / "result.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        threads = str(arguments.threads)
        command = [sys.executable, "-W", "ignore", __file__, "--one", "--task", one.task, "--methods", one.method]
        command += ["--cases", str(one.people), "--epochs", str(one.epochs), "--threads", threads]
        command += ["--work", str(arguments.work), "--source", str(arguments.source)]
        with (folder / "log.txt").open("a") as log:
            done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": threads}, stdout=log, stderr=log)
        if done.returncode:
            raise RuntimeError(f"{one} failed with status {done.returncode}; see {folder / 'log.txt'}")
    return json.loads((folder / "result.json").read_text())


HEADER = """| people | method | Dice of new people | trained parameters | training | peak |
|---|---|---|---|---|---|"""


def table(results: dict[Contender, dict[str, Any]]) -> str:
    """Markdown: a line a contender."""
    lines = [HEADER]
    for one, found in results.items():
        if one.method == "source":
            cells = ["", "source as it was", spread(found), "", "", ""]
        else:
            cells = [str(one.people), one.method, spread(found), f"{found['parameters']:,}"]
            cells += [f"{found['minutes']:.1f} min", f"{found['peak_gb']:.1f} GB"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(found: dict[str, Any]) -> str:
    """The mean with its interval; with too few people for one, how far these lie apart."""
    low, high = found["interval"] or (min(found["people"].values()), max(found["people"].values()))
    return f"{found['dice']:.3f} ({low:.3f} to {high:.3f}{'' if found['interval'] else ', people'})"


def main(given: list[str] | None = None) -> None:
    """Measure, print, and save if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="folder of label maps")
    parser.add_argument("--work", type=Path, required=True, help="folder of all that is made; give it again to go on")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=["structures", "contrast"])
    parser.add_argument("--cases", type=int, nargs="+", default=[5, 10, 12], help="people of each training cohort")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each training, 50 steps each")
    parser.add_argument("--source", default=DEFAULT_BUNDLE, help="the bundle that is fine-tuned")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--finished", action="store_true", help="train nothing; the table of what is there")
    parser.add_argument("--save", action="store_true", help="into README.md and numbers.json beside this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    arguments.work = arguments.work.absolute()
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        one = Contender(
            named(arguments.source), arguments.task[0], arguments.methods[0], arguments.cases[0], arguments.epochs
        )
        contend(one, arguments.work, arguments.source)
        return
    maps = sorted(arguments.labels.glob("*.nii*"))
    for task in arguments.task:
        make_cohorts(TASKS[task], maps, arguments.cases, arguments.work / "cohorts" / task)
        results = {}
        for one in contenders(arguments, task):
            if arguments.finished and not (arguments.work / one.folder / "result.json").is_file():
                continue
            results[one] = run(one, arguments)
            print(one.folder, results[one], file=sys.stderr, flush=True)
        where = machine(Machine(threads=arguments.threads))
        text = f"{table(results)}\n{HELD_OUT} people, {TASKS[task].test_scans} scans each. {where}.\n"
        print(f"\n**{task}**\n\n{text}", flush=True)
        if arguments.save:
            numbers = {one.folder.name: found for one, found in results.items()}
            title = f"fine-tuning {bundles.info(arguments.source).name}, {task}"
            save(title, {"machine": where, "results": numbers}, text)


if __name__ == "__main__":
    main()
