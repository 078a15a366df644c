import pytest

from benchmarks import networks
from benchmarks.networks import Case, table
from benchmarks.side_by_side import FORWARD, TRAINING, Machine, Measured

SETTINGS = Machine(rounds=1)


def measured(seconds, saved):
    return Measured([seconds], int(seconds * 1e9), saved, int(3e9), int(2e6), [seconds])


def test_the_table_has_ratios_to_the_first():
    results = {FORWARD: {"a": measured(2, 0)}, TRAINING: {"a": measured(4, 8 * 10**9), "b": measured(2, 2 * 10**9)}}
    lines = table(Case("A case", (1,), ()), results).splitlines()
    assert lines[-2] == "| a | 2.0 M | 3 | 2 s | 2 GB | 4 s | 4 GB | 8 GB |"
    assert lines[-1] == "| b | 2.0 M | 3 |  |  | 2 s (0.50×) | 2 GB (0.50×) | 2 GB (0.25×) |"


def test_contestants_with_the_same_weights_must_agree(monkeypatch):
    results = {"a": measured(1, 0), "b": measured(1.1, 0)}
    monkeypatch.setattr(networks, "compare", lambda *_: results)
    with pytest.raises(RuntimeError, match=r"A case: b is 0\.1 away from a"):
        networks.measure(Case("A case", (1,), ()), SETTINGS)
    networks.measure(Case("A case", (1,), (), same=False), SETTINGS)
