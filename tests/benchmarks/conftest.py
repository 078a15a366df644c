"""Heads made of formulas, and a tiny bundle, for the benchmarks in small."""

import pytest
import torch

from benchmarks.cohorts import TASKS
from monai_attention.io.write import write_nifti
from monai_attention.synthesis.phantom import head_labels
from tests.make_flexunetr_bundle import INFERENCE, METADATA, NETWORK, TENSOR, make_bundle

SPACING_MM = 8.0


@pytest.fixture(autouse=True)
def threads():
    """As many after a benchmark, which chooses its own, as before: other tests compare sums to the last digit."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Eight heads, each cut off at another height."""
    folder = tmp_path_factory.mktemp("labels")
    labels, affine = head_labels(4.0)
    for person in range(1, 9):
        write_nifti(folder / f"{person:02d}.nii.gz", labels[..., person:], affine)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The classes of `contrast`, no training."""
    spacing = {"_target_": "Spacingd", "keys": "image", "pixdim": [SPACING_MM] * 3}
    steps = [spacing if one["_target_"] == "Spacingd" else one for one in INFERENCE["preprocessing"]["transforms"]]
    names = {str(i): name for i, name in enumerate(("background", *TASKS["contrast"].classes))}
    network = NETWORK | {"out_channels": len(names)}
    inference = INFERENCE | {"preprocessing": {"_target_": "Compose", "transforms": steps}, "network_def": network}
    outputs = {"pred": TENSOR | {"num_channels": len(names), "value_range": [0, 1], "channel_def": names}}
    told = METADATA | {"network_data_format": METADATA["network_data_format"] | {"outputs": outputs}}
    return make_bundle(tmp_path_factory.mktemp("source") / "source", inference, told, len(names))
