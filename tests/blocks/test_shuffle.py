import pytest
import torch

from monai_attention.blocks.shuffle import ShuffleAttention, ShuffleUnit, shuffle_channels


def test_channels_are_dealt_out_in_turn():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle_channels(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle_channels(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_a_unit_passes_half_of_the_channels_untouched():
    torch.manual_seed(0)
    unit = ShuffleUnit(3, 8, 8, groups=2)
    x = torch.randn(2, 8, 4, 5, 3)
    assert torch.equal(unit(x)[:, ::2], x[:, :4])


@pytest.mark.parametrize(("dims", "size", "halved"), [(2, (7, 4), (4, 2)), (3, (5, 4, 8), (3, 2, 4))])
def test_a_unit_of_stride_two_halves(dims, size, halved):
    unit = ShuffleUnit(dims, 6, 8, groups=2, stride=2)
    assert unit(torch.randn(1, 6, *size)).shape == (1, 8, *halved)


def test_the_convolution_works_in_groups():
    unit = ShuffleUnit(3, 16, 16, groups=4)
    assert unit.branch[1][0].weight.shape == (8, 2, 3, 3, 3)


def gate(x):
    return 1 / (1 + torch.exp(-x))


def test_attention_is_the_papers_formula():
    """Group by group and channel by channel, in float64."""
    torch.manual_seed(0)
    layer = ShuffleAttention(2, 8, groups=2).double()
    with torch.no_grad():
        layer.scale.normal_()
        layer.offset.normal_()
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    expected = torch.empty_like(x)
    for group in range(2):
        for i in range(2):
            channel, place = x[:, 4 * group + i], x[:, 4 * group + 2 + i]
            mean = channel.mean((1, 2), keepdim=True)
            spread = (place - place.mean((1, 2), keepdim=True)) / (
                place.var((1, 2), keepdim=True, unbiased=False) + 1e-5
            ) ** 0.5
            one = channel * gate(layer.scale[0, 0, i, 0, 0] * mean + layer.offset[0, 0, i, 0, 0])
            two = place * gate(layer.scale[1, 0, i, 0, 0] * spread + layer.offset[1, 0, i, 0, 0])
            expected[:, 4 * group + i], expected[:, 4 * group + 2 + i] = one, two
    torch.testing.assert_close(layer(x), shuffle_channels(expected, 2))


def test_gates_can_be_looked_at():
    gates = ShuffleAttention(3, 8, groups=2).attention_map(torch.randn(1, 8, 4, 4, 4))
    assert gates.shape == (1, 4, 4, 4, 4)
    torch.testing.assert_close(gates, torch.full_like(gates, float(gate(torch.tensor(1.0)))))


@pytest.mark.parametrize("make", [lambda: ShuffleUnit(3, 8, 12, groups=4), lambda: ShuffleAttention(3, 12, groups=4)])
def test_channels_that_do_not_divide_are_refused(make):
    with pytest.raises(ValueError, match="multiple of"):
        make()
