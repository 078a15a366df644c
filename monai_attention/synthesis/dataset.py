"""A data set that never repeats itself: images drawn from label maps, one seed an item."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from monai_attention.synthesis.images import ImageGenerator, look_up
from monai_attention.synthesis.randomness import Draw
from monai_attention.synthesis.tumours import CORE, ENHANCING, OEDEMA, Soil

if TYPE_CHECKING:
    from ignite.engine import Engine


PARTS = (CORE, OEDEMA, ENHANCING)
OEDEMA_REACH = {0: 0.3, 1: 1.0, 2: 0.0}
"""How far oedema reaches into the tissues, grey matter, white matter and fluid, as a share of white matter's."""


class LabelMapDataset(Dataset):
    """Pairs of an image and its target, drawn from label maps of people.

    Item i is drawn from map `i % len(files)` with a seed made of `seed` and i: the same every time, on every machine
    with the same version of torch and the same kind of device.

    Args:
        files: label maps (NIfTI, integer values), reoriented to RAS on reading.
        generator: draws the images; a copy of it is used.
        classes: name of each target class -> values of the label map it is made of, in order from class 1; all other
            values are background, class 0.
        pairs: values of one structure on the left and on the right: they share an intensity class, and change places
            in the target where a person is mirrored.
        tissues: values of each tissue in the order of the generator's `contrasts` (grey matter, white matter, fluid).
        strip: values outside the brain, which the generator sometimes removes.
        seats: values in which the middle of a simulated tumour may lie; none, no tumours. Its parts have the values of
            `tumours.CORE`, `OEDEMA` and `ENHANCING`, for `classes` and `tissues`; it does not leave the brain.
        length: items of the set.
        jitter_mm: standard deviation of the image's centre around the centre of all classes, or of `seats`, per axis.
        seed: another seed, another set.
        align: bring all people to the pose and size of the first, see `aligned`.
        device: where images are drawn, and lie. A DataLoader of a set on a GPU has no workers.

    Raises:
        ValueError: there are no maps; one is not 3-D, holds fractions, negative values, or no class (or no seat); they
            hold too many values; fewer than four labels to align by; seats without `strip` or `tissues`.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        *,
        generator: ImageGenerator,
        classes: Mapping[str, Sequence[int]],
        pairs: Sequence[Sequence[int]] = (),
        tissues: Sequence[Sequence[int]] = (),
        strip: Sequence[int] = (),
        seats: Sequence[int] = (),
        length: int,
        jitter_mm: float = 30.0,
        seed: int = 0,
        align: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if not files:
            raise ValueError("expected label maps, got an empty list; check the folder they are read from")
        self.generator = copy.copy(generator)  # what it strips is of these maps' values
        self.length = length
        self.jitter_mm = jitter_mm
        self.seed = seed
        self.first = 0
        self.device = torch.device(device)
        maps = [_read_ras(Path(f)) for f in files]
        found = np.unique(np.concatenate([[0], *(np.unique(array) for array, _ in maps)]))  # 0 is around every map
        other_side = {v: w for one, other in pairs for v, w in ((one, other), (other, one))}
        values = np.union1d(found, [other_side.get(v, v) for v in found.tolist()] + list(PARTS if seats else ()))
        if len(values) > 256:
            raise ValueError(
                f"expected label maps of at most 256 values in all, with other sides' and tumours'; got {len(values)}"
            )
        self.maps = [(torch.from_numpy(np.searchsorted(values, array).astype(np.uint8)), mm) for array, mm in maps]
        self.target = _table(values, {v: i for i, group in enumerate(classes.values(), 1) for v in group})
        self.mirrored = _table(values, {v: int(np.searchsorted(values, other_side.get(v, v))) for v in values.tolist()})
        same = {v: min(pair) for pair in pairs for v in pair}
        self.intensity_class = torch.from_numpy(np.unique([same.get(v, v) for v in values], return_inverse=True)[1])
        self.tissue = torch.full((int(self.intensity_class.max()) + 1,), -1)
        for i, group in enumerate(tissues):
            self.tissue[self.intensity_class[torch.from_numpy(np.isin(values, list(group)))]] = i
        self.generator.strip_labels = tuple(int(i) for i in np.flatnonzero(np.isin(values, list(strip))))
        self.soil = self._soil(values, seats) if seats else None
        middle = self.target > 0 if self.soil is None else torch.isin(torch.arange(len(values)), self.soil.seats)
        for file, (drawn, _) in zip(files, self.maps, strict=True):
            if not middle[drawn.long()].any():
                raise ValueError(
                    f"{file}: expected a label map that holds one of the classes, or of the seats; got none"
                )
        if align:
            kept = torch.nonzero(self.target).flatten()
            self.maps = [(aligned(*one, *self.maps[0], kept), self.maps[0][1]) for one in self.maps]
        self.centres = [torch.nonzero(middle[m.long()]).float().mean(dim=0).tolist() for m, _ in self.maps]
        self.maps = [(m.to(self.device), mm) for m, mm in self.maps]
        self.target, self.mirrored = self.target.to(self.device), self.mirrored.to(self.device)
        self.intensity_class, self.tissue = self.intensity_class.to(self.device), self.tissue.to(self.device)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Image (channels, *roi_size) in [0, 1] and label (1, *roi_size) of class numbers."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        index += self.first
        random = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + index)
        labels, spacing = self.maps[index % len(self.maps)]
        jitter = Draw(random).randn(3).tolist()
        middle = self.centres[index % len(self.maps)]
        image, drawn = self.generator(
            labels,
            spacing,
            centre=[c + self.jitter_mm * j / mm for c, j, mm in zip(middle, jitter, spacing, strict=True)],
            intensity_class=self.intensity_class,
            tissue=self.tissue,
            mirrored=self.mirrored,
            soil=self.soil,
            generator=random,
        )
        return {"image": image, "label": self.target[drawn.long()][None]}

    def _soil(self, values: np.ndarray, seats: Sequence[int]) -> Soil:
        if not self.generator.strip_labels or not (self.tissue >= 0).any():
            raise ValueError(
                "tumours need to know what is brain, `strip`, and what is white matter, `tissues`; got none"
            )
        reach = [OEDEMA_REACH.get(int(tissue), 0.0) for tissue in self.tissue[self.intensity_class]]
        for outside in (0, *self.generator.strip_labels):  # beyond the map's edge it is 0 as well
            reach[outside] = -1.0
        core, oedema, enhancing = np.searchsorted(values, PARTS).tolist()
        return Soil(
            torch.from_numpy(np.flatnonzero(np.isin(values, seats))),
            torch.tensor(reach, device=self.device),
            (core, oedema, enhancing),
        )


class ContinueFrom:
    """Handler that makes a resumed training go on with new items instead of starting over with the first ones.

    Attach it after the checkpoint loader: it reads the engine's iteration when training starts.
    """

    def __init__(self, dataset: LabelMapDataset, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size

    def attach(self, engine: Engine) -> None:
        """Listen to the start of `engine`."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Skip what the engine has seen."""
        self.dataset.first = engine.state.iteration * self.batch_size


def aligned(
    labels: Tensor, spacing: Sequence[float], target: Tensor, target_spacing: Sequence[float], values: Tensor
) -> Tensor:
    """A label map brought to the pose and size of another, by an affine map between the centroids of their labels.

    Args:
        labels: shape (X, Y, Z).
        spacing: its, in mm.
        target: another, any shape; the result lies on its grid.
        target_spacing: its, in mm.
        values: labels to go by; those that either lacks do not count.

    Raises:
        ValueError: the two share fewer than four labels.
    """
    if labels is target:
        return labels
    here, there = centroids(labels, values), centroids(target, values)
    known = ~(here + there).isnan().any(dim=1)
    if int(known.sum()) < 4:
        raise ValueError(f"expected at least 4 labels that both maps have; got {int(known.sum())}")
    from_there = F.pad(there[known] * torch.tensor(target_spacing), (0, 1), value=1.0)
    matrix = torch.linalg.lstsq(from_there, here[known] * torch.tensor(spacing)).solution / torch.tensor(spacing)
    x, y, z = (torch.arange(n) * mm for n, mm in zip(target.shape, target_spacing, strict=True))
    coordinates = [
        (column[0] * x + column[3])[:, None, None] + (column[1] * y)[:, None] + column[2] * z for column in matrix.T
    ]
    return look_up(labels, coordinates)


def centroids(labels: Tensor, values: Tensor) -> Tensor:
    """Mean position of each value in a map of numbers up to 255, in voxels, (N, 3); NaN for absent ones."""
    counts = []
    for axis in range(3):
        planes = [torch.bincount(plane.flatten().int(), minlength=256) for plane in labels.unbind(axis)]
        counts.append(torch.stack(planes)[:, values.long()].float())
    return torch.stack([torch.arange(len(c)).float() @ c / c.sum(dim=0) for c in counts], dim=1)


def _read_ras(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    image = nib.as_closest_canonical(nib.load(path))
    array = np.asarray(image.dataobj)
    if array.ndim != 3 or not np.array_equal(array, np.rint(array)) or array.min() < 0:
        message = f"a label map must be 3-D with whole numbers from 0 on; got shape {array.shape}, {array.dtype}"
        raise ValueError(f"{path}: {message}, from {array.min()}")
    return array.astype(np.int32), tuple(float(z) for z in image.header.get_zooms()[:3])


def _table(values: np.ndarray, mapping: Mapping[int, int]) -> Tensor:
    """Look-up table from positions in `values` to `mapping[value]`, 0 where there is none."""
    return torch.tensor([mapping.get(int(v), 0) for v in values], dtype=torch.uint8)
