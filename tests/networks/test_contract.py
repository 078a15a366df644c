"""What every network promises; networks are found automatically."""

import copy
import importlib
import inspect
import pkgutil
import re

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

import monai_attention.networks
from monai_attention.blocks.attention import attention_maps


def _small(name, dims):
    """Constructor arguments that make a network small."""
    unetr = {
        "roi_size": (16,) * dims,
        "patch_size": 4,
        "feature_size": 4,
        "hidden_size": 24,
        "mlp_size": 32,
        "num_heads": 2,
        "depth": 4,
    }
    nnformer = {
        **{
            "roi_size": (16,) * dims,
            "patch_size": (2,) * dims,
            "feature_size": 8,
            "depths": (2, 2, 1),
            "num_heads": (2, 2, 4),
        },
        **{"window": (4, (2,) * dims, 2), "drop_path_rate": 0.0},
    }
    transmorph = {  # one block at the second stage: shifted, its boxes would be of one token
        **{"window": (2,) * dims, "feature_size": 8, "depths": (2, 1), "num_heads": (2, 2), "drop_path_rate": 0.0},
    }
    swin = {"window": (3,) * dims, "feature_size": 4, "depths": (2, 1), "num_heads": (2, 2)}
    mbanet = {"spatial_dims": dims, "feature_size": 8, "depths": (1, 1, 1), "groups": 2, "conv_groups": 2}
    return {
        "MBANet": mbanet,
        "FlexUNETR": unetr,
        "FlexSwinUNETR": swin,
        "NNFormer": nnformer,
        "TransMorph": transmorph,
    }[name]


RANDOM = {"NNFormer": {"drop_path_rate": 0.5}}  # what each network drops in training; default: dropout_rate


def _networks():
    for module in pkgutil.iter_modules(monai_attention.networks.__path__, "monai_attention.networks."):
        for name, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            own = issubclass(value, nn.Module) and value.__module__ == module.name
            if own and {"out_channels", "use_checkpoint"} <= inspect.signature(value).parameters.keys():
                yield pytest.param(value, id=name)


@pytest.fixture(params=_networks())
def network_class(request):
    return request.param


def _build(network_class, dims=3, **options):
    torch.manual_seed(0)
    return network_class(2, 3, **{**_small(network_class.__name__, dims), **options})


def test_a_metatensor_is_trained_on_like_a_tensor(network_class):
    network, image = _build(network_class).train(), torch.randn(1, 2, 16, 16, 16)
    results = []
    for one in (image, MetaTensor(image)):
        torch.manual_seed(0)
        network.zero_grad()
        network(one).as_subclass(torch.Tensor).square().mean().backward()
        results.append([one.grad for one in network.parameters() if one.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("size", [(16, 16), (19, 33), (16, 16, 16), (17, 20, 9)])
def test_the_output_has_the_size_of_the_input(network_class, size):
    network = _build(network_class, dims=len(size))
    assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)


def test_every_parameter_gets_a_finite_gradient(network_class):
    heads = "deep_supervision" in inspect.signature(network_class).parameters
    network = _build(network_class, **({"deep_supervision": True} if heads else {}))
    logits = network(torch.randn(1, 2, 16, 16, 16))
    sum(x.square().mean() for x in (logits if heads else [logits])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, f"{name} has no influence"


def test_its_convolutions_have_right_gradients_of_thin_images_in_bfloat16(network_class):
    """See `blocks.convolution`; a plain layer would not."""
    for dims in (2, 3):
        copied = copy.deepcopy(_build(network_class, dims=dims))
        assert not {type(layer) for layer in copied.modules()} & {nn.Conv2d, nn.Conv3d}


def test_evaluation_is_deterministic_with_dropout(network_class):
    network = _build(network_class, **RANDOM.get(network_class.__name__, {"dropout_rate": 0.5}))
    x = torch.randn(1, 2, 16, 16, 16)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_samples_do_not_see_each_other(network_class):
    network = _build(network_class).eval()
    x = torch.randn(2, 2, 16, 16, 16)
    torch.testing.assert_close(network(x)[1], network(x[1:])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"use_checkpoint": True}, {"use_checkpoint": "selective"}, {"attention_backend": "math"}]
)
def test_switches_change_no_number(network_class, options):
    if not options.keys() <= inspect.signature(network_class).parameters.keys():
        pytest.skip("it has no attention between tokens")
    results = []
    for network in (_build(network_class), _build(network_class, **options)):
        logits = network(torch.linspace(-1, 1, 2 * 16**3).view(1, 2, 16, 16, 16))
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in network.parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


def test_bfloat16_autocast_stays_near(network_class):
    network = _build(network_class).eval()
    x = torch.randn(1, 2, 16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x)
    assert (low.float() - network(x)).abs().max() < 0.1 * network(x).abs().max()


def test_the_exported_program_agrees(network_class):
    network = _build(network_class).eval()
    x = torch.randn(1, 2, 16, 16, 16)
    program = torch.export.export(network, (x,))
    torch.testing.assert_close(program.module()(x), network(x))


def test_the_docstring_tells_the_number_of_parameters(network_class):
    told, *channels = re.search(
        r"([\d.]+) M with (\d+) -> (\d+) channels and the defaults", network_class.__doc__
    ).groups()
    with torch.device("meta"):
        network = network_class(*map(int, channels))
    assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f}" == told


def test_constructors_stay_small_and_keyword_only(network_class):
    parameters = list(inspect.signature(network_class).parameters.values())
    assert [p.name for p in parameters[:2]] == ["in_channels", "out_channels"]
    assert len(parameters) <= 14
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


def test_attention_maps_can_be_looked_at(network_class):
    network = _build(network_class).eval()
    x = torch.randn(2, 2, 16, 16, 16)
    expected = network(x)
    with attention_maps(network) as maps, torch.no_grad():
        torch.testing.assert_close(network(x), expected)
    assert maps
    for name, one in maps.items():
        assert one.shape[0] == 2
        assert (one.isfinite() & (one >= 0)).all(), name
        if "attention" not in name:  # between tokens: every token gives 1 away; padding tokens take and give too
            assert 0.2 < one.mean() < 2, name
    maps.clear()
    network(x)
    assert not maps


def test_it_compiles_in_one_graph(network_class):
    """With gradients: no graph break; the eager backend, since what is asked is whether it can be traced."""
    network = _build(network_class)
    x = torch.randn(1, 2, 16, 16, 16)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))
