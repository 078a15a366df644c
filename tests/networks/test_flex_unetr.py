import pytest
import torch

from monai_attention.networks.flex_unetr import FlexUNETR

SMALL = {"patch_size": 4, "feature_size": 4, "hidden_size": 24, "mlp_size": 32, "num_heads": 2, "depth": 4}


def test_parameter_count_of_the_papers_network():
    network = FlexUNETR(1, 14)  # MONAI's 92,802,478 less the 12 unused norms of 1,536 parameters each
    own = sum(p.numel() for p in network.parameters())
    monai = 92_802_478 - sum(p.numel() for p in network.encoder.norm.parameters()) * 12
    assert own == monai


def test_weights_learned_at_one_size_serve_another():
    small, large = FlexUNETR(1, 2, roi_size=(16, 16), **SMALL), FlexUNETR(1, 2, roi_size=(16, 16), **SMALL)
    large.load_state_dict(small.state_dict())
    assert large(torch.randn(1, 1, 40, 24)).shape == (1, 2, 40, 24)


def test_the_answer_at_a_padded_size_is_that_of_the_padded_image():
    network = FlexUNETR(1, 2, roi_size=(16, 16), **SMALL).eval()
    x = torch.randn(1, 1, 13, 16)
    padded = torch.cat([x, torch.zeros(1, 1, 3, 16)], dim=2)
    torch.testing.assert_close(network(x), network(padded)[:, :, :13])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 6}, "power of two"),
        ({"roi_size": (16, 18)}, "multiples of patch_size=4"),
        ({"roi_size": (16,)}, "2 or 3"),
        ({"depth": 1}, "at least log2"),
        ({"num_heads": 5}, "multiple of num_heads"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FlexUNETR(1, 2, **{"roi_size": (16, 16), **SMALL, **options})


def test_a_stem_shows_the_image_to_the_skips_and_every_parameter_learns():
    network = FlexUNETR(1, 2, roi_size=(16, 16), stem=True, **SMALL)
    network(torch.randn(1, 1, 21, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert [block.conv1.conv.out_channels for block in network.encoder.patch_embedding.stem] == [8]
    assert network.encoder.patch_embedding.proj.kernel_size == (2, 2)
