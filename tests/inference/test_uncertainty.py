import math

import pytest
import torch

from monai_attention.inference.uncertainty import disagreement, entropy


def test_entropy_is_a_share_of_the_most_there_can_be():
    sure = torch.tensor([1.0, 0, 0, 0])
    torch.testing.assert_close(entropy(sure, 0), torch.tensor(0.0))
    torch.testing.assert_close(entropy(torch.full((4,), 0.25), 0), torch.tensor(1.0))
    torch.testing.assert_close(entropy(torch.tensor([0.5, 0.5, 0, 0]), 0), torch.tensor(0.5))


def test_entropy_equals_the_formula_along_any_axis():
    p = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    p /= p.sum(dim=1, keepdim=True)
    torch.testing.assert_close(entropy(p, 1), -(p * p.log()).sum(dim=1) / math.log(5))


def test_the_same_doubt_is_no_disagreement():
    unsure = torch.tensor([0.5, 0.5])
    assert disagreement([unsure, unsure], 0) == 0
    assert disagreement([unsure], 0) == 0


def test_sure_of_different_classes_is_the_most_disagreement_there_can_be():
    torch.testing.assert_close(disagreement(list(torch.eye(3)), 0), torch.tensor(1.0))
    one_of_two = disagreement([torch.tensor([1.0, 0]), torch.tensor([0.5, 0.5])], 0)
    mixed = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert one_of_two.item() == pytest.approx(mixed - 0.5)
