import pytest
import torch
from torch import nn

from monai_attention.blocks.convolution import Convolution3d, Pointwise3d, channels_last, thin_in_float32


def small(dims, affine):
    torch.manual_seed(0)
    conv, norm = ((nn.Conv2d, nn.InstanceNorm2d), (nn.Conv3d, nn.InstanceNorm3d))[dims - 2]
    last = nn.Sequential(conv(6, 4, 3), norm(4), conv(4, 5, 1, bias=affine))
    network = nn.Sequential(conv(2, 6, 3, padding=1), norm(6, affine=affine), last)
    if affine:
        nn.init.normal_(network[1].weight)
        nn.init.normal_(network[1].bias)
    return network.double()


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_numbers_and_names_stay_as_they_are(dims, affine):
    plain, changed = small(dims, affine), small(dims, affine)
    channels_last(changed)
    assert list(plain.state_dict()) == list(changed.state_dict())
    assert not any(isinstance(layer, (nn.InstanceNorm2d, nn.InstanceNorm3d)) for layer in changed.modules())
    x = torch.randn(3, 2, *[5] * dims, dtype=torch.float64)
    results = []
    for network in (plain, changed):
        y = network(x)
        y.pow(3).sum().backward()
        results.append([y, *(p.grad for p in network.parameters())])
        results[-1].append(network.eval()(x))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_layout_is_kept_from_layer_to_layer(dims):
    network = small(dims, True).float()
    channels_last(network)
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    x = torch.randn(2, 2, *[24] * dims)  # torch's kernels for small images lay their results out plainly
    for layer in (*network[:2], *network[2]):
        x = layer(x)
        assert x.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("unlike", [{"stride": 2}, {"padding": 1}, {"padding": "same"}, {"groups": 2}])
def test_only_plain_convolutions_of_one_voxel_become_products(unlike):
    network = nn.Sequential(nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, 1, **unlike))
    x = torch.randn(2, 4, 5, 5, 5)
    expected = network(x)
    channels_last(network)
    assert [isinstance(layer, Pointwise3d) for layer in network] == [True, False]
    torch.testing.assert_close(network(x), expected)


def test_one_voxel_has_no_variance_to_learn_from():
    network = nn.Sequential(nn.InstanceNorm2d(3))
    channels_last(network)
    with pytest.raises(ValueError, match="more than one voxel"):
        network(torch.randn(2, 3, 1, 1))
    assert network.eval()(torch.randn(2, 3, 1, 1)).abs().max() < 1e-4


def test_running_statistics_are_left_alone():
    network = nn.Sequential(nn.InstanceNorm3d(3, track_running_stats=True))
    channels_last(network)
    assert isinstance(network[0], nn.InstanceNorm3d)


def test_large_images_are_summed_exactly():
    x = (torch.randn(1, 3, 96, 96, 96, generator=torch.Generator().manual_seed(0)) + 50).requires_grad_()
    weights = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    results = []
    for make, dtype in ((nn.InstanceNorm3d, torch.float64), (channels_last_norm, torch.float32)):
        x.grad = None
        laid_out = x.to(dtype).contiguous(memory_format=torch.channels_last_3d)
        y = make(3)(laid_out)
        (y * weights).sum().backward()
        results.append([y.detach().float(), x.grad])
    torch.testing.assert_close(*results, rtol=1e-5, atol=3e-5)


def channels_last_norm(channels):
    network = nn.Sequential(nn.InstanceNorm3d(channels))
    channels_last(network)
    return network


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_may_arrive_in_any_layout(layout):
    """Torch 2.13's own are wrong when they arrive with channels last."""
    network = nn.Sequential(nn.InstanceNorm2d(3))
    channels_last(network)
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    (expected,) = torch.autograd.grad((x - mean) * torch.rsqrt(variance + 1e-5), x, gradient)
    (got,) = torch.autograd.grad(network(x), x, gradient.contiguous(memory_format=layout))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_are_torchs(dims):
    norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2](4)
    network = nn.Sequential(norm)
    channels_last(network)
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    x = torch.randn(2, 4, *[6] * dims, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(network, x)
    torch.testing.assert_close(network(x), norm(x))
    low = network(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), norm(x), rtol=0.02, atol=0.02)


def gradients(conv, x, dtype):
    """Of a convolution's weights; memory that it takes and does not fill holds NaN."""
    torch.manual_seed(1)
    junk = [torch.full((conv.weight.numel() // part,), torch.nan) for part in (1, 1, 1, 2, 2, 2)]
    del junk
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = conv(x)
    assert y.dtype == dtype
    y.backward(torch.randn(y.shape).to(y))
    return conv.weight.grad


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("size", "stride"), [((2, 2, 2), 1), ((2, 9, 9), 1), ((1, 1, 1), 2), ((4, 4, 1), 2), ((4, 4), 1), ((1, 1), 2)]
)
def test_in_bfloat16_thin_images_give_right_gradients(size, stride, batch):
    kind = (nn.Conv2d, nn.Conv3d)[len(size) - 2]
    conv = thin_in_float32(kind(32, 32, 3, stride, 1))
    x = torch.randn(batch, 32, *size)
    expected = gradients(conv, x, torch.float32).clone()
    for _ in range(6):
        error = gradients(conv, x, torch.bfloat16) - expected
        assert error.abs().max() < 0.02 * expected.abs().max()


def test_results_stay_in_bfloat16():
    conv = thin_in_float32(nn.Conv3d(2, 3, 3, padding=1))
    assert type(conv) is Convolution3d
    with torch.autocast("cpu", torch.bfloat16):
        thick = conv(torch.ones(1, 2, 3, 3, 3))
    plain = nn.Conv3d(2, 3, 3, padding=1).bfloat16()
    plain.load_state_dict(conv.bfloat16().state_dict())
    x = torch.ones(1, 2, 3, 3, 3, dtype=torch.bfloat16)
    assert torch.equal(thick, plain(x))
    torch.testing.assert_close(conv(x[..., :1]), plain(x[..., :1]))


def test_a_thin_image_of_another_kind_is_left_as_it_is():
    conv = thin_in_float32(nn.Conv3d(2, 3, 3, padding=1))
    x = torch.ones(2, 2, 2, 2)
    assert torch.equal(conv(x), conv(x[None])[0])  # without a batch
    with torch.autocast("cpu", torch.bfloat16):
        assert conv.double()(x.double()).dtype == torch.float64  # autocast leaves these alone
    with torch.autocast("cpu", torch.float16):
        assert conv.float()(x).dtype == torch.float16
