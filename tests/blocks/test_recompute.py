import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy

from benchmarks.side_by_side import Machine, count
from monai_attention.blocks import recompute
from monai_attention.blocks.attention import TransformerBlock
from monai_attention.blocks.recompute import run
from monai_attention.blocks.swin import swin_blocks

KINDS = ("flash", "efficient")


class Recomputed(nn.Module):
    def __init__(self, module, checkpoint):
        super().__init__()
        self.module = module
        self.checkpoint = checkpoint

    def forward(self, x):
        return run(self.module, x, checkpoint=self.checkpoint)


def saved(module, x):
    """Numbers kept for the backward pass, the input left out."""
    return count(module, x, Machine())[0] // 4


def test_what_is_kept_of_a_transformer_block():
    n, c, wide = 50, 16, 64
    x = torch.randn(1, n, c)
    kept = {how: saved(Recomputed(TransformerBlock(c, wide, 2), how), x) for how in (False, "selective", True)}
    # queries, keys, values; attention and its normaliser (of 2 heads); its projection; both layers of the MLP
    assert kept["selective"] == n * (3 * c + c + 2 + c + wide + c)
    assert kept[True] < 50  # the state of the random generator at most
    assert kept[False] > 1.5 * kept["selective"]


@pytest.mark.parametrize("checkpoint", [True, "selective"])
@pytest.mark.parametrize("windows", [False, True])
def test_gradients_are_the_same(checkpoint, windows):
    torch.manual_seed(0)
    block = (
        swin_blocks(8, 2, window=(6,), shift=(3,), drop_path_rates=[0.0])[0] if windows else TransformerBlock(8, 16, 2)
    )
    x = torch.randn(2, 12, 8)
    gradients = []
    for module in (block, Recomputed(block, checkpoint)):
        block.zero_grad()
        module(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in block.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_what_draws_random_numbers_is_always_recomputed(rate):
    q = torch.zeros(1, 1, 2, 2)
    flash, efficient = (getattr(torch.ops.aten, f"_scaled_dot_product_{kind}_attention").default for kind in KINDS)
    kept = recompute._policy(None, flash, q, q, q, rate), recompute._policy(None, efficient, q, q, q, None, True, rate)
    wanted = CheckpointPolicy.PREFER_RECOMPUTE if rate else CheckpointPolicy.MUST_SAVE
    assert kept == (wanted, wanted)


def test_evaluation_recomputes_nothing():
    x = torch.randn(1, 50, 16)
    module = TransformerBlock(16, 64, 2).eval()
    assert saved(Recomputed(module, True).eval(), x) == saved(module, x)


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="False, True or 'selective'; got 'some'"):
        run(nn.Identity(), torch.zeros(1), checkpoint="some")
