"""Pairs of images to register, drawn from label maps: other people, other deformations, other contrasts each time.

Hoffmann et al., "SynthMorph: learning contrast-invariant registration without acquired images", IEEE Transactions on
Medical Imaging 41 (2022), doi:10.1109/TMI.2021.3116879.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class PairDataset(Dataset):
    """Two images, with their labels if they have some, of a data set of single ones.

    Item i is the same every time. Of a `LabelMapDataset` each image is drawn by itself, from a person and a contrast of
    its own; now and then both are of one person, deformed in two ways.

    Args:
        images: gives them, all of one size, affinely aligned: a `LabelMapDataset` with `align` and a small `jitter_mm`,
            or any data set with `image` and perhaps `label`, channel first.
        length: items of the set.
        seed: another seed, another set.
    """

    def __init__(self, images: Sequence[Mapping[str, Tensor]], *, length: int, seed: int = 0) -> None:
        self.images = images
        self.length = length
        self.seed = seed
        self.first = 0  # see `dataset.ContinueFrom`

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Image (2, *S) and label (2, *S) of class numbers; the moving one first."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + index + self.first)
        n = len(self.images)
        first, step = (int(torch.randint(low, high, (), generator=random)) for low, high in ((0, n), (1, max(2, n))))
        two = [self.images[i] for i in (first, (first + step) % n)]  # not one image twice, if there are others
        return {key: torch.cat([one[key] for one in two]) for key in ("image", "label") if key in two[0]}
