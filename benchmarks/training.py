"""How fast the packaged bundles train: images drawn from label maps per second, and images learned from.

    python -m benchmarks.training --labels FOLDER --save
    python -m benchmarks.training --labels FOLDER --device cuda

FOLDER holds whole-head label maps with FreeSurfer's values (see bundles/brain_mri_tissue_flexunetr/docs/README.md for
where to get them). Everything is as in the bundle's `configs/train.json`. Drawing is measured as it is done, in one
process with one thread (on a GPU: there), learning with all threads on images drawn before; of a step what handlers do
after it, the moving average of the weights above all, is left out. Where drawing is the faster, it does not keep the
network waiting; on a CPU both share its cores. Several sequences of a head count as one image, and so does a pair to be
registered.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/training.py`

from benchmarks.networks import save
from benchmarks.side_by_side import Machine, machine
from monai_attention import bundles

BUNDLES = (
    "brain_mri_tissue_flexunetr",
    "brain_mri_anatomy_nnformer",
    "brain_mri_tumor_mbanet",
    "brain_mri_registration_transmorph",
)


def configured(bundle: str, labels: Path, device: str, changes: dict[str, Any]) -> Any:
    """A parser of a bundle's training."""
    from monai.bundle import ConfigParser

    folder = bundles.info(bundle).folder
    parser = ConfigParser()
    parser.read_config(str(folder / "configs/train.json"))
    given = {"bundle_root": str(folder), "dataset_dir": str(labels), "device": f"$torch.device({device!r})"}
    parser.update(given | changes)
    parser.parse()
    return parser


def measure(bundle: str, labels: Path, device: str, threads: int, rounds: int, **changes: Any) -> dict[str, Any]:
    """Images drawn and learned from per second, medians of `rounds` batches."""
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)
    parser = configured(bundle, labels, device, changes)
    drawn, size = parser.get_parsed_content("train#dataset"), parser.get_parsed_content("batch_size")
    numbers = iter(range(len(drawn)))

    def batch() -> Any:
        return default_collate([drawn[next(numbers)] for _ in range(size)])

    torch.set_num_threads(1)
    batch()
    batches, drawing = zip(*(timed(batch, device) for _ in range(rounds)), strict=True)
    torch.set_num_threads(threads)
    trainer = parser.get_parsed_content("train#trainer")
    learn = trainer._process_function  # one step as the trainer would make it
    for one in batches[:2]:
        learn(trainer, one)
    learning = [timed(lambda one=one: learn(trainer, one), device)[1] for one in batches]
    return {
        "drawn_per_second": size / statistics.median(drawing),
        "learned_per_second": size / statistics.median(learning),
        "batch": size,
    }


def timed(do: Callable[[], Any], device: str) -> tuple[Any, float]:
    """What comes of it, and seconds."""
    start = time.perf_counter()
    result = do()
    if device != "cpu":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line a bundle."""
    lines = ["| bundle | images drawn a second | images learned from a second | seconds a step |", "|---|---|---|---|"]
    for name, one in results.items():
        drawn, learned = one["drawn_per_second"], one["learned_per_second"]
        lines.append(f"| {name} | {drawn:.1f} | {learned:.1f} | {one['batch'] / learned:.2f} |")
    return "\n".join(lines) + "\n"


def main(given: list[str] | None = None) -> None:
    """Measure, print, and save if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True, help="folder of label maps")
    parser.add_argument("--bundle", nargs="+", default=list(BUNDLES), help="names or folders")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="into README.md and numbers.json beside this file")
    arguments = parser.parse_args(given)
    results = {
        name: measure(name, arguments.labels, arguments.device, arguments.threads, arguments.rounds)
        for name in arguments.bundle
    }
    where = machine(Machine(device=arguments.device, threads=arguments.threads))
    text = f"{table(results)}\n{where}.\n"
    print(text, flush=True)
    if arguments.save:
        title = "training" if arguments.device == "cpu" else f"training, {arguments.device}"
        save(title, {"machine": where, "results": results}, text)


if __name__ == "__main__":
    main()
