import pytest
import torch

from monai_attention.synthesis.pairs import PairDataset
from tests.synthesis.test_dataset import _dataset as drawn
from tests.synthesis.test_dataset import files  # noqa: F401, a fixture


def test_pairs_are_drawn_apart_and_the_same_each_time(files):  # noqa: F811
    images = drawn(files, length=50)
    pairs = PairDataset(images, length=8, seed=3)
    assert len(pairs) == 8
    first = pairs[2]
    assert first["image"].shape[0] == first["label"].shape[0] == 2
    assert torch.equal(first["image"], pairs[2]["image"])
    assert not torch.equal(first["image"][0], first["image"][1])
    assert not torch.equal(first["image"], pairs[3]["image"])
    assert not torch.equal(first["image"], PairDataset(images, length=8, seed=4)[2]["image"])
    with pytest.raises(IndexError):
        pairs[8]


def test_a_resumed_training_goes_on_with_new_pairs(files):  # noqa: F811
    images = drawn(files, length=50)
    pairs, resumed = PairDataset(images, length=8), PairDataset(images, length=8)
    resumed.first = 3
    assert torch.equal(resumed[0]["image"], pairs[3]["image"])
