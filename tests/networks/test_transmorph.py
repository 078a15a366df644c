import pytest
import torch

from monai_attention.checkpoints import load_weights
from monai_attention.errors import Refusal
from monai_attention.networks.transmorph import TransMorph, sinusoids
from tests import parity

SMALL = {"window": (2, 2), "feature_size": 8, "depths": (1, 1), "num_heads": (2, 2)}


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({}, 46_771_251),
        ({"feature_size": 128, "depths": (2, 2, 12, 2), "num_heads": (4, 4, 8, 16)}, 108_343_907),
        ({"feature_size": 48, "num_heads": (4, 4, 4, 4)}, 11_757_195),
        ({"feature_size": 6, "num_heads": (2, 2, 4, 4)}, 244_527),
        ({"position": "learned"}, 63_630_387),
        ({"half_resolution": True}, 46_556_979 - 864),
        ({"half_resolution": True, "out_channels": 6}, 46_557_414),
    ],
    ids=["base", "large", "small", "tiny", "learned", "oasis", "diff"],
)
def test_published_networks_have_as_many_parameters(options, published):
    """But for an unused convolution (2 x 16 x 27) of the form for OASIS."""
    with torch.device("meta"):
        network = TransMorph(**options)
    assert sum(p.numel() for p in network.parameters()) == published


def test_untrained_it_moves_nothing():
    torch.manual_seed(0)
    assert TransMorph(2, 2, **SMALL)(torch.rand(1, 2, 16, 16)).abs().max() < 1e-2


def test_a_displacement_at_half_resolution_is_interpolated_not_scaled():
    network = TransMorph(2, 2, half_resolution=True, **SMALL).eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([1.5, -2.0]))
    x = torch.rand(1, 2, 19, 8)
    assert network.features(torch.rand(1, 2, 16, 8)).shape == (1, 16, 8, 4)
    torch.testing.assert_close(network(x), torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand(1, 2, 19, 8))


def test_sinusoids_are_those_of_the_paper():
    made = sinusoids((2, 5), 10, like=torch.zeros(1))
    share = 6  # channels an axis, three wavelengths
    frequency = [1.0, 10000 ** (-2 / share), 10000 ** (-4 / share)]
    row, column = torch.tensor(1.0), torch.tensor(3.0)
    expected = [f(x * w) for x in (row, column) for f in (torch.sin, torch.cos) for w in frequency]
    torch.testing.assert_close(made[1, 3], torch.stack(expected)[:10])


def test_a_window_of_one_token_along_an_axis_is_not_shifted():
    with torch.device("meta"):
        shifts = [TransMorph(window=w).encoder[0].blocks[1].attn.shift for w in ((2, 2, 1), (5, 6, 7))]
    assert shifts == [(0, 0, 0), (2, 3, 3)]


def test_tables_are_not_dropped_where_they_are_used(tmp_path):
    """Weights with relative positions do not load into a network without."""
    spec, _ = parity.fixture("transmorph_small")
    network = parity.network({**spec, "name": "transmorph_norpe", "config": spec["config"] | {"rpe": False}})[0].network
    torch.save(parity.weights(spec), tmp_path / "base.pt")
    with pytest.raises(Refusal, match=r"unexpected keys: .*position\.table") as refused:
        load_weights(network, tmp_path / "base.pt")
    assert refused.value.code == "E-WEIGHTS-MISMATCH"


def test_mean_and_variance_become_one_head(tmp_path):
    spec, _ = parity.fixture("transmorph_oasis")
    state = {key: x for key, x in parity.weights(spec).items() if "reg_head" not in key and not key.startswith("c2")}
    state |= {f"flow_{name}.weight": torch.full((3, 16, 3, 3, 3), i) for i, name in enumerate(("mean", "sigma"), 1)}
    state |= {f"flow_{name}.bias": torch.full((3,), i) for i, name in enumerate(("mean", "sigma"), 1)}
    torch.save({key: x.float() for key, x in state.items()}, tmp_path / "diff.pt")
    network = TransMorph(2, 6, window=(2, 2, 2), feature_size=24, num_heads=(2, 2, 4, 4), half_resolution=True)
    assert load_weights(network, tmp_path / "diff.pt").layout == "transmorph"
    assert network.head.bias.tolist() == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (2,)}, "2 or 3 elements"),
        ({"position": "absolute"}, "position must be one of"),
        ({"num_heads": (2,)}, "an element a stage"),
        ({"num_heads": (3, 2)}, "multiple of num_heads"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TransMorph(2, 2, **{**SMALL, **options})
