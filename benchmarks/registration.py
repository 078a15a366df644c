"""Registration of different people's heads, against ANTs' SyN and elastix: overlap of 32 brain structures.

    python -m benchmarks.registration --labels FOLDER --bundle brain_mri_registration_transmorph --peers python3 --save

FOLDER holds whole-head label maps with FreeSurfer's values (see bundles/brain_mri_tissue_flexunetr/docs/README.md for
where to get them). Each person becomes an image: one brightness a label, the same for both people (same contrast) or
drawn apart, a smooth bias and noise. `--peers` is a Python that has antspyx and itk-elastix. The pairs are of the last
three people if nothing else is said: the packaged bundle was not trained on them, but other renderings of them chose
its weights.

Dice is the mean over structures, of labels warped by nearest neighbour; SD of log J is that of log(J + 3) over the
fixed grid; seconds are those of the registration and of warping the moving image, files aside; peak is that of the
whole process. Methods run by turns, each in a process of its own, with two threads.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/registration.py`

from benchmarks.networks import save
from benchmarks.side_by_side import Machine, machine
from monai_attention import bundles

STRUCTURES = (2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 17, 18, 26, 28, 41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60)
STRUCTURES += (14, 15, 16, 24)
FOLDED = {25: 2, 57: 41, 136: 4, 163: 43, 137: 5, 164: 44}
"""Labels that count as another structure."""
SIDES = {41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18, 58: 26, 60: 28}
T1 = {2: 0.85, 3: 0.55, 4: 0.15, 5: 0.15, 7: 0.80, 8: 0.52, 10: 0.65, 11: 0.58, 12: 0.60, 13: 0.70, 14: 0.15, 15: 0.15}
T1 |= {16: 0.72, 17: 0.53, 18: 0.53, 24: 0.12, 26: 0.58, 28: 0.70}
T2 = {2: 0.40, 3: 0.60, 4: 1.00, 5: 1.00, 7: 0.40, 8: 0.58, 10: 0.50, 11: 0.52, 12: 0.50, 13: 0.35, 14: 1.00, 15: 1.00}
T2 |= {16: 0.45, 17: 0.60, 18: 0.60, 24: 1.00, 26: 0.52, 28: 0.42}
PEERS = ("affine", "syn", "elastix")
OURS = {"affine only": (0, False), "optimisation": (50, False), "network": (0, True), "both": (50, True)}
"""Steps, and whether the bundle's network comes first."""


def left(label: int) -> int:
    """The structure that a label counts as, on the left if it has two sides."""
    one = FOLDED.get(label, label)
    return SIDES.get(one, one)


def rendered(labels: np.ndarray, contrast: dict[int, float], seed: int) -> np.ndarray:
    """An image of a label map; labels without a brightness get one that depends on the label and contrast alone."""
    from scipy.ndimage import gaussian_filter

    table = np.zeros(int(labels.max()) + 1, np.float32)
    for value in np.unique(labels[labels > 0]):
        one = left(int(value))
        other = np.random.default_rng([one, contrast is T2]).uniform(0.05, 0.9)
        table[value] = contrast.get(one, other)
    image = gaussian_filter(table[labels], 0.6)
    generator = np.random.default_rng(seed)
    slopes = [np.linspace(-1, 1, n, dtype=np.float32) * 0.15 * generator.normal() for n in labels.shape]
    bias = np.exp(slopes[0][:, None, None] + slopes[1][:, None] + slopes[2])
    return (image * bias + 0.03 * generator.standard_normal(image.shape)).astype(np.float32)


def prepare(folder: Path, labels: list[Path], contrast: str) -> None:
    """Write the pair's files."""
    import nibabel

    looks = T1, T2 if contrast == "other" else T1
    for name, path, look, seed in zip(("fixed", "moving"), labels, looks, (1, 2), strict=True):
        image = nibabel.load(path)
        values = np.rint(np.asarray(image.dataobj)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(rendered(values, look, seed), image.affine), folder / f"{name}.nii.gz")
        for one, other in FOLDED.items():
            values[values == one] = other
        kept = np.where(np.isin(values, STRUCTURES), values, 0).astype(np.uint8)
        target = "fixed_labels" if name == "fixed" else "labels"
        nibabel.save(nibabel.Nifti1Image(kept, image.affine), folder / f"{target}.nii.gz")


def ours(folder: Path, steps: int, bundle: str | None) -> None:
    """Our registration, in the process that `run` starts."""
    import nibabel

    from monai_attention.bundles import load_registration
    from monai_attention.cohort.phases import Phases, peak_bytes
    from monai_attention.io.fields import write_field
    from monai_attention.io.read import read
    from monai_attention.registration.case import scan_of
    from monai_attention.registration.network import network_of, recognise_of
    from monai_attention.registration.pair import Plan, register_pair
    from monai_attention.registration.transformation import displacement, resample

    device = torch.device("cpu")
    fixed, moving, labels = (scan_of(read(folder / f"{name}.nii.gz"), device) for name in ("fixed", "moving", "labels"))
    loaded = None if bundle is None else load_registration(bundle)
    network = None if loaded is None else network_of(loaded.model, loaded.spacing_mm)
    recognise = None if loaded is None else recognise_of(loaded.model, loaded.spacing_mm)
    start = time.perf_counter()
    found = register_pair(fixed, moving, Plan(steps=steps, network=network, recognise=recognise), Phases(device))
    resample(moving, found.transformation, fixed)  # the peers' times hold it as well
    seconds = time.perf_counter() - start
    warped = resample(labels, found.transformation, fixed, mode="nearest")[0, 0].numpy().astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(warped, fixed.affine.numpy()), folder / "warped.nii.gz")
    write_field(folder / "field.nii.gz", displacement(found.transformation, fixed), fixed.affine.numpy())
    peak = peak_bytes(device) / 1e9
    stages = {
        name: {stage: None if math.isnan(value) else value for stage, value in stages.items()}
        for name, stages in (("unlike", found.figures), ("recognised", found.overlaps))
    }
    figures = {"seconds": seconds, "peak_gb": peak, "similarity": found.similarity, **stages, "kept": found.kept}
    (folder / "figures.json").write_text(json.dumps(figures))


def run(method: str, folder: Path, peers: str | None, bundle: str | None) -> dict[str, Any]:
    """Register by a method in a process of its own, and judge what it wrote."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "2"}
    if method in OURS:
        steps, with_network = OURS[method]
        command = [sys.executable, "-W", "ignore", __file__, "--one", str(folder), "--steps", str(steps)]
        command += ["--bundle", str(bundle)] if with_network else []
    else:
        command = [str(peers), str(Path(__file__).parent / "registration_peers.py"), method, str(folder)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, cwd=folder)  # elastix litters
    return json.loads((folder / "figures.json").read_text()) | judged(folder)


def judged(folder: Path) -> dict[str, float]:
    """Overlap, folds and unevenness of what a method wrote."""
    import nibabel

    from monai_attention.io.fields import read_field
    from monai_attention.registration.metrics import folds, mean_dice, sd_log_jacobian
    from monai_attention.registration.world import mm_to_ddf

    warped, target = (np.asarray(nibabel.load(folder / f"{n}.nii.gz").dataobj) for n in ("warped", "fixed_labels"))
    mm, affine = read_field(folder / "field.nii.gz")
    ddf = mm_to_ddf(torch.from_numpy(mm)[None], affine)
    return {
        "dice": float(
            mean_dice(*(torch.from_numpy(labels.astype(np.int64))[None, None] for labels in (warped, target)))
        ),
        "folds": float(folds(ddf)),
        "sd_log_j": float(sd_log_jacobian(ddf)),
    }


def compare(arguments: argparse.Namespace, contrast: str) -> dict[str, list[dict[str, Any]]]:
    """Every method on every pair."""
    maps = sorted(arguments.labels.glob("*.nii*"))
    methods = [method for method, (_, with_network) in OURS.items() if arguments.bundle or not with_network]
    methods += PEERS if arguments.peers else ()
    methods = [method for method in methods if method in arguments.only]
    results: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for pair in arguments.pairs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder, [maps[i - 1] for i in pair], contrast)
            for method in methods:
                results[method].append(run(method, folder, arguments.peers, arguments.bundle))
                print(contrast, pair, method, results[method][-1], file=sys.stderr, flush=True)
    return results


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: means over pairs, and the spread of Dice."""
    lines = ["| method | Dice | folds | SD of log J | seconds | peak |", "|---|---|---|---|---|---|"]
    for method, runs in results.items():
        mean = functools.partial(lambda key, runs: statistics.fmean(run[key] for run in runs), runs=runs)
        low, high = (f(run["dice"] for run in runs) for f in (min, max))
        cells = [method if method not in OURS else f"ours, {method}", f"{mean('dice'):.3f} ({low:.3f} to {high:.3f})"]
        cells += [f"{mean('folds'):.4f} %", f"{mean('sd_log_j'):.3f}"]
        cells += [f"{mean('seconds'):.0f}", f"{mean('peak_gb'):.1f} GB"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _pair(text: str) -> tuple[int, int]:
    first, second = text.split(",")
    return int(first), int(second)


def main() -> None:
    """Measure, print, and save if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="folder of label maps")
    parser.add_argument(
        "--pairs", type=_pair, nargs="+", default=[(13, 14), (14, 15), (15, 13)], help="1,2: fixed,moving"
    )
    parser.add_argument("--bundle", help="one that registers; without it, affine and optimisation only")
    parser.add_argument("--contrast", choices=("same", "other"), action="append", help="both if left out")
    parser.add_argument("--peers", help="a Python that has antspyx and itk-elastix; ours alone without it")
    parser.add_argument("--only", nargs="+", choices=(*OURS, *PEERS), default=[*OURS, *PEERS], metavar="METHOD")
    parser.add_argument("--save", action="store_true", help="into README.md beside this file")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.one:
        ours(arguments.one, arguments.steps, arguments.bundle)
        return
    if arguments.bundle:  # methods run in folders of their own
        arguments.bundle = bundles.find(arguments.bundle)
    if arguments.peers and os.sep in arguments.peers:
        arguments.peers = str(Path(arguments.peers).absolute())
    for contrast in arguments.contrast or ("same", "other"):
        results = compare(arguments, contrast)
        text = f"{table(results)}\n{len(arguments.pairs)} pairs. {machine(Machine())}.\n"
        print(f"\n**{contrast} contrast**\n\n{text}", flush=True)
        if arguments.save:
            save(f"registration, {contrast} contrast", results, text)


if __name__ == "__main__":
    main()
