import pytest
import torch

from monai_attention.blocks.attention import Attention, TransformerBlock, attend
from tests.reference import attention


@pytest.mark.parametrize("backend", ["auto", "sdpa", "flex", "math"])
@pytest.mark.parametrize("masked", [False, True])
def test_attend_equals_the_loops(backend, masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, 5, dtype=torch.float64) for n in (4, 7, 7))
    bias = torch.randn(4, 7, dtype=torch.float64)
    bias[1, 3] = float("-inf")
    expected = attention(q[0, 0].numpy(), k[0, 0].numpy(), v[0, 0].numpy(), bias.numpy() if masked else None)
    got = attend(q, k, v, bias=bias if masked else None, backend=backend)
    torch.testing.assert_close(got[0, 0], torch.from_numpy(expected))


@pytest.mark.parametrize("shape", [(3, 4, 7), (2, 1, 1, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_a_bias_may_be_the_same_for_some(shape, backend):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 5) for n in (4, 7, 7))
    bias = torch.randn(shape)
    torch.testing.assert_close(attend(q, k, v, bias=bias, backend=backend), attend(q, k, v, bias=bias, backend="math"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_backends_agree_on_cuda(backend):
    results = []
    for how in (backend, "math"):
        torch.manual_seed(0)
        q, k, v, bias = (torch.randn(n, 3, 343, d, device="cuda") for n, d in ((8, 16), (8, 16), (8, 16), (1, 343)))
        leaves = [x.requires_grad_() for x in (q, k, v, bias)]
        y = attend(q, k, v, bias=bias, backend=how)
        y.square().sum().backward()
        results.append([y, *(x.grad for x in leaves)])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_backends_give_the_same_gradients():
    grads = []
    for backend in ("sdpa", "math"):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
        attend(q, k, v, backend=backend).square().sum().backward()
        grads.append([t.grad for t in (q, k, v)])
    torch.testing.assert_close(grads[0], grads[1])


def test_a_token_that_attends_only_to_itself_keeps_its_own_value():
    torch.manual_seed(0)
    layer = Attention(8, 2)
    with torch.no_grad():  # identity values and output; queries and keys that single out the token itself
        layer.qkv.weight.copy_(torch.cat([100 * torch.eye(8), 100 * torch.eye(8), torch.eye(8)]))
        layer.proj.weight.copy_(torch.eye(8))
        layer.proj.bias.zero_()
    x = torch.cat([torch.eye(4), torch.eye(4)], dim=1)[None]  # four tokens, orthogonal within each head
    torch.testing.assert_close(layer(x), x)


def test_dropout_is_live_in_training_only():
    torch.manual_seed(0)
    block = TransformerBlock(8, 16, 2, dropout_rate=0.5)
    x = torch.randn(1, 5, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="hidden_size=10, num_heads=3"):
        Attention(10, 3)
    with pytest.raises(ValueError, match="'flex' has no dropout"):
        attend(*(torch.randn(3, 1, 1, 4, 5)), dropout=0.1, backend="flex")
    with pytest.raises(ValueError, match="attention_backend must be one of"):
        Attention(8, 2, backend="flash")
