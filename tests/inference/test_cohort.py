import threading
import time

import numpy as np
import pytest
import torch

from monai_attention.inference import case as case_module
from monai_attention.inference.segment import segment
from monai_attention.io.volume import ReadOptions
from tests.inference.test_segment import ball
from tests.io.make_volumes import write_nifti
from tests.make_bundle import threshold_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return threshold_bundle(tmp_path_factory.mktemp("bundles") / "threshold")


@pytest.mark.parametrize("max_memory", [None, 10**9])
def test_the_next_case_is_read_while_one_is_on_the_device(tmp_path, bundle, monkeypatch, max_memory):
    for name in ("a", "b"):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_nifti(tmp_path / f"in/{name}.nii", ball((30, 30, 30), np.eye(4))[0], np.eye(4))
    reads, both = [], threading.Event()

    def read(*args, **kwargs):
        reads.append(1)
        if len(reads) == 2:
            both.set()
        return plain_read(*args, **kwargs)

    def predict(*args, **kwargs):
        waited.append(both.wait(20 if max_memory is None else 0.5))
        return plain_predict(*args, **kwargs)

    plain_read, plain_predict, waited = case_module.read_channels, case_module.predict, []
    monkeypatch.setattr(case_module, "read_channels", read)
    monkeypatch.setattr(case_module, "predict", predict)
    options = ReadOptions(max_memory=max_memory)
    results = segment(tmp_path / "in", tmp_path / "out", bundle=bundle, options=options)
    assert [r.verdict for r in results] == ["ok", "ok"]
    assert waited == [max_memory is None, True]


def test_an_interrupt_while_the_bundle_loads_ends_all_cases(tmp_path, bundle, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        write_nifti(tmp_path / f"in/{name}.nii", ball((30, 30, 30), np.eye(4))[0], np.eye(4))

    def load(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_attention.inference.segment._settings", load)
    with pytest.raises(KeyboardInterrupt):
        segment(tmp_path / "in", tmp_path / "out", bundle=bundle)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_out_of_memory_after_the_network_is_told_as_that(tmp_path, bundle, monkeypatch):
    path = write_nifti(tmp_path / "a.nii", ball((30, 30, 30), np.eye(4))[0], np.eye(4))

    def add(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("monai_attention.inference.labels.LabelsOnGrid.add", add)
    (result,) = segment(path, tmp_path / "out", bundle=bundle)
    assert (result.verdict, result.code) == ("refused", "E-MEMORY")


def test_an_interrupt_ends_all_cases_without_half_a_result(tmp_path, bundle, monkeypatch, caplog):
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_nifti(tmp_path / f"in/{name}.nii", ball((30, 30, 30), np.eye(4))[0], np.eye(4))
    started = []

    def predict(*args, on_window, **kwargs):
        started.append(1)
        if len(started) == 1:
            raise KeyboardInterrupt
        time.sleep(0.5)
        on_window(1, 2)
        raise AssertionError("it went on")

    monkeypatch.setattr(case_module, "predict", predict)
    with pytest.raises(KeyboardInterrupt):
        segment(tmp_path / "in", tmp_path / "out", bundle=bundle)
    assert "internal error" not in caplog.text
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
