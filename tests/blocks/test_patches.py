import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_attention.blocks.patches import PatchEmbedding, Unpatch, crop_to, interpolate_grid, pad_to_multiple


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(1, 4))
def test_cropping_undoes_padding(size, multiple):
    x = torch.randn(1, 2, *size)
    padded = pad_to_multiple(x, multiple)
    assert all(n % multiple == 0 and 0 <= n - m < multiple for n, m in zip(padded.shape[2:], size, strict=True))
    assert torch.equal(crop_to(padded, size), x)
    assert padded.sum().item() == pytest.approx(x.sum().item(), abs=1e-4)


@pytest.mark.parametrize("stride", [(2, 4), (1, 2, 3)])
def test_unpatching_is_the_transposed_convolution_in_value_and_gradient(stride):
    layer = Unpatch(3, 5, stride).double()
    peer = (nn.ConvTranspose2d, nn.ConvTranspose3d)[len(stride) - 2](3, 5, stride, stride).double()
    peer.load_state_dict(layer.state_dict())
    x = torch.randn(2, *(4, 2, 3)[: len(stride)], 3).double().movedim(-1, 1).requires_grad_()
    y, expected = layer(x), peer(x)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    ours = torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), [x, *peer.parameters()]))


def test_a_linear_table_stays_linear_at_another_grid():
    n, m = 6, 9
    centres = (torch.arange(n) + 0.5) / n
    table = centres.view(1, 1, n, 1).expand(1, 1, n, 4)
    got = interpolate_grid(table, (m, 4))[0, 0, :, 0]
    expected = ((torch.arange(m) + 0.5) / m).clamp(centres[0], centres[-1])  # beyond the outermost centres: constant
    torch.testing.assert_close(got, expected)


def test_the_native_grid_is_taken_as_it_is():
    table = torch.randn(1, 3, 4, 5, 6)
    assert interpolate_grid(table, (4, 5, 6)) is table


def test_a_patch_becomes_the_token_at_its_place():
    layer = PatchEmbedding(1, 3, roi_size=(8, 12), patch_size=4)
    with torch.no_grad():
        layer.position_embedding.zero_()
    x = torch.zeros(1, 1, 8, 12)
    x[0, 0, 4:, 8:] = torch.randn(4, 4)
    (tokens,), (without,) = layer(x), layer(torch.zeros_like(x))
    changed = (tokens - without).abs().sum(dim=(0, 1)) > 0
    assert changed.nonzero().tolist() == [[1, 2]]
