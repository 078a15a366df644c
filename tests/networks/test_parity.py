"""Published weights give the published outputs and gradients."""

import pytest
import torch

from monai_attention.checkpoints import convert
from monai_attention.networks.flex_unetr import FlexUNETR
from tests.parity import fixture, normals, weights


@pytest.mark.parametrize("name", ["monai_unetr", "monai_unetr_perceptron"])
def test_flex_unetr_gives_the_numbers_of_monai_unetr(name):
    spec, expected = fixture(name)
    config = spec["config"]
    network = FlexUNETR(
        config["in_channels"],
        config["out_channels"],
        roi_size=config["img_size"],
        feature_size=config["feature_size"],
        hidden_size=config["hidden_size"],
        mlp_size=config["mlp_dim"],
        num_heads=config["num_heads"],
        qkv_bias=config.get("qkv_bias", False),
    ).eval()
    state, dropped = convert(weights(spec), "monai_unetr", network)
    assert all("norm_cross_attn" in key for key in dropped)
    network.load_state_dict(state, strict=True)

    x = torch.from_numpy(normals(spec["input"]["seed_name"], spec["input"]["shape"]))
    logits = network(x)
    k = spec["stride"]
    torch.testing.assert_close(logits[:, :, ::k, ::k, ::k], expected, rtol=1e-4, atol=5e-5)

    # Gradients in float64: in float32 the original's own are up to 1 % off its float64 ones.
    loss = network.double()(x.double()).square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(spec["loss"], rel=1e-9)
    # Each original key is sent through the conversion as a constant, to see where it ends up.
    keys = [key for key, _ in spec["state_dict"]]
    tags, _ = convert(
        {k: torch.full(s, float(i)) for i, (k, s) in enumerate(spec["state_dict"])}, "monai_unetr", network
    )
    for name, parameter in network.named_parameters():
        original = keys[int(tags[name].flatten()[0])]
        assert parameter.grad.norm().item() == pytest.approx(spec["grad_l2"][original], rel=1e-6), original
