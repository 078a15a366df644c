"""A tiny cohort, a source, and what fine-tuning made of it: made once."""

import pytest

from monai_attention.finetune.run import finetune
from tests.finetune.make_cohort import DROPPING, make_cohort
from tests.make_flexunetr_bundle import make_bundle


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("source") / "source", DROPPING)


@pytest.fixture(scope="session")
def tuned(data, source, tmp_path_factory):
    return finetune(data, tmp_path_factory.mktemp("out") / "boxes_mri_tuned", source=source, epochs=3, device="cpu")
