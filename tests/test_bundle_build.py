"""What a configuration describes is made as MONAI makes it, or refused with the place that is wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from monai_attention import bundles
from monai_attention.bundle_build import Builder
from monai_attention.bundle_config import Config
from tests.make_flexunetr_bundle import INFERENCE, make_bundle
from tests.refusals import refusal


def test_the_interpreter_agrees_with_monai_about_the_language() -> None:
    from monai.bundle import ConfigParser

    tree = {
        "low": True,
        "root": "/data",
        "pair": {"a": [1, 2], "b": "@low"},
        "name": "$'a.pt' if @pair::b else 'b.pt'",
        "path": "$@root + '/models/' + @name",
        "spacing": "$[1.5, 1.5] if @pair#b else [3.0, 3.0]",
        "not": "$not @low",
        "literal": "$(1, 2.5, None)",
        "dtype": ["$torch.float16", "$np.int32"],
        "cpu": "$torch.device('cpu')",
        "mail": "someone@example.org",
        "alias": "$@pair::a",
        "list": [
            {"_target_": "torch.nn.ReLU", "_disabled_": True},
            {"_target_": "torch.nn.PReLU", "_disabled_": "$not @low", "num_parameters": "@pair::a::1"},
            {"_target_": "torch.nn.ELU", "_disabled_": "true"},
        ],
        "class": {"_target_": "torch.nn.ReLU", "_mode_": "callable", "_desc_": "a class", "_requires_": "@list"},
        "partial": {"_target_": "torch.nn.LeakyReLU", "_mode_": "callable", "negative_slope": 0.5},
    }
    ours, theirs = Builder(Config(Path("c.json"), tree)), ConfigParser(copy.deepcopy(tree))
    for id in set(tree) - {"list", "partial"}:
        assert ours.make(id) == theirs.get_parsed_content(id), id
    assert [str(one) for one in ours.make("list")] == [str(one) for one in theirs.get_parsed_content("list")]
    assert str(ours.make("partial")()) == str(theirs.get_parsed_content("partial")())
    assert ours.make("list") is ours.make("list")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roi_size": "@inferer"}, "refers to itself"),
        ({"roi_size": "@roi"}, "roi: needed, but not there"),
        ({"inferer": {"_target_": "SlidingWindowInferer", "roi_sise": 3}}, "roi_sise"),
        ({"network_def": {"_target_": "monai.networks.nets.SwinUNETR", "img_size": 96}}, "img_size"),
        ({"network_def": {"_target_": "ScaleIntensity"}}, "expected a network, got ScaleIntensity"),
    ],
)
def test_configuration_that_makes_nothing_is_refused_with_its_place(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    error = refusal(bundles.load, make_bundle(tmp_path / "b", INFERENCE | change))
    assert error.code == "E-BUNDLE-CONFIG"
    assert message in error.message
    assert "inference.json: " in error.message
