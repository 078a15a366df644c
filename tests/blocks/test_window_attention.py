import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from monai_attention.blocks import window_attention as module
from monai_attention.blocks.window_attention import window_attention
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
