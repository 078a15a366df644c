import pytest
import torch
from monai.networks.nets import SwinUNETR

from monai_attention.checkpoints import load_weights
from monai_attention.errors import Refusal
from monai_attention.networks.flex_swin_unetr import FlexSwinUNETR

SMALL = {"window": (3, 3), "feature_size": 4, "depths": (1, 1), "num_heads": (2, 2)}
MONAI = {"in_channels": 1, "out_channels": 2, "feature_size": 12}


@pytest.mark.parametrize(
    ("options", "monai"),
    [
        ({"feature_size": 24}, 15_703_304),
        ({"feature_size": 48}, 62_187_296),
        ({"feature_size": 24, "residual_stages": True}, 18_347_144),
        ({"feature_size": 48, "residual_stages": True}, 72_762_656),
    ],
    ids=["24", "48", "24 v2", "48 v2"],
)
def test_it_has_as_many_parameters_as_monais(options, monai):
    with torch.device("meta"):
        network = FlexSwinUNETR(1, 14, **options)
    assert sum(p.numel() for p in network.parameters()) == monai


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "swin.pt"
    torch.save({"state_dict": SwinUNETR(**MONAI).state_dict()}, path)
    return path


def test_weights_do_not_load_before_it_is_said_how_they_merge(saved):
    with pytest.raises(Refusal, match=r"monai_swinunetr_1\.5, monai_swinunetr_0\.9") as refused:
        load_weights(FlexSwinUNETR(1, 2, feature_size=12), saved)
    assert refused.value.code == "E-WEIGHTS-LAYOUT"
    assert refused.value.path == saved


def test_weights_do_not_load_into_a_network_that_merges_otherwise(saved):
    with pytest.raises(Refusal, match=r"merge patches in the order 'monai_0\.9'") as refused:
        load_weights(FlexSwinUNETR(1, 2, feature_size=12), saved, layout="monai_swinunetr_0.9")
    assert 'merging="monai_0.9"' in refused.value.remedy
    network = FlexSwinUNETR(1, 2, feature_size=12, merging="monai_0.9")
    assert load_weights(network, saved, layout="monai_swinunetr_0.9").layout == "monai_swinunetr_0.9"


def test_the_encoder_of_self_supervised_training_loads_alone(tmp_path):
    """With the names it was published under: a prefix of parallel training, another MLP, heads of other tasks."""
    theirs = SwinUNETR(**MONAI)
    state = {
        f"module.{key.removeprefix('swinViT.').replace('linear', 'fc')}": x
        for key, x in theirs.state_dict().items()
        if key.startswith("swinViT.")
    }
    state |= {f"module.{key}": torch.zeros(3) for key in ("norm.weight", "rotation_head.bias", "contrastive_head.bias")}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model_swinvit.pt")
    network = FlexSwinUNETR(1, 2, feature_size=12, merging="monai_0.9")
    before = network.last.head.conv.conv.weight.clone()
    report = load_weights(network, tmp_path / "model_swinvit.pt")
    assert report.layout == "monai_swinvit_0.9"
    assert torch.equal(network.embedding.weight, theirs.swinViT.patch_embed.proj.weight)
    assert torch.equal(network.encoder[3].blocks[1].mlp.fc2.bias, theirs.swinViT.layers4[0].blocks[1].mlp.linear2.bias)
    assert torch.equal(network.last.head.conv.conv.weight, before)
    assert {key.partition(".")[0] for key in report.fresh} == {"skips", "bottom", "decoder", "last"}
    assert {"norm.weight", "rotation_head.bias", "contrastive_head.bias"} < set(report.dropped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (3,)}, "2 or 3 elements"),
        ({"num_heads": (2,)}, "an element a stage"),
        ({"merging": "monai"}, "order must be one of"),
        ({"num_heads": (3, 2)}, "multiple of num_heads"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FlexSwinUNETR(1, 2, **{**SMALL, **options})


@pytest.mark.parametrize(
    ("downsample", "order", "layout"),
    [("merging", "monai_1.5", "monai_swinunetr_1.5"), ("mergingv2", "raster", "monai_swinunetr_mergingv2")],
)
def test_in_two_dimensions_monai_s_weights_give_monai_s_numbers(tmp_path, downsample, order, layout):
    torch.manual_seed(0)
    theirs = SwinUNETR(1, 2, feature_size=12, spatial_dims=2, downsample=downsample).eval()
    torch.save(theirs.state_dict(), tmp_path / "swin.pt")
    ours = FlexSwinUNETR(1, 2, feature_size=12, window=(7, 7), merging=order).eval()
    load_weights(ours, tmp_path / "swin.pt", layout=layout)
    x = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
