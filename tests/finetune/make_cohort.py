"""A cohort to fine-tune on, tiny: what is bright is class 1, what is brighter is class 2; and a source for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.finetune.make_dataset import put
from tests.make_flexunetr_bundle import INFERENCE

SIZE = (24, 26, 22)
SOURCE = INFERENCE | {"inferer": INFERENCE["inferer"] | {"sw_batch_size": 4}}
DROPPING = SOURCE | {"network_def": INFERENCE["network_def"] | {"dropout_rate": 0.1}}
"""Its training draws random numbers, in several processes others than in one."""


def volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its labels: a box of 1 and a smaller one of 2, somewhere."""
    random = np.random.default_rng(seed)
    labels = np.zeros(SIZE, np.uint8)
    x, y, z = (int(random.integers(2, n - 14)) for n in SIZE)
    labels[x : x + 11, y : y + 11, z : z + 11] = 1
    labels[x + 3 : x + 9, y + 3 : y + 9, z + 3 : z + 9] = 2
    image = 100 * labels + 10 * random.standard_normal(SIZE)
    return image.astype(np.float32), labels


def make_cohort(folder: Path) -> Path:
    """Five cases, in paired folders."""
    for k in range(5):
        image, labels = volume(k)
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        put(folder / f"images/case{k}.nii.gz", image, affine)
        put(folder / f"labels/case{k}.nii.gz", labels, affine)
    return folder
