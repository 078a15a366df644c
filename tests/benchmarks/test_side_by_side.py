import pytest
import torch
from torch import nn

from benchmarks.side_by_side import FORWARD, TRAINING, Contestant, Machine, compare, count

SETTINGS = Machine(rounds=1)


class Exponential(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            x = x.exp()  # keeps its result
        return x


def one():
    return nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8))


def other():
    return nn.Linear(8, 8)


def broken():
    raise MemoryError


def test_bytes_kept_for_the_backward_are_counted_once_each():
    x = torch.randn(3, 5, requires_grad=True)
    assert count(Exponential(1), x, SETTINGS)[0] == 0  # the result is the output
    assert count(Exponential(4), x, SETTINGS)[0] == 3 * 3 * 5 * 4


def test_bytes_that_a_hook_does_not_see_are_counted_too():
    class Hoarder(nn.Module):
        def forward(self, x):
            self.hoard = x + 1
            return x * 2

    assert count(Hoarder(), torch.randn(3, 5), SETTINGS)[0] == 3 * 5 * 4


def test_contestants_take_turns_and_are_counted():
    pair = (Contestant("one", one), Contestant("other", other, (TRAINING,)))
    results = compare(pair, (2, 8), TRAINING, SETTINGS)
    assert [len(r.seconds) for r in results.values()] == [1, 1]
    assert [r.parameters for r in results.values()] == [36 + 40, 72]
    assert [r.flops for r in results.values()] == [2 * 2 * 8 * 4 * 2, 2 * 2 * 8 * 8]
    assert [r.saved_bytes for r in results.values()] == [2 * 4 * 4, 0]
    assert list(compare(pair, (2, 8), FORWARD, SETTINGS)) == ["one"]


def test_a_contestant_that_dies_is_named():
    with pytest.raises(RuntimeError, match="process of broken died"):
        compare((Contestant("broken", broken),), (2, 8), TRAINING, SETTINGS)
