import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from monai_attention.blocks import window_attention as module
from monai_attention.blocks.window_attention import WindowAttention, crop_grid, project, window_attention
from tests import reference
from tests.blocks.test_windows import cuts

HEADS = 2


def inputs(grid, window, channels=4, bias=True):
    torch.manual_seed(0)
    tokens = [torch.randn(2, *grid, channels, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    n = math.prod(window)
    return *tokens, torch.randn(HEADS, n, n, dtype=torch.float64, requires_grad=True) if bias else None


@settings(max_examples=25, deadline=None)
@given(cuts())
def test_it_equals_the_loops(arguments):
    grid, window, shift = arguments
    grid = [min(n, 2 * w) for n, w in zip(grid, window, strict=True)]
    if math.prod(grid) > 150:
        grid = window
    q, k, v, bias = inputs(grid, window)
    got = window_attention(q, k, v, bias, num_heads=HEADS, window=window, shift=shift).detach().numpy()
    for head in range(HEADS):
        of_head = [x[1, ..., 2 * head : 2 * head + 2].detach().numpy() for x in (q, k, v)]
        expected = reference.window_attention(*of_head, bias[head].detach().numpy(), window, shift)
        np.testing.assert_allclose(got[1, ..., 2 * head : 2 * head + 2], expected, atol=1e-12)


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 2, 0)])
@pytest.mark.parametrize("kept", [0, 1000], ids=["made again", "kept"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_those_of_the_plain_formula(monkeypatch, shift, kept, with_bias):
    monkeypatch.setattr(module, "KEEP_BELOW", kept)
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": 40_000})  # several chunks
    grid, window = (4, 6, 4), (2, 3, 4)
    results = []
    for backend in ("auto", "math"):
        tensors = [x for x in inputs(grid, window, bias=with_bias) if x is not None]
        bias = tensors[3] if with_bias else None
        y = window_attention(*tensors[:3], bias, num_heads=HEADS, window=window, shift=shift, backend=backend)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        results.append([y.detach(), *(x.grad for x in tensors)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("keep", [True, False])
def test_the_operator_keeps_torchs_rules(keep):
    q, k, v, bias = (x.detach().requires_grad_() for x in inputs((4, 4), (2, 4)))
    torch.library.opcheck(module._window_attention, (q, k, v, bias, HEADS, [2, 4], [1, 0], keep))


def test_large_windows_keep_their_inputs_only():
    window = (6, 6, 6)
    q, k, v, bias = inputs((12, 6, 6), window)
    sizes = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x)
    with hooks:
        window_attention(q, k, v, bias, num_heads=HEADS, window=window, shift=(3, 0, 0))
    assert sum(sizes) == 3 * q.numel() + bias.numel()


def test_the_fused_kernel_is_not_told_that_the_bias_requires_a_gradient(monkeypatch):
    # It would make the whole score matrix in the forward pass.
    seen = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: seen.append(k["attn_mask"].requires_grad) or fused(*a, **k)
    )
    window = (6, 6, 6)
    q, k, v, bias = inputs((12, 6, 6), window)
    assert bias.requires_grad
    window_attention(q, k, v, bias, num_heads=HEADS, window=window, shift=(0, 0, 0))
    assert seen == [False]


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
    torch.testing.assert_close(project(x, layer.qkv, (4, 3)), layer.qkv(padded))
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
