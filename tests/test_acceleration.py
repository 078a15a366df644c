import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNETR, AttentionUnet, SwinUNETR
from torch import nn

import monai_attention
from monai_attention.acceleration import _SelfAttention, _Stage

SWIN = {"in_channels": 1, "out_channels": 2, "feature_size": 12}
UNETR_SIZES = {"img_size": (32, 16, 16), "hidden_size": 24, "mlp_dim": 48, "num_heads": 2, "feature_size": 4}


def swin(**options):
    return SwinUNETR(**{**SWIN, "depths": (2, 1, 1, 1), **options})


CASES = [
    pytest.param(swin, {}, (64, 32, 32), _Stage, 4, id="SwinUNETR"),
    pytest.param(swin, {"use_v2": True, "window_size": (4, 7, 3)}, (32, 64, 32), _Stage, 4, id="SwinUNETR v2"),
    pytest.param(swin, {"spatial_dims": 2, "use_checkpoint": True}, (64, 96), _Stage, 4, id="SwinUNETR 2-D"),
    pytest.param(
        UNETR, {"in_channels": 1, "out_channels": 2, **UNETR_SIZES}, (32, 16, 16), _SelfAttention, 12, id="UNETR"
    ),
]


@pytest.mark.parametrize(("make", "options", "size", "kind", "number"), CASES)
def test_the_numbers_and_names_stay_the_same(make, options, size, kind, number):
    torch.manual_seed(0)
    original = make(**options).double()
    with torch.no_grad():
        for name, x in original.named_parameters():
            if "relative_position_bias_table" in name:
                x.mul_(25)  # of the size that training gives it
    fast = monai_attention.accelerate(original)
    assert sum(isinstance(module, kind) for module in fast.modules()) == number
    assert not any(isinstance(module, kind) for module in original.modules())
    assert list(fast.state_dict()) == list(original.state_dict())
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    results = []
    for network in (original, fast):
        y = network(x)
        y.square().mean().backward()
        results.append([y.detach(), *(p.grad for p in network.parameters())])
    torch.testing.assert_close(results[0], results[1])


def test_attention_that_masks_tokens_masks_the_same():
    block = UNETR(in_channels=1, out_channels=2, **UNETR_SIZES).vit.blocks[0]
    fast = monai_attention.accelerate(block)
    x, mask = torch.randn(2, 5, 24), torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]])
    torch.testing.assert_close(fast(x, attn_mask=mask), block(x, attn_mask=mask))


def test_dropout_is_live_in_training_only():
    network = monai_attention.accelerate(swin(drop_rate=0.3, attn_drop_rate=0.3, spatial_dims=2, dropout_path_rate=0.3))
    x = torch.randn(1, 1, 32, 64)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays_what_it_was(training):
    for make, options in (
        (swin, {"attn_drop_rate": 0.1}),
        (UNETR, {"in_channels": 1, "out_channels": 2, **UNETR_SIZES}),
    ):
        fast = monai_attention.accelerate(make(**options).train(training))
        assert {module.training for module in fast.modules()} == {training}


def test_a_bundles_configuration_becomes_faster_by_one_override():
    config = {
        "network_def": {"_target_": "SwinUNETR", **SWIN, "depths": [1, 1, 1, 1]},
        "network": "$@network_def.to('cpu')",
    }
    parser = ConfigParser({**config, "imports": ["$import torch"]})
    parser["network"] = {"_target_": "monai_attention.accelerate", "network": "$@network_def.to('cpu')"}
    fast = parser.get_parsed_content("network")
    fast.load_state_dict(parser.get_parsed_content("network_def").state_dict(), strict=True)
    assert any(isinstance(module, _Stage) for module in fast.modules())


@pytest.mark.parametrize("network", [nn.Linear(2, 2), AttentionUnet(2, 1, 1, (4, 8), (2,))])
def test_networks_without_such_attention_are_refused(network):
    with pytest.raises(ValueError, match="expected MONAI's SwinUNETR or UNETR"):
        monai_attention.accelerate(network)
