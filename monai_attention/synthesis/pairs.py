"""Pairs of images to register, drawn from label maps: other people, other deformations, other contrasts each time.

Hoffmann et al., "SynthMorph: learning contrast-invariant registration without acquired images", IEEE Transactions on
Medical Imaging 41 (2022), doi:10.1109/TMI.2021.3116879.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from monai_attention.synthesis.dataset import LabelMapDataset


class PairDataset(Dataset):
    """Two images with their labels, each drawn by itself from a person and a contrast of its own.

    Item i is the same every time. Now and then both are of one person, deformed in two ways.

    Args:
        images: draws them; its `jitter_mm` should be small, for pairs are registered affinely before.
        length: items of the set.
        seed: another seed, another set.
    """

    def __init__(self, images: LabelMapDataset, *, length: int, seed: int = 0) -> None:
        self.images = images
        self.length = length
        self.seed = seed
        self.first = 0  # see `dataset.ContinueFrom`

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Image (2, *roi_size) and label (2, *roi_size) of class numbers; the moving one first."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + index + self.first)
        two = [self.images[i] for i in torch.randint(len(self.images), (2,), generator=random).tolist()]
        return {key: torch.cat([one[key] for one in two]) for key in ("image", "label")}
