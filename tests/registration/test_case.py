"""What is said about a result."""

import math

import pytest
import torch

from monai_attention.registration.affine import Affine
from monai_attention.registration.case import _doubts
from monai_attention.registration.pair import Registered
from monai_attention.registration.transformation import Transformation

STILL = Transformation(torch.eye(4, dtype=torch.float64))
FOUND = Affine(STILL.matrix, information=1.0, overlap=1.0, mirrored=False)


@pytest.mark.parametrize(
    ("unlike", "recognised", "kept", "dropped", "expected"),
    [
        ({"network": 0.4}, {}, "network", [], []),
        ({"network": 0.6}, {}, "affine", ["network"], ["network's field did not bring", "the result is the affine"]),
        ({"network": math.nan}, {}, "affine", ["network"], ["network's field holds NaN"]),
        (
            {"network": 0.4, "optimised": 0.7},
            {},
            "network",
            ["optimised"],
            ["optimised field did not", "the result is the network's field"],
        ),
        ({"network": 0.6, "optimised": 0.3}, {}, "optimised", ["network"], ["result is the optimised field"]),
        ({"network": 0.6}, {"affine": 0.5, "network": 0.7}, "network", [], ["0.5000 to 0.6000", "0.5000 to 0.7000"]),
    ],
)
def test_fields_that_were_dropped_or_kept_against_likeness_are_told(unlike, recognised, kept, dropped, expected):
    notes = _doubts(Registered(STILL, "mind", {"affine": 0.5, **unlike}, recognised, kept, dropped, FOUND))
    assert [note.code for note in notes] == ["F-NOT-IMPROVED" if dropped else "I-LESS-ALIKE"] * bool(expected)
    assert all(part in notes[0].message for part in expected)
