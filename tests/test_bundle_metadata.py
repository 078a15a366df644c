"""What a bundle's metadata say about its input and its answers is understood, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monai_attention import bundles
from monai_attention.io.volume import Requirements
from tests.make_flexunetr_bundle import METADATA, make_bundle
from tests.refusals import refusal


def test_gate_comes_from_the_metadata_or_else_from_the_description_of_the_input(tmp_path: Path) -> None:
    own = make_bundle(tmp_path / "own")
    assert bundles.requirements(own) == Requirements(modalities=("MR",), spacing_mm=(0.5, 6), min_extent_mm=60)
    other = make_bundle(tmp_path / "other", metadata={key: METADATA[key] for key in METADATA if key != "gate"})
    assert bundles.requirements(other) == Requirements(modalities=("CT",))


@pytest.mark.parametrize("gate", [{"spacing": [1, 2]}, {"spacing_mm": [6, 0.5]}, {"modalities": "MR"}, ["MR"]])
def test_gate_that_is_not_understood_is_refused_rather_than_ignored(tmp_path: Path, gate: Any) -> None:
    error = refusal(bundles.requirements, make_bundle(tmp_path / "b", metadata=METADATA | {"gate": gate}))
    assert error.code == "E-BUNDLE-METADATA"
    assert "metadata.json: gate" in error.message


@pytest.mark.parametrize("stated", [{"c": 5}, {"a": [2, 1]}, {"a": 0}, {"a": True}, {"a": float("nan")}, ["a"]])
def test_reaches_that_are_not_understood_are_refused_rather_than_ignored(tmp_path: Path, stated: Any) -> None:
    error = refusal(bundles.load, make_bundle(tmp_path / "b", metadata=METADATA | {"within_mm": stated}))
    assert error.code == "E-BUNDLE-METADATA"
    assert "metadata.json: within_mm" in error.message


@pytest.mark.parametrize("stated", [{"c": [1, 2]}, {"a": [2, 1]}, {"a": 5}, ["a"], {"background": [1, 2]}])
def test_plausible_volumes_that_are_not_understood_are_refused_rather_than_ignored(tmp_path: Path, stated: Any) -> None:
    error = refusal(bundles.load, make_bundle(tmp_path / "b", metadata=METADATA | {"plausible_ml": stated}))
    assert error.code == "E-BUNDLE-METADATA"
    assert "metadata.json: plausible_ml" in error.message
