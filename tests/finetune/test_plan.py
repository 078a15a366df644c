"""What a step costs is measured, and a step that cannot be made is told before anything depends on it."""

import pytest
import torch
from torch import nn

from monai_attention.finetune import plan
from monai_attention.finetune.plan import free_bytes, measured
from tests.refusals import refusal

CPU = torch.device("cpu")


class Failing(nn.Conv3d):
    """A network whose first step ends with an error."""

    def __init__(self, error):
        super().__init__(1, 2, 1)
        self.error = error

    def forward(self, image):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_row_54_a_crop_that_does_not_fit_into_memory_is_refused_with_its_size(error):
    refused = refusal(measured, Failing(error), 1, (96, 80, 64), CPU)
    assert refused.code == "E-MEMORY"
    assert "96 x 80 x 64" in refused.message
    assert "cpu" in refused.message
    assert "--device" in refused.remedy
    assert "roi_size" in refused.remedy
    assert refused.__context__ is None  # which would hold the tensors of the step


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="expected scalar type"):
        measured(Failing(RuntimeError("expected scalar type Half")), 1, (8, 8, 8), CPU)


def test_a_step_leaves_no_gradients_behind():
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1))
    costs = measured(network, 1, (16, 16, 16), CPU)
    assert costs.saved_bytes >= 4 * 16**3 * 2  # four channels of bfloat16 for the second layer
    assert costs.seconds > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_memory_that_holds_files_for_later_is_free(tmp_path, monkeypatch):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:  16 kB\nMemFree:  2 kB\nMemAvailable:   12 kB\nHugePages_Total:  0\n")
    monkeypatch.setattr(plan, "MEMINFO", told)
    assert free_bytes(CPU) == 12 * 1024
    monkeypatch.setattr(plan, "MEMINFO", tmp_path / "none")
    assert free_bytes(CPU) == 4 * 10**9
