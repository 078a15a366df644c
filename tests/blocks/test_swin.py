import pytest
import torch

from monai_attention.blocks.swin import MERGING_ORDERS, PatchMerging, swin_blocks


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
