"""Crops of prepared cases, drawn so that a training that was killed goes on with the very crops it would have seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Dataset

from monai_attention.finetune.places import LOWEST, classes_in


class PreparedCases(Dataset):
    """Whole cases, for validation: `image` (C, *S) and `label` (1, *S), and the `case` they are of.

    Args:
        folder: of the prepared files.
        cases: entries of its `cases.json`, see `prepared.write_prepared`.
    """

    def __init__(self, folder: str | Path, cases: Sequence[Mapping[str, Any]]) -> None:
        self.folder = Path(folder)
        self.cases = list(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        image, label = (torch.from_numpy(np.array(array)) for array in self.arrays(index))
        return {"image": image, "label": label, "case": case["id"]}

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (C, *S) and labels (1, *S) of a case, of which nothing is read until it is looked at."""
        image, label = (
            np.asarray(nibabel.load(self.folder / self.cases[index][kind]).dataobj) for kind in ("image", "label")
        )
        return (np.moveaxis(image, 3, 0) if image.ndim == 4 else image[None]), label[None]


class PreparedCrops(Dataset):
    """Crops around labelled voxels and others, augmented; nothing is read before the first is cut.

    Item i is the same every time. Every case comes once before any comes again; a crop is around a voxel of a class
    that is drawn first, rare ones as often as large ones, or around any voxel.

    Args:
        cases: to be cut.
        roi_size: voxels of a crop.
        transform: of `image` and `label`, random; what it gives is cut to `roi_size` around its middle, from
            `reach` as much, so that turning and scaling bring in neighbours instead of nothing.
        length: items of the set.
        labelled: share of the crops that are around a labelled voxel.
        reach: see `transform`.
        seed: another seed, another set.

    Raises:
        ValueError: there are no cases.
    """

    def __init__(
        self,
        cases: PreparedCases,
        *,
        roi_size: Sequence[int],
        transform: Compose,
        length: int,
        labelled: float = 0.67,
        reach: float = 1.25,
        seed: int = 0,
    ) -> None:
        if not len(cases):
            raise ValueError(f"expected cases of {cases.folder}, got none; is every case in the fold that is held out?")
        self.cases = cases
        self.roi_size = tuple(roi_size)
        self.cut = tuple(math.ceil(reach * n) for n in roi_size)
        self.transform = transform
        self.length = length
        self.labelled = labelled
        self.seed = seed
        self.first = 0  # see `synthesis.dataset.ContinueFrom`

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        index += self.first
        turn, place = divmod(index, len(self.cases))
        order = np.random.default_rng([self.seed, turn]).permutation(len(self.cases))
        chosen = int(order[place])
        random = np.random.default_rng([self.seed, index, 1])
        case = self.cases.cases[chosen]
        image, label = self.cases.arrays(chosen)
        with np.load(self.cases.folder / case["places"]) as places:  # nothing is read that is not asked for
            centre = self._centre(places, label.shape[1:], random)
            lowest = places[LOWEST]
        self.transform.set_random_state(seed=int(random.integers(2**31)))
        boxes = {
            "image": _cut(image, centre, self.cut, lowest),
            "label": _cut(label, centre, self.cut, [0]),
        }
        found = self.transform(boxes)
        return {
            **{kind: _middle(found[kind], self.roi_size) for kind in ("image", "label")},
            "case": case["id"],
        }

    def _centre(self, places: Mapping[str, np.ndarray], size: Sequence[int], random: np.random.Generator) -> list[int]:
        classes = classes_in(places)
        if classes and random.random() < self.labelled:
            of_class = places[str(classes[int(random.integers(len(classes)))])]
            return [int(i) for i in np.unravel_index(of_class[int(random.integers(len(of_class)))], tuple(size))]
        return [int(random.integers(n)) for n in size]


def _cut(array: np.ndarray, centre: Sequence[int], size: Sequence[int], outside: Sequence[float]) -> Tensor:
    """A box (C, *size) around a voxel; `outside` are the values beyond the array, one a channel."""
    starts = [c - n // 2 for c, n in zip(centre, size, strict=True)]
    inside = [slice(max(0, a), max(0, min(a + n, m))) for a, n, m in zip(starts, size, array.shape[1:], strict=True)]
    box = np.empty((len(array), *size), array.dtype)
    box[:] = np.asarray(outside, array.dtype).reshape(-1, 1, 1, 1)
    put = [slice(one.start - a, one.stop - a) for one, a in zip(inside, starts, strict=True)]
    box[:, put[0], put[1], put[2]] = array[:, inside[0], inside[1], inside[2]]
    return torch.from_numpy(box)


def _middle(box: Tensor, size: Sequence[int]) -> Tensor:
    starts = [(n - m) // 2 for n, m in zip(box.shape[1:], size, strict=True)]
    if any(start < 0 for start in starts):
        raise ValueError(f"the transform left {tuple(box.shape[1:])} voxels; expected at least {tuple(size)}")
    x, y, z = (slice(start, start + m) for start, m in zip(starts, size, strict=True))
    return box[:, x, y, z].as_subclass(Tensor)  # MONAI's tensors, with metadata, make every operation slower
