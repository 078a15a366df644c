"""Inference against MONAI's: `SlidingWindowInferer`, then `Activationsd`, `Invertd`, `AsDiscreted` and `SaveImaged`.

    python -m benchmarks.inference --case memory-117       # 512 x 512 x 400 voxels, 117 classes
    python -m benchmarks.inference --case brain --image t1.nii.gz
    python -m benchmarks.inference --case air              # how much time windows of background take
    python -m benchmarks.inference --case length           # memory against the length of the volume

Both sides have the same network and weights, and end in a label file on the grid of the input. Each run has a process
of its own, so that its peak of memory is its own. `--json FILE` saves the numbers, `--save` also puts the table into
README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/inference.py`

from benchmarks.networks import save
from benchmarks.side_by_side import Machine, machine, peak_memory

BUNDLE = Path(__file__).parent.parent / "bundles/brain_mri_tissue_flexunetr"


def alone(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Call a function in a process of its own: what it returns, seconds, and how far the peak of memory rose."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (function, args))


def _measured(function: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    torch.set_num_threads(2)
    with peak_memory("cpu") as peak:
        seconds, result = function(*args)
    return {"seconds": seconds, "peak_gb": peak[0] / 1e9, **result}


class OneConvolution(nn.Module):
    """A network that is hardly any work: what is measured is everything around it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, classes, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.conv(x)


def volume(shape: tuple[int, ...], air: float = 0.0) -> Tensor:
    """Noise, smooth on the scale of 8 voxels, in the first part of the second axis; nothing in the rest."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 1, *[-(-n // 8) for n in shape], generator=generator)
    image = nn.functional.interpolate(coarse, shape)[0]
    image[:, :, int(shape[1] * (1 - air)) :] = -10
    return image


def ours(classes: int, shape: tuple[int, ...], air: float, skip: bool) -> tuple[float, dict[str, Any]]:
    """From an image in memory to a label file."""
    from monai_attention.inference.labels import LabelsOnGrid
    from monai_attention.inference.sliding_window import stream
    from monai_attention.inference.windows import Background, WindowSettings
    from monai_attention.io.write import write_labels

    image, network, computed = volume(shape, air), OneConvolution(classes).eval(), []

    def predict(windows: Tensor, _: Any) -> list[Tensor]:
        computed.append(len(windows))
        return [network(windows)]

    settings = WindowSettings(64, 1, 0.25, "gaussian", background=Background(-5) if skip else None)
    start = time.perf_counter()
    layout = settings.layout(shape)
    labels = LabelsOnGrid(layout.order, shape, np.eye(4), np.eye(4), shape)
    for (piece,) in stream(image, predict, settings):
        labels.add(piece)
    with tempfile.TemporaryDirectory() as folder:
        write_labels(Path(folder) / "labels.nii.gz", labels.labels, np.eye(4))
    seconds = time.perf_counter() - start
    return seconds, {"windows": sum(computed), "of": layout.count(), "labels": _digest(labels.labels)}


def monais(classes: int, shape: tuple[int, ...], air: float) -> tuple[float, dict[str, Any]]:
    """The same with MONAI's inferer and its usual transforms after it."""
    from monai.data import MetaTensor
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd, Orientationd, SaveImaged

    image, network = volume(shape, air), OneConvolution(classes).eval()
    before = Compose([Orientationd("image", "RAS", labels=None)])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        data = before({"image": MetaTensor(image, affine=torch.eye(4))})
        data["pred"] = SlidingWindowInferer(64, 1, 0.25, "gaussian")(data["image"][None], network)[0]
        after = Compose(
            [
                Activationsd("pred", softmax=True),
                Invertd("pred", before, "image", nearest_interp=False),
                AsDiscreted("pred", argmax=True),
                SaveImaged("pred", output_dir=folder, output_dtype="uint8", resample=False, print_log=False),
            ]
        )
        data = after(data)
    labels = data["pred"][0].numpy().astype(np.uint8)
    return time.perf_counter() - start, {"labels": _digest(labels)}


def _digest(labels: np.ndarray) -> list[int]:
    """Every so many labels, to compare runs by."""
    return labels.ravel()[:: max(1, labels.size // 9973)].tolist()


def segment_by_us(image: str) -> tuple[float, dict[str, Any]]:
    """The packaged bundle by what `monai-attention segment` does, report and pictures included."""
    import nibabel

    from monai_attention import segment
    from monai_attention.cohort.pages import keep_pages

    keep_pages()

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        (result,) = segment(image, folder, bundle=BUNDLE, device="cpu")
        seconds = time.perf_counter() - start
        return seconds, {
            "phases": dict(result.seconds),
            "labels": _digest(_labels(nibabel.load(result.outputs["labels"]))),
        }


def segment_by_monai(image: str) -> tuple[float, dict[str, Any]]:
    """The packaged bundle by `python -m monai.bundle run`."""
    import monai.bundle
    import nibabel

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        monai.bundle.run(
            config_file=str(BUNDLE / "configs/inference.json"),
            bundle_root=str(BUNDLE),
            datalist=[image],
            device="$torch.device('cpu')",
            output_dir=folder,
        )
        seconds = time.perf_counter() - start
        (found,) = Path(folder).rglob("*.nii.gz")
        return seconds, {"labels": _digest(_labels(nibabel.load(found)))}


def _labels(image: Any) -> np.ndarray:
    return np.asarray(image.dataobj).squeeze().astype(np.uint8)


def agreement(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Share of equal labels."""
    return float(np.mean(np.array(a["labels"]) == np.array(b["labels"])))


def memory_117(arguments: argparse.Namespace) -> dict[str, Any]:
    """Many classes: MONAI's side at fewer, and from these along a line."""
    shape, classes, few = tuple(arguments.shape or (512, 512, 400)), 117, (2, 4, 8)
    peers = {n: alone(monais, n, shape, 0.0) for n in few}
    same = alone(ours, few[-1], shape, 0.0, False)
    line = {key: np.polyfit(few, [peers[n][key] for n in few], 1) for key in ("seconds", "peak_gb")}
    return {
        "ours": alone(ours, classes, shape, 0.0, False),
        "peer": {key: float(np.polyval(fit, classes)) for key, fit in line.items()},
        "ours, 8 classes": same,
        "peer, 8 classes": peers[few[-1]],
        "agreement": agreement(same, peers[few[-1]]),
        "note": f"{classes} classes on {shape}; the peer from {few} classes along a line",
    }


def brain(arguments: argparse.Namespace) -> dict[str, Any]:
    """The packaged bundle on a head, from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        image = arguments.image or _phantom(Path(folder))
        runs = [(alone(segment_by_us, image), alone(segment_by_monai, image)) for _ in range(arguments.rounds)]
    mine, theirs = (min(side, key=lambda run: run["seconds"]) for side in zip(*runs, strict=True))
    for side, chosen in zip(zip(*runs, strict=True), (mine, theirs), strict=True):
        chosen["seconds"] = statistics.median(run["seconds"] for run in side)
    note = f"brain_mri_tissue_flexunetr on {Path(image).name}"
    return {"ours": mine, "peer": theirs, "agreement": agreement(mine, theirs), "note": note}


def _phantom(folder: Path) -> str:
    from monai_attention.inference.demo import make_phantom

    return str(make_phantom(folder / "phantom.nii.gz"))


def air(arguments: argparse.Namespace) -> dict[str, Any]:
    """A volume of which 60 % is background, with and without skipping it."""
    shape = tuple(arguments.shape or (320, 320, 256))
    return {
        "ours": alone(ours, 32, shape, 0.6, True),
        "peer": alone(ours, 32, shape, 0.6, False),
        "note": f"{shape}, 60 % background; the peer is ours without skipping",
    }


def length(arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory against the length of the volume, image and labels left out."""
    results: dict[str, Any] = {}
    for n in (64, 256, 1024):
        shape = (256, 256, n)
        run = alone(ours, 16, shape, 0.0, False)
        run["peak_gb"] -= 5 * math.prod(shape) / 1e9
        results[f"ours, {n} slices"] = run
    return {**results, "note": "256 x 256 voxels a slice, 16 classes; without image and labels"}


def without_labels(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers alone: labels were for comparing runs."""
    return {k: without_labels(v) if isinstance(v, dict) else v for k, v in results.items() if k != "labels"}


CASES = {"memory-117": memory_117, "brain": brain, "air": air, "length": length}


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| | seconds | peak | windows |", "|---|---|---|---|"]
    for name, run in results.items():
        if isinstance(run, dict):
            windows = f"{run['windows']} of {run['of']}" if "of" in run else ""
            lines.append(f"| {name} | {run['seconds']:.3g} | {run['peak_gb']:.2f} GB | {windows} |")
    lines += ["", results["note"] + (f"; {results['agreement']:.2%} of labels agree" if "agreement" in results else "")]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and save if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="all of them if left out")
    parser.add_argument("--image", help="for the case `brain`; a phantom if left out")
    parser.add_argument("--shape", type=int, nargs=3, help="voxels, smaller ones for a quick look")
    parser.add_argument("--rounds", type=int, default=3, help="of the case brain")
    parser.add_argument("--json", type=Path, help="where to save the numbers")
    parser.add_argument("--save", action="store_true", help="into README.md beside this file")
    arguments = parser.parse_args()
    found = {}
    for name in arguments.case or CASES:
        results = without_labels(CASES[name](arguments))
        found[name] = results
        text = f"{table(results)}\n{machine(Machine())}\n"
        print(f"\n**{name}**\n\n{text}", flush=True)
        if arguments.save:
            save(name, results, text)
    if arguments.json:
        arguments.json.write_text(json.dumps(next(iter(found.values())) if len(found) == 1 else found, indent=1) + "\n")


if __name__ == "__main__":
    main()
