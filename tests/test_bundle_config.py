"""Configurations are read with the line of every entry, and overrides change what is there and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_attention import bundles
from monai_attention.bundle_config import parse_override, read_config, walk
from tests.make_flexunetr_bundle import make_bundle, write
from tests.refusals import refusal


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "test_bundle")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda below: st.lists(below) | st.dictionaries(st.text(), below)
    )
)
@settings(max_examples=30, deadline=None)
def test_every_entry_of_a_configuration_has_its_line(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    tree = {"first": 1, "value": value, "last": 2}
    config = read_config(write(tmp_path_factory.getbasetemp() / "lines.json", tree))
    assert config.tree == tree
    assert set(config.lines) == {id for id, _ in walk(tree) if id}
    text = config.source.read_text().split("\n")
    assert text[config.lines["last"] - 1].strip() == '"last": 2'


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', "{'a': 1}", "[1]", '{"a": ' * 100 + "1" + "}" * 100, '{"a": ' * 100000, "\xff"]
)
def test_configuration_that_is_not_one_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text, encoding="latin-1")
    assert refusal(read_config, path).code == "E-BUNDLE-CONFIG"


def test_overrides_reach_configuration_and_metadata_and_nothing_else(bundle: Path) -> None:
    settings_ = dict(
        map(parse_override, ["inferer::overlap=0.5", "inferer#mode=gaussian", '_meta_::gate::modalities=["CT"]'])
    )
    loaded = bundles.load(bundle, overrides=settings_)
    assert loaded.inferer.overlap == 0.5
    assert loaded.inferer.mode == "gaussian"
    assert loaded.requirements.modalities == ("CT",)
    for key, value in {
        "inferer::overlap": "$__import__('os').getcwd()",
        "inferer::roi_size": ["@files"],
        "infrer::overlap": 0.5,
        "roi_size::3": 16,
        "new": 1,
    }.items():
        assert refusal(bundles.load, bundle, overrides={key: value}).code == "E-OVERRIDE", key
    assert refusal(parse_override, "overlap").code == "E-OVERRIDE"
    assert refusal(bundles.load, bundle, overrides={"inferer::_target_": "os.mkdir"}).code == "E-BUNDLE-UNTRUSTED"
