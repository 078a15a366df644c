import math

import pytest
import torch

from monai_attention.checkpoints import load_weights
from monai_attention.errors import Refusal
from monai_attention.networks.transmorph import ScrambledTransMorph, SplineTransMorph, TransMorph, sinusoids
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


def test_the_published_spline_form_has_as_many_parameters():
    with torch.device("meta"):
        network = SplineTransMorph()
    assert sum(p.numel() for p in network.parameters()) == 46_806_307
    assert "46.81 M" in SplineTransMorph.__doc__


def test_untrained_it_moves_nothing_and_is_sure_of_it():
    torch.manual_seed(0)
    x = torch.rand(1, 2, 16, 16)
    assert TransMorph(2, 2, **SMALL)(x).abs().max() < 1e-2
    assert SplineTransMorph(2, 2, control_spacing=(3, 4), **SMALL)(x).abs().max() < 1e-2
    for network in (TransMorph(2, 4, **SMALL), SplineTransMorph(2, 4, control_spacing=(3, 4), **SMALL)):
        mean, log_variance = network(x).chunk(2, dim=1)
        assert mean.abs().max() < 1e-2
        torch.testing.assert_close(log_variance, torch.full_like(log_variance, -10.0), rtol=0, atol=1e-2)


@pytest.mark.parametrize("skips", [True, False])
def test_every_parameter_learns_something_with_and_without_skips(skips):
    network = TransMorph(2, 2, attention_skips=skips, conv_skips=skips, **SMALL)
    network(torch.rand(1, 2, 16, 16)).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]


def test_coarser_outputs_are_on_grids_of_their_own():
    x = torch.rand(1, 2, 19, 8)
    assert TransMorph(2, 2, half_resolution=True, **SMALL)(x).shape == (1, 2, 10, 4)
    assert SplineTransMorph(2, 2, control_spacing=(3, 4), **SMALL)(x).shape == (1, 2, 9, 5)


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
    network = parity.network({**spec, "name": "transmorph_norpe", "config": spec["config"] | {"rpe": False}})[
        0
    ].model.network
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
    # The authors' code squares seven times without dividing before: its velocities are 2**7 times larger than they say.
    larger = 2 * math.log(128)
    assert network.head.bias.tolist() == pytest.approx([128, 128, 128, 2 + larger, 2 + larger, 2 + larger])
    assert (network.head.weight[:3] == 128).all()
    assert (network.head.weight[3:] == 2).all()


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


@pytest.mark.parametrize(
    ("network_class", "message"),
    [(SplineTransMorph, "an element an axis of window, 2"), (ScrambledTransMorph, "window must have 3 elements")],
)
def test_wrong_axes_of_other_forms_are_named(network_class, message):
    with pytest.raises(ValueError, match=message):
        network_class(2, 2, **SMALL)
