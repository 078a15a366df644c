"""Labelled cohorts rendered from whole-head label maps, one fixed contrast a task.

All people of a task look as one scanner would show them: brightness belongs to the structure, and from scan to scan
it differs a little, as do bias and noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.registration import FOLDED, SIDES, T1
from monai_attention.io.write import write_json, write_labels, write_nifti

MARGIN_MM = 8.0
"""Of air around the head."""
HELD_OUT = 3
"""People, the last by number, that the source bundle has not seen: those of the test cohort."""
TEST_SCANS = 2
"""Of each of them."""

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


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    Args:
        classes: name -> values of the label maps; the first is class 1.
        brightness: of each value that has one of its own, 0 to 1; left structures stand for both sides.
        noise: its standard deviation, that of half the people or so.
        bias: standard deviation of the logarithm of the coil's brightness from the middle to an edge, along each axis.
        voxel_mm: edges of a voxel of a scan, towards right, anterior and superior.
    """

    classes: Mapping[str, Sequence[int]]
    brightness: Mapping[int, float]
    noise: float
    bias: float = 0.15
    voxel_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)


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
        HEAD | T1,
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
        CT,
        0.02,
    ),
}
"""`contrast` has the classes of brain_mri_tissue_flexunetr, by its `configs/train.json`; two of `structures` are also
in that bundle, cerebellum and brain-stem."""


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
    scans |= {person: tuple(range(1, TEST_SCANS + 1)) for person in range(people + 1, len(maps) + 1)}
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
        int16, from 0 to about 1000.

    Raises:
        ValueError: a label has no brightness.
    """
    generator = np.random.default_rng(seed)
    differences = {value: generator.normal(1, 0.03) for value in sorted(task.brightness)}
    table = np.zeros(int(labels.max()) + 1, np.float32)
    for value in np.unique(labels[labels > 0]):
        one = ALIKE.get(int(value), int(value))
        one = SIDES.get(one, one)
        if one not in differences:
            raise ValueError(
                f"expected FreeSurfer's and SynthSeg's labels, of which {value} is none that has a brightness"
            )
        table[value] = task.brightness[one] * differences[one]
    image = blocks(table[labels], edges).mean(axis=-1)
    slopes = [np.linspace(-1, 1, n, dtype=np.float32) * task.bias * generator.normal() for n in image.shape]
    image *= np.exp(slopes[0][:, None, None] + slopes[1][:, None] + slopes[2])
    noise = task.noise * generator.uniform(0.7, 1.3)
    image += noise * generator.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(1000 * image), 0, None).astype(np.int16)


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
    truth = targets(labels, edges, task)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for scan in wanted:  # the label map last: where it is, the image is whole
        write_nifti(folder / "images" / _name(person, scan), render(labels, edges, task, (person, scan)), affine)
        write_labels(folder / "labels" / _name(person, scan), truth, affine)


def describe(task: Task, folder: Path, scans: Sequence[tuple[int, int]]) -> None:
    """Write the dataset.json of scans, (person, scan), whose files lie beside its folder, for cohorts share them."""
    folder.mkdir(exist_ok=True)
    files = [_name(*one) for one in scans]
    told = {
        "name": folder.name,
        "modality": {"0": "image"},
        "labels": {"0": "background"} | {str(i): one for i, one in enumerate(task.classes, start=1)},
        "training": [{"image": f"../images/{one}", "label": f"../labels/{one}"} for one in files],
    }
    write_json(folder / "dataset.json", told)


def _name(person: int, scan: int) -> str:
    """`patient` tells `finetune.labelled.group_in` whose the scan is."""
    return f"patient{person:02d}_scan{scan}.nii.gz"
