"""What the tests of reading DICOM share: two arrays, and the watch over what belongs to the patient."""

import logging

import numpy as np
import pytest

from monai_attention.errors import Refusal
from tests.io.make_dicom import CANARY, SHAPE


@pytest.fixture
def values():
    """Different whole numbers in every voxel."""
    return np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32) - 100


@pytest.fixture
def large():
    """Large enough for JPEG 2000's five resolutions."""
    return np.random.default_rng(0).integers(-999, 999, (40, 33, 4)).astype(np.float32)


@pytest.fixture
def nothing_of_the_patient(caplog, monkeypatch):
    """Row 60, for every test of a file that marks itself with it: the canary is in no log record and in no refusal."""
    caplog.set_level(logging.DEBUG)
    seen = []
    monkeypatch.setattr(Refusal, "__init__", _listening(Refusal.__init__, seen))
    yield
    for text in [*(record.getMessage() for record in caplog.get_records("call")), *seen]:
        assert CANARY not in text
        assert "19010203" not in text


def _listening(init, seen):
    def listening(self, *args, **kwargs):
        init(self, *args, **kwargs)
        seen.append(str(self))

    return listening
