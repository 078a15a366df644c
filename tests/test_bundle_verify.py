"""`verify` passes on good bundles and names what is wrong with others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from monai_attention import bundles
from monai_attention.bundle_config import read_config
from monai_attention.bundle_verify import smallest_size, verify
from tests.make_flexunetr_bundle import INFERENCE, METADATA, make_bundle, write
from tests.refusals import refusal


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "test_bundle")


def test_verify_passes_on_a_good_bundle_and_full_runs_it(bundle: Path) -> None:
    write(bundle / "configs/train.json", INFERENCE | {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 1}})
    result = verify(bundle, full=True)
    assert result.ok, result
    details = {check.name: check.detail for check in result.checks}
    assert "needs plain MONAI or --trust-bundle: 1 entries" in details["train.json"]
    assert "(1, 3, 4, 4, 4)" in details["run"]
    schema = json.loads((Path(__file__).parent / "data/meta_schema_20240725.json").read_text())
    jsonschema.validate(json.loads((bundle / "configs/metadata.json").read_text()), schema)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("files", lambda folder: (folder / "LICENSE").unlink()),
        ("metadata", lambda folder: write(folder / "configs/metadata.json", {})),
        ("changelog", lambda folder: write(folder / "configs/metadata.json", METADATA | {"version": "0.2.0"})),
        ("changelog", lambda folder: write(folder / "configs/metadata.json", METADATA | {"changelog": None})),
        ("metadata", lambda folder: write(folder / "configs/metadata.json", METADATA | {"within_mm": {"none": 65}})),
        ("weights", lambda folder: (folder / bundles.WEIGHTS).write_bytes(b"")),
        ("weights", lambda folder: write(folder / "configs/metadata.json", METADATA)),
        ("inference.json", lambda folder: write(folder / "configs/inference.json", INFERENCE | {"a": "$1 + 1"})),
        ("run", lambda folder: write(folder / "configs/inference.json", INFERENCE | {"network_def": {}})),
    ],
)
def test_verify_names_what_is_wrong(bundle: Path, name: str, fault: Callable[[Path], Any]) -> None:
    fault(bundle)
    failed = {check.name: check.detail for check in verify(bundle, full=True).checks if not check.ok}
    assert name in failed


def test_smallest_size_of_monais_shapes() -> None:
    assert smallest_size([96, "*", "16*n", "2**p*n", "2**4*n"]) == (96, 32, 16, 2, 16)
    assert refusal(smallest_size, ["__import__('os')"]).code == "E-BUNDLE-METADATA"


@pytest.mark.parametrize("name", bundles.packaged_names())
def test_packaged_bundle_verifies_and_meets_monais_schema(name: str) -> None:
    failed = {check.name for check in verify(name, full=True).checks if not check.ok}
    assert failed == (set() if bundles.info(name).trained else {"files", "weights", "run"})
    schema = json.loads((Path(__file__).parent / "data/meta_schema_20240725.json").read_text())
    jsonschema.validate(read_config(bundles.find(name) / "configs/metadata.json").tree, schema)
