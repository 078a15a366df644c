"""A data set that never repeats itself: images drawn from label maps, one seed an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from monai_attention.synthesis.images import ImageGenerator

if TYPE_CHECKING:
    from ignite.engine import Engine


class LabelMapDataset(Dataset):
    """Pairs of an image and its target, drawn from label maps of people.

    Item i is drawn from map `i % len(files)` with a seed made of `seed` and i: the same every time, on every machine
    with the same version of torch.

    Args:
        files: label maps (NIfTI, integer values), reoriented to RAS on reading.
        generator: draws the images.
        classes: name of each target class -> values of the label map it is made of, in order from class 1; all other
            values are background, class 0.
        pairs: values that share an intensity class (left and right of one structure).
        tissues: values of each tissue in the order of the generator's `contrasts` (grey matter, white matter, fluid).
        strip: values outside the brain, which the generator sometimes removes.
        length: items of the set.
        jitter_mm: standard deviation of the image's centre around the centre of all classes, per axis.
        seed: another seed, another set.
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
        length: int,
        jitter_mm: float = 30.0,
        seed: int = 0,
    ) -> None:
        if not files:
            raise ValueError("expected label maps, got an empty list; check the folder they are read from")
        self.generator = generator
        self.length = length
        self.jitter_mm = jitter_mm
        self.seed = seed
        self.first = 0
        maps = [_read_ras(Path(f)) for f in files]
        values = np.unique(np.concatenate([np.unique(array) for array, _ in maps]))
        self.maps = [(torch.from_numpy(np.searchsorted(values, array).astype(np.uint8)), mm) for array, mm in maps]
        self.target = _table(values, {v: i for i, group in enumerate(classes.values(), 1) for v in group})
        same = {v: min(pair) for pair in pairs for v in pair}
        self.intensity_class = torch.from_numpy(np.unique([same.get(v, v) for v in values], return_inverse=True)[1])
        self.tissue = torch.full((int(self.intensity_class.max()) + 1,), -1)
        for i, group in enumerate(tissues):
            self.tissue[self.intensity_class[torch.from_numpy(np.isin(values, list(group)))]] = i
        generator.strip_labels = tuple(int(i) for i in np.flatnonzero(np.isin(values, list(strip))))
        self.centres = [torch.nonzero(self.target[m.long()]).float().mean(dim=0) for m, _ in self.maps]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Image (1, *roi_size) in [0, 1] and label (1, *roi_size) of class numbers."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        index += self.first
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        labels, spacing = self.maps[index % len(self.maps)]
        jitter = self.jitter_mm * torch.randn(3, generator=random) / torch.tensor(spacing)
        image, drawn = self.generator(
            labels,
            spacing,
            centre=(self.centres[index % len(self.maps)] + jitter).tolist(),
            intensity_class=self.intensity_class,
            tissue=self.tissue,
            generator=random,
        )
        return {"image": image, "label": self.target[drawn.long()][None]}


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


def _read_ras(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    image = nib.as_closest_canonical(nib.load(path))
    array = np.asarray(image.dataobj)
    if array.ndim != 3 or not np.array_equal(array, np.rint(array)):
        raise ValueError(f"{path}: a label map must be 3-D with whole numbers; got shape {array.shape}, {array.dtype}")
    return array.astype(np.int32), tuple(float(z) for z in image.header.get_zooms()[:3])


def _table(values: np.ndarray, mapping: Mapping[int, int]) -> Tensor:
    """Look-up table from positions in `values` to `mapping[value]`, 0 where there is none."""
    return torch.tensor([mapping.get(int(v), 0) for v in values], dtype=torch.uint8)
