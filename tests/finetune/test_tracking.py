"""TensorBoard and MLflow are extras: a training looks for neither where it is not there, or not wanted."""

import json
import shutil

import pytest
from monai.bundle import ConfigParser

from monai_attention.finetune.plan import Plan
from monai_attention.finetune.recipe import train_config
from tests.make_flexunetr_bundle import INFERENCE, make_bundle

EXTRAS = {"TensorBoardStatsHandler", "MLFlowHandler"}


@pytest.fixture
def recipe(tmp_path):
    """The parsed configuration of a training that could begin."""
    folder = make_bundle(tmp_path / "bundle")
    shutil.copyfile(folder / "models/model.pt", folder / "models/initial.pt")
    (folder / "data").mkdir()
    (folder / "data/cases.json").write_text(json.dumps([{"id": "a", "fold": 0}, {"id": "b", "fold": 1}]))
    plan = Plan("full", (16, 16, 16), 2, 2, 2, 1, 1e-3, 0.75, mirror=False, network={})
    parser = ConfigParser(train_config(INFERENCE, plan, trained={}, fold=0))
    parser["bundle_root"] = str(folder)
    parser.parse()
    return parser


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Packages that are there, and whose import fails."""
    for name in ("tensorboard", "mlflow"):
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "packages")


def handlers(recipe):
    return {type(one).__name__ for who in ("train", "validate") for one in recipe.get_parsed_content(f"{who}#handlers")}


def test_what_is_switched_off_is_not_imported(recipe, broken, tmp_path):
    recipe["tensorboard"] = False
    recipe.parse()
    assert {"StopOnNonFinite", "EpochTable", "KeepLast"} <= handlers(recipe)
    assert not handlers(recipe) & EXTRAS
    assert recipe.get_parsed_content("writer") is None
    assert not (tmp_path / "bundle/runs").exists()


def test_tensorboard_is_used_where_it_is_there_and_mlflow_only_when_asked_for(recipe, broken):
    assert recipe.get_parsed_content("tensorboard") is True
    assert recipe.get_parsed_content("mlflow") is None
    for who in ("train", "validate"):
        of = {one["_target_"]: one["_disabled_"] for one in recipe[who]["handlers"] if one["_target_"] in EXTRAS}
        assert of.keys() == EXTRAS
        assert all("rank() > 0" in condition for condition in of.values())
