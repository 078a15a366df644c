"""Labelled cohorts rendered from whole-head label maps, one fixed contrast, or one of each sequence, a task.

All people of a task look as one scanner would show them: brightness belongs to the structure, and from scan to scan
it differs a little, as do bias and noise. Tumours are those of `synthesis.tumours`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.registration import FOLDED, T1, T2, left
from monai_attention.io.write import write_json, write_labels, write_nifti
from monai_attention.synthesis.dataset import OEDEMA_REACH, PARTS
from monai_attention.synthesis.images import look_up
from monai_attention.synthesis.randomness import Draw
from monai_attention.synthesis.tumours import CORE, ENHANCING, OEDEMA, Soil, draw_tumour

MARGIN_MM = 8.0
"""Of air around the head."""
HELD_OUT = 3
"""People, the last by number, that the source bundle has not seen: those of the test cohort."""

ALIKE = FOLDED | {30: 514, 62: 514, 72: 14, 85: 530}
"""Labels that look like another: vessels like the large veins, the fifth ventricle like the third, the chiasm."""
SKIN, FAT, BONE, MARROW, MUCOSA, MUSCLE = 511, 507, 515, 516, 509, 508
EYE, NERVE, CORD, ARTERY, VEIN = 506, 530, 512, 502, 514
HEAD = {SKIN: 0.45, FAT: 0.75, BONE: 0.06, MARROW: 0.70, MUCOSA: 0.55, MUSCLE: 0.50, EYE: 0.15, NERVE: 0.60}
HEAD |= {CORD: 0.70, ARTERY: 0.35, VEIN: 0.30}
"""What lies around the brain, in a T1-weighted image."""

GREY, WHITE, FLUID = (3, 8, 10, 11, 12, 17, 18, 26), (2, 7, 13, 16, 28, CORD, NERVE), (4, 5, 14, 15, 24, EYE)
CT = dict.fromkeys(GREY, 0.34) | dict.fromkeys(WHITE, 0.32) | dict.fromkeys(FLUID, 0.27)
CT |= {SKIN: 0.36, FAT: 0.28, BONE: 1.0, MARROW: 0.70, MUCOSA: 0.34, MUSCLE: 0.36, ARTERY: 0.37, VEIN: 0.37}
"""Like CT: bone takes most of the range, so that little is left between fluid, white and grey matter."""

LIKE_T1 = HEAD | T1
LIKE_T2 = HEAD | {FAT: 0.60, ARTERY: 0.05, VEIN: 0.10} | dict.fromkeys(FLUID, 1.0) | T2
LIKE_FLAIR = LIKE_T2 | dict.fromkeys(GREY, 0.66) | dict.fromkeys(WHITE, 0.52) | dict.fromkeys(FLUID, 0.10)

TUMOUR_SEQUENCES = {
    "T1": LIKE_T1 | {CORE: 0.35, OEDEMA: 0.58, ENHANCING: 0.50},
    "T1 with contrast agent": LIKE_T1
    | {VEIN: 0.95, ARTERY: 0.90, MUCOSA: 0.85, CORE: 0.35, OEDEMA: 0.58, ENHANCING: 1.0},
    "T2": LIKE_T2 | {CORE: 0.85, OEDEMA: 0.75, ENHANCING: 0.65},
    "FLAIR": LIKE_FLAIR | {CORE: 0.60, OEDEMA: 0.95, ENHANCING: 0.80},
}
"""Like the four sequences of the BraTS challenges."""

BRAIN = (*range(1, 30), *range(31, 62), 63, 64, 136, 137, 163, 164, *PARTS)
"""What is left when skull, scalp and vessels are removed."""


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    Args:
        classes: name -> values of the label maps; the first is class 1.
        sequences: name -> the brightness of each value that has one of its own, 0 to 1; left structures stand for both
            sides. Each is a channel of the image.
        noise: its standard deviation, that of half the people or so.
        bias: standard deviation of the logarithm of the coil's brightness from the middle to an edge, along each axis.
        voxel_mm: edges of a voxel of a scan, towards right, anterior and superior.
        tumour: whether a tumour is simulated in every scan.
        skull: whether what is not `BRAIN` is seen.
        test_scans: of each person of the test cohort.
    """

    classes: Mapping[str, Sequence[int]]
    sequences: Mapping[str, Mapping[int, float]]
    noise: float
    bias: float = 0.15
    voxel_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    tumour: bool = False
    skull: bool = True
    test_scans: int = 2


TASKS = {
    "structures": Task(
        {
            "lateral ventricles": (4, 43, 5, 44, 136, 163, 137, 164),
            "thalamus": (10, 49),
            "caudate": (11, 50),
            "putamen": (12, 51),
            "pallidum": (13, 52),
            "hippocampus": (17, 53),
            "cerebellum": (7, 46, 8, 47),
            "brain stem": (16,),
        },
        {"image": LIKE_T1},
        0.03,
    ),
    "contrast": Task(
        {
            "cerebral grey matter": (3, 42),
            "cerebral white matter": (2, 41, 25, 57),
            "CSF and ventricles": (4, 43, 5, 44, 14, 15, 24, 136, 163, 137, 164),
            "deep grey matter": (10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58, 28, 60),
            "cerebellum": (7, 46, 8, 47),
            "brain-stem": (16,),
        },
        {"image": CT},
        0.02,
    ),
    "tumours": Task(
        {"necrotic or not enhancing core": (CORE,), "oedema": (OEDEMA,), "enhancing tumour": (ENHANCING,)},
        TUMOUR_SEQUENCES,
        0.03,
        tumour=True,
        skull=False,
        test_scans=6,  # each with another tumour, which matters more than whose head it is in
    ),
}
"""`contrast` has the classes of brain_mri_tissue_flexunetr, by its `configs/train.json`; two of `structures` are also
in that bundle, cerebellum and brain-stem. `tumours` has the classes and sequences of brain_mri_tumor_mbanet."""


def cohort(folder: Path, size: int) -> Path:
    """The dataset of a training cohort of so many people; 0 is the test cohort."""
    return folder / (f"train_{size}" if size else "test")


def make_cohorts(task: Task, maps: Sequence[Path], sizes: Sequence[int], folder: Path) -> None:
    """Render people, and list them as datasets like the Medical Segmentation Decathlon's; what is there is kept.

    `cohort` names the datasets.

    Args:
        task: one of `TASKS`.
        maps: label maps, a person each, in the order of the source bundle's training.
        sizes: people of each training cohort: the first of those that the source bundle was trained on.
        folder: made if needed.

    Raises:
        ValueError: there are not that many people.
    """
    people = len(maps) - HELD_OUT
    if not sizes or not 0 < min(sizes) <= max(sizes) <= people:
        raise ValueError(f"expected cohorts of 1 to {people} people from {len(maps)} label maps, got {list(sizes)}")
    scans = dict.fromkeys(range(1, max(sizes) + 1), (0,))
    scans |= {person: tuple(range(1, task.test_scans + 1)) for person in range(people + 1, len(maps) + 1)}
    for person, which in scans.items():
        render_files(task, maps[person - 1], person, which, folder)
    lists = {size: [(person, 0) for person in range(1, size + 1)] for size in sizes}
    lists[0] = [(person, scan) for person, which in scans.items() if person > people for scan in which]
    for size, members in lists.items():
        describe(task, cohort(folder, size), members)


def render(labels: np.ndarray, edges: Sequence[int], task: Task, seed: Sequence[int]) -> np.ndarray:
    """A scan of a label map: brightness, partial volumes, bias, noise.

    Args:
        labels: (X, Y, Z).
        edges: of a voxel of the scan, in voxels of the label map, see `fineness`.
        task: gives the contrast.
        seed: of the person and the scan.

    Returns:
        int16, from 0 to about 1000, (X, Y, Z) or, of several sequences, (X, Y, Z, C).

    Raises:
        ValueError: a label has no brightness.
    """
    if not task.skull:
        labels = np.where(np.isin(labels, BRAIN), labels, 0)
    scans = [
        _render_one(labels, edges, task, brightness, (*seed, number) if number else seed)
        for number, brightness in enumerate(task.sequences.values())
    ]
    return np.stack(scans, axis=-1) if len(scans) > 1 else scans[0]


def _render_one(
    labels: np.ndarray, edges: Sequence[int], task: Task, brightness: Mapping[int, float], seed: Sequence[int]
) -> np.ndarray:
    generator = np.random.default_rng(seed)
    differences = {value: generator.normal(1, 0.03) for value in sorted(brightness)}
    table = np.zeros(int(labels.max()) + 1, np.float32)
    for value in np.unique(labels[labels > 0]):
        one = left(ALIKE.get(int(value), int(value)))
        if one not in differences:
            raise ValueError(
                f"expected FreeSurfer's and SynthSeg's labels, of which {value} is none that has a brightness"
            )
        table[value] = brightness[one] * differences[one]
    image = blocks(table[labels], edges).mean(axis=-1)
    slopes = [np.linspace(-1, 1, n, dtype=np.float32) * task.bias * generator.normal() for n in image.shape]
    image *= np.exp(slopes[0][:, None, None] + slopes[1][:, None] + slopes[2])
    noise = task.noise * generator.uniform(0.7, 1.3)
    image += noise * generator.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(1000 * image), 0, None).astype(np.int16)


def with_tumour(labels: np.ndarray, voxel_mm: float, seed: int) -> np.ndarray:
    """A label map with a simulated tumour in its white matter, and the brain around it pushed away.

    Args:
        labels: (X, Y, Z), FreeSurfer's values.
        voxel_mm: edge of its cubic voxels.
        seed: of the tumour's place, size, shape and kind.
    """
    reach = torch.full((max(PARTS) + 1,), -1.0)
    reach[list(BRAIN)] = OEDEMA_REACH[0]
    for tissue, values in enumerate((GREY, WHITE, FLUID)):
        reach[[value for value in BRAIN if left(value) in values]] = OEDEMA_REACH[tissue]
    soil = Soil(torch.tensor([2, 41]), reach, PARTS)
    before = torch.from_numpy(labels.astype(np.int16))
    axes = [(torch.arange(n) - (n - 1) / 2) * voxel_mm for n in labels.shape]
    tumour = draw_tumour(before, axes, soil, Draw(torch.Generator().manual_seed(seed)))
    if tumour is None:
        raise ValueError("expected white matter (2, 41) in the label map; there is none to seat a tumour in")
    grid = torch.meshgrid(*(torch.arange(n).float() for n in labels.shape), indexing="ij")
    pushed = look_up(before, [g + p / voxel_mm for g, p in zip(grid, tumour.pushed(axes), strict=True)])
    return tumour.grown(pushed, axes, soil).numpy()


def targets(labels: np.ndarray, edges: Sequence[int], task: Task) -> np.ndarray:
    """The task's classes on the scan's grid, uint8: in each voxel what most of it is."""
    table = np.zeros(int(labels.max()) + 1, np.uint8)
    for number, values in enumerate(task.classes.values(), start=1):
        table[[value for value in values if value < len(table)]] = number
    fine = blocks(table[labels], edges)
    winner = np.zeros(fine.shape[:3], np.uint8)
    most = (fine == 0).sum(axis=-1)
    for number in range(1, len(task.classes) + 1):
        votes = (fine == number).sum(axis=-1)
        winner[votes > most] = number
        np.maximum(most, votes, out=most)
    return winner


def fineness(affine: np.ndarray, task: Task) -> tuple[int, int, int]:
    """Voxels of a label map along the edges of the scan's voxels, in the order of the label map's axes."""
    towards = np.abs(affine[:3, :3]).argmax(axis=0)
    first, second, third = (
        max(1, round(task.voxel_mm[world] / float(np.linalg.norm(affine[:3, axis]))))
        for axis, world in enumerate(towards)
    )
    return first, second, third


def blocks(array: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    """(X, Y, Z) -> (X / a, Y / b, Z / c, a b c), what is left over at the ends cut off."""
    a, b, c = edges
    x, y, z = (n // edge for n, edge in zip(array.shape, edges, strict=True))
    cut = array[: x * a, : y * b, : z * c].reshape(x, a, y, b, z, c)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(x, y, z, a * b * c)


def render_files(task: Task, path: Path, person: int, scans: Sequence[int], folder: Path) -> None:
    """Write scans of a person's label map and their truth; what is there is kept."""
    import nibabel

    wanted = [scan for scan in scans if not (folder / "labels" / _name(person, scan)).is_file()]
    if not wanted:
        return
    loaded = nibabel.load(path)
    labels = np.rint(np.asarray(loaded.dataobj)).astype(np.int16)
    voxel_mm = float(np.mean(loaded.header.get_zooms()[:3]))
    margin = math.ceil(MARGIN_MM / voxel_mm)
    where = [np.flatnonzero((labels > 0).any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    start = [max(0, int(found[0]) - margin) for found in where]
    labels = labels[tuple(slice(low, int(found[-1]) + 1 + margin) for low, found in zip(start, where, strict=True))]
    edges = fineness(loaded.affine, task)
    affine = loaded.affine @ np.diag([*edges, 1.0])
    first = [low + (edge - 1) / 2 for low, edge in zip(start, edges, strict=True)]
    affine[:3, 3] = (loaded.affine @ [*first, 1.0])[:3]
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for scan in wanted:  # the label map last: where it is, the image is whole
        seen = with_tumour(labels, voxel_mm, 1000 * person + scan) if task.tumour else labels
        write_nifti(folder / "images" / _name(person, scan), render(seen, edges, task, (person, scan)), affine)
        write_labels(folder / "labels" / _name(person, scan), targets(seen, edges, task), affine)


def describe(task: Task, folder: Path, scans: Sequence[tuple[int, int]]) -> None:
    """Write the dataset.json of scans, (person, scan), whose files lie beside its folder, for cohorts share them."""
    folder.mkdir(exist_ok=True)
    files = [_name(*one) for one in scans]
    told = {
        "name": folder.name,
        "modality": {str(i): one for i, one in enumerate(task.sequences)},
        "labels": {"0": "background"} | {str(i): one for i, one in enumerate(task.classes, start=1)},
        "training": [{"image": f"../images/{one}", "label": f"../labels/{one}"} for one in files],
    }
    write_json(folder / "dataset.json", told)


def _name(person: int, scan: int) -> str:
    """`patient` tells `finetune.labelled.group_in` whose the scan is."""
    return f"patient{person:02d}_scan{scan}.nii.gz"
