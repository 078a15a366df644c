"""Weights are loaded whole or not at all, and loading them runs nothing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from monai_attention.checkpoints import convert, load_weights, read_state_dict, release_weights
from monai_attention.errors import Refusal
from monai_attention.networks.flex_unetr import FlexUNETR


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    network = small_network()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return network, tmp_path / "model.pt"


def refusal(*args, **kwargs) -> Refusal:
    with pytest.raises(Refusal) as caught:
        load_weights(*args, **kwargs)
    return caught.value


class Payload:
    """Pickles into a call of os.mkdir: what an attacker would do, with something we can look for."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


def test_row_40_truncated_checkpoint_is_refused_with_sizes(saved: tuple[nn.Module, Path]) -> None:
    _, path = saved
    whole = path.read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        error = refusal(small_network(), path, sha256=digest, size=len(whole))
        assert error.code == "E-WEIGHTS-CORRUPT"
        assert f"file size {size} bytes" in error.message
        assert f"{len(whole)} bytes" in error.message
        assert digest in error.message
        assert refusal(small_network(), path).code == "E-WEIGHTS-CORRUPT", "also without a known hash"


def test_row_40_changed_checkpoint_is_refused_before_it_is_unpickled(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "made"), tmp_path / "model.pt")
    assert refusal(small_network(), tmp_path / "model.pt", sha256="0" * 64).code == "E-WEIGHTS-CORRUPT"


@pytest.mark.parametrize(
    "content",
    [
        {"0.weight": torch.zeros(4, 1, 3, 3, dtype=torch.float64), "epoch": "three"},
        {},
        [torch.zeros(1)],
        torch.zeros(3),
    ],
)
def test_checkpoint_of_something_else_than_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert refusal(small_network(), tmp_path / "model.pt").code == "E-WEIGHTS-FORMAT"


def test_row_41_every_kind_of_wrong_key_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    network = small_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    wrong = {f"other.{i}": torch.ones(1) for i in range(12)}
    wrong |= {key: torch.full_like(value, 7) for key, value in before.items() if not key.startswith("2.")}
    wrong["0.weight"] = torch.ones(4, 3, 3, 3)
    torch.save(wrong, tmp_path / "model.pt")
    error = refusal(network, tmp_path / "model.pt")
    assert error.code == "E-WEIGHTS-MISMATCH"
    assert "2 missing keys: 2.weight, 2.bias;" in error.message
    assert "12 unexpected keys: other.0," in error.message
    assert "other.9, ...;" in error.message, "ten are named, then the count must do"
    assert "1 misshapen keys: 0.weight (4, 3, 3, 3), expected (4, 1, 3, 3)" in error.message
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"0.weight": x}], ids=["bare", "entry"])
def test_row_43_malicious_pickle_is_blocked(tmp_path: Path, zipped: bool, wrap) -> None:
    made, path = tmp_path / "made", tmp_path / "model.pt"
    torch.save(wrap(Payload(made)), path, _use_new_zipfile_serialization=zipped)
    error = refusal(small_network(), path)
    assert error.code == "E-WEIGHTS-PICKLE"
    assert "mkdir" in error.message
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists(), "the payload is a real one: it works where it is not blocked"


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "network"])
def test_trainers_wrappings_are_taken_off(tmp_path: Path, wrapper: str | None) -> None:
    weights = small_network().state_dict()
    parallel = {f"module.{key}": value for key, value in weights.items()}
    content = parallel if wrapper is None else {"epoch": 3, wrapper: parallel}
    torch.save(content, tmp_path / "model.pt")
    state = read_state_dict(tmp_path / "model.pt")
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)


def test_half_precision_weights_are_cast_to_the_networks_dtype(tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in small_network().state_dict().items()}
    torch.save(half, tmp_path / "model.pt")
    network = small_network()
    report = load_weights(network, tmp_path / "model.pt")
    assert report.cast == ("float16",)
    assert report.sha256 == hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert torch.equal(network[0].weight, half["0.weight"].float())


SIZES = {"in_channels": 2, "out_channels": 3, "feature_size": 4, "hidden_size": 24, "num_heads": 2, "qkv_bias": True}


@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_convention_monai_unetr_weights_give_the_same_numbers(tmp_path: Path, proj_type: str) -> None:
    from monai.networks.nets import UNETR

    size = (16, 48, 32)  # three different token counts, so that a permuted grid cannot go unnoticed
    theirs = UNETR(img_size=size, mlp_dim=48, proj_type=proj_type, **SIZES).eval()
    torch.save(theirs.state_dict(), tmp_path / "unetr.pt")
    ours = FlexUNETR(roi_size=size, mlp_size=48, **SIZES).eval()
    report = load_weights(ours, tmp_path / "unetr.pt")
    assert report.layout == "monai_unetr"
    assert len(report.dropped) == 24, "one unused norm a block, weight and bias"
    image = torch.randn(1, 2, *size)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=5e-5)


def test_older_monai_unetr_keys_that_were_never_read_are_dropped_and_reported() -> None:
    ours = FlexUNETR(roi_size=(16, 16, 16), mlp_size=48, **SIZES)
    old = [
        "vit.patch_embedding.cls_token",
        "vit.blocks.3.cross_attn.out_proj.weight",
        "vit.blocks.3.norm_cross_attn.bias",
    ]
    state, dropped, _ = convert({key: torch.zeros(1) for key in [*old, "vit.norm.weight"]}, "monai_unetr", ours)
    assert state.keys() == {"encoder.norm.weight"}
    assert list(dropped) == old


def test_monai_unetr_of_another_depth_or_grid_is_refused_by_name(tmp_path: Path) -> None:
    from monai.networks.nets import UNETR

    torch.save(UNETR(img_size=(16, 32, 16), mlp_dim=48, **SIZES).state_dict(), tmp_path / "unetr.pt")
    error = refusal(FlexUNETR(roi_size=(32, 32, 16), mlp_size=48, depth=8, **SIZES), tmp_path / "unetr.pt")
    assert "position_embedding (1, 2, 24), expected (1, 24, 2, 2, 1)" in error.message
    assert "unexpected keys: encoder.blocks.8." in error.message


def test_released_weights_are_half_precision_known_by_hash_and_load(tmp_path):
    import json

    network = torch.nn.Linear(3, 2)
    (tmp_path / "bundle/models").mkdir(parents=True)
    (tmp_path / "bundle/configs").mkdir()
    (tmp_path / "bundle/configs/metadata.json").write_text('{"version": "1.0.0"}')
    torch.save({"model": network.state_dict(), "optimizer": {}}, tmp_path / "best.pt")
    digest = release_weights(tmp_path / "best.pt", tmp_path / "bundle")
    recorded = json.loads((tmp_path / "bundle/configs/metadata.json").read_text())
    assert recorded["version"] == "1.0.0"
    weights = recorded["weights"]["models/model.pt"]
    assert weights["sha256"] == digest
    released = torch.nn.Linear(3, 2)
    path = tmp_path / "bundle/models/model.pt"
    report = load_weights(released, path, sha256=weights["sha256"], size=weights["bytes"])
    assert report.cast == ("float16",)
    torch.testing.assert_close(released.weight, network.weight, rtol=1e-3, atol=1e-4)
    for broken in (float("nan"), 1e5):  # no number, or none in half precision
        torch.save(network.state_dict() | {"bias": torch.full((2,), broken)}, tmp_path / "best.pt")
        with pytest.raises(Refusal) as caught:
            release_weights(tmp_path / "best.pt", tmp_path / "bundle")
        assert caught.value.code == "E-LOSS"
        assert load_weights(released, path, sha256=digest).sha256 == digest
