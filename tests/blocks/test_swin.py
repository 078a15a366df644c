import pytest
import torch

from monai_attention.blocks.swin import MERGING_ORDERS, PatchMerging, WindowAttention, swin_blocks
from monai_attention.blocks.windows import crop_grid

HEADS = 2


def influence(layer, grid, token):
    """Which tokens of the input the given token of the output depends on."""
    x = torch.randn(1, *grid, 4, requires_grad=True)
    layer(x)[(0, *token)].square().sum().backward()
    return x.grad[0].abs().sum(-1) > 0


def test_nothing_crosses_the_border_that_the_shifted_windows_wrap_around():
    layer = WindowAttention(4, HEADS, window=(4, 4), shift=(2, 2))
    seen = influence(layer, (8, 8), (0, 3))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, 2:6] = True
    assert torch.equal(seen, expected)


def test_windows_that_wrap_attend_across_the_border():
    layer = WindowAttention(4, HEADS, window=(4, 4), shift=(2, 2), wrap=True)
    seen = influence(layer, (8, 8), (0, 3))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[[0, 1, 6, 7], 2:6] = True
    assert torch.equal(seen, expected)


def test_a_token_that_attends_only_to_itself_keeps_its_own_value():
    layer = WindowAttention(4, 1, window=(3, 2), shift=(1, 1))
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([torch.zeros(8, 4), torch.eye(4)]))
        layer.qkv.bias.zero_()
        layer.proj.weight.copy_(torch.eye(4))
        layer.proj.bias.zero_()
        layer.position.table.fill_(-1e4)
        layer.position.table[layer.position.index[0, 0]] = 0.0
    x = torch.randn(2, 5, 7, 4)
    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_padding_is_that_of_zero_tokens(qkv_bias):
    torch.manual_seed(0)
    layer = WindowAttention(4, HEADS, window=(4, 3), shift=(2, 1), qkv_bias=qkv_bias)
    x = torch.randn(1, 6, 7, 4)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 2, 0, 2))
    torch.testing.assert_close(layer(x), crop_grid(layer(padded), (6, 7)))


def test_windows_shrink_to_the_grid_along_the_axes_that_they_do_not_fit():
    layer = WindowAttention(4, HEADS, window=(4, 4), shift=(2, 2), shrink=True)
    assert layer.fit((3, 9)) == ([3, 4], [0, 2])
    assert layer.fit((4, 5)) == ([4, 4], [0, 2])
    assert layer(torch.randn(1, 3, 9, 4)).shape == (1, 3, 9, 4)
    assert torch.equal(influence(layer, (3, 4), (0, 0)), torch.ones(3, 4, dtype=torch.bool))


def test_relative_positions_decide_where_it_looks():
    """A table that singles out one offset makes every token take the value of its neighbour there."""
    layer = WindowAttention(4, 1, window=(2, 4), shift=(0, 0))
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([torch.zeros(8, 4), torch.eye(4)]))
        layer.qkv.bias.zero_()
        layer.proj.weight.copy_(torch.eye(4))
        layer.proj.bias.zero_()
        layer.position.table.zero_()
        layer.position.table[layer.position.index[1, 0]] = 1e4  # the token before, along the second axis
    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(layer(x)[:, :, 1:], x[:, :, :-1])


@pytest.mark.parametrize("wrap", [False, True])
def test_a_map_shows_where_attention_goes(wrap):
    """All tokens of a window look at the one that the bias points to; the others are left nothing."""
    layer = WindowAttention(4, 1, window=(4,), shift=(2,), wrap=wrap)
    x = torch.zeros(1, 8, 4)
    uniform = layer.attention_map(x).detach()
    assert uniform.shape == (1, 1, 8)
    torch.testing.assert_close(uniform, torch.ones(1, 1, 8), atol=0.1, rtol=0)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.eye(4).repeat(3, 1))
        layer.qkv.bias.zero_()
        layer.position.table.zero_()
    x[0, :, 0] = 100.0
    x[0, 3, 0] = 200.0
    got = layer.attention_map(x)[0, 0].detach()
    assert got[3] == pytest.approx(4.0)
    assert got[[2, 4, 5]].abs().sum() == pytest.approx(0.0, abs=1e-6)
    rest = [1.0] * 4
    torch.testing.assert_close(got[[0, 1, 6, 7]], torch.tensor(rest))


def test_dropout_is_live_in_training_only():
    torch.manual_seed(0)
    layer = WindowAttention(4, HEADS, window=(4,), shift=(2,), dropout_rate=0.5)
    x = torch.randn(1, 8, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_every_other_block_is_shifted():
    blocks = swin_blocks(4, 2, window=(4, 4), shift=(2, 1), drop_path_rates=[0.0, 0.1, 0.2], qkv_bias=False)
    assert [block.attn.shift for block in blocks] == [(0, 0), (2, 1), (0, 0)]
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks] == [0.0, 0.1, 0.2]
    assert all(block.attn.qkv.bias is None for block in blocks)
    assert all(block.mlp.fc1.out_features == 16 for block in blocks)


@pytest.mark.parametrize("order", sorted(MERGING_ORDERS))
def test_merging_reads_neighbours_in_its_order(order):
    merging = PatchMerging(1, dims=3, order=order)
    taken = []
    merging.norm.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    x = torch.zeros(1, 4, 2, 2, 1)
    for offset in MERGING_ORDERS[order]:
        x[(0, *offset, 0)] = 100 * offset[0] + 10 * offset[1] + offset[2]
    assert merging(x).shape == (1, 2, 1, 1, 2)
    assert taken[0][0, 0, 0, 0].tolist() == [100 * a + 10 * b + c for a, b, c in MERGING_ORDERS[order]]


def test_odd_grids_are_padded_at_the_end():
    merging = PatchMerging(3, dims=2)
    x = torch.randn(1, 5, 3, 3)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1))
    assert torch.equal(merging(x), merging(padded))
    with pytest.raises(ValueError, match="order must be one of"):
        PatchMerging(3, dims=3, order="random")
