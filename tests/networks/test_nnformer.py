import pytest
import torch

from monai_attention.blocks import convolution
from monai_attention.checkpoints import load_weights
from monai_attention.errors import Refusal
from monai_attention.networks.nnformer import Halving, NNFormer
from tests import parity

SMALL = {
    **{"roi_size": (16, 16), "patch_size": (2, 2), "feature_size": 8, "depths": (1, 1, 1), "num_heads": (2, 2, 2)},
    **{"window": (4, 2, 2)},
}


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"in_channels": 4, "out_channels": 4, "decoder_heads": (6, 12, 24)}, 37_606_726),
        (
            {
                **{"in_channels": 1, "out_channels": 14, "roi_size": (64, 128, 128), "patch_size": (2, 4, 4)},
                **{"feature_size": 192, "num_heads": (6, 12, 24, 48)},
            },
            150_054_210,
        ),
        (
            {
                **{"in_channels": 1, "out_channels": 4, "roi_size": (14, 160, 160), "patch_size": (1, 4, 4)},
                **{"window": ((3, 5, 5), (3, 5, 5), (7, 10, 10), (3, 5, 5)), "wrap": True},
            },
            37_160_200,
        ),
    ],
    ids=["tumours", "organs", "hearts"],
)
def test_published_networks_have_as_many_parameters(options, published):
    with torch.device("meta"):
        network = NNFormer(**options)
    extra = 0 if options["out_channels"] == 14 else sum(p.numel() for p in network.heads[1:].parameters())
    assert sum(p.numel() for p in network.parameters()) - extra == published


def test_windows_shrink_to_the_planned_grid_and_are_then_not_shifted():
    with torch.device("meta"):
        network = NNFormer(1, 2, roi_size=(16, 64, 64), patch_size=(2, 4, 4), feature_size=24)
    found = [(stage.blocks[1].attn.window, stage.blocks[1].attn.shift) for stage in network.encoder]
    unshifted = (0, 0, 0)
    assert found == [
        *(((4, 4, 4), (2, 2, 2)), ((4, 4, 4), unshifted), ((2, 2, 2), unshifted), ((1, 1, 1), unshifted)),
    ]
    assert [stage.blocks[0].attn.shift for stage in network.decoder] == [unshifted, unshifted, (2, 2, 2)]


def test_an_axis_of_thick_slices_is_not_halved_at_first():
    with torch.device("meta"):
        network = NNFormer(1, 2, roi_size=(14, 64, 64), patch_size=(1, 4, 4), feature_size=24)
    assert network.strides == [[1, 2, 2], [2, 2, 2], [2, 2, 2]]


@pytest.mark.parametrize(("grid", "halved"), [((8, 6), (4, 3)), ((7, 6), (3, 3)), ((1, 2), (1, 1))])
def test_odd_grids_are_halved_downwards_and_seen_whole(grid, halved):
    layer = Halving(2, [2, 2] if grid[0] > 1 else [1, 2])
    x = torch.randn(1, *grid, 2, requires_grad=True)
    y = layer(x)
    assert y.shape == (1, *halved, 4)
    y.sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()


def test_deep_supervision_gives_every_scale_in_training_only():
    network = NNFormer(1, 3, deep_supervision=True, **SMALL)
    x = torch.randn(1, 1, 19, 16)
    assert [y.shape[2:] for y in network(x)] == [(19, 16), (10, 8)]
    network.eval()
    assert network(x).shape == (1, 3, 19, 16)


@pytest.mark.parametrize("size", [(24, 40), (72, 40), (20, 56)])
def test_scales_of_odd_grids_are_whole(size):
    network = NNFormer(
        1,
        3,
        deep_supervision=True,
        **(SMALL | {"depths": (2, 2, 2, 2), "num_heads": (1, 1, 1, 1), "window": (2, 2, 2, 2), "patch_size": (4, 4)}),
    )
    found = [y.shape[2:] for y in network(torch.randn(1, 1, *size))]
    assert found == [tuple(-(-n // 2**k) for n in size) for k in range(3)]


def test_a_thin_grid_is_halved_as_other_convolutions_are(monkeypatch):
    """Two tokens and a kernel of three: padded first, so that no image is thinner than the kernel."""
    layer = convolution.thin_in_float32(Halving(2, [2, 2]))
    seen = []
    monkeypatch.setattr(convolution, "_thin", lambda x, weight: seen.append(tuple(x.shape[2:])) or False)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(1, 2, 6, 2))
    assert seen == [(4, 8)]


def test_weights_without_deep_supervision_leave_its_heads_as_they_are(tmp_path, caplog):
    spec, _ = parity.fixture("nnformer_tumor_pad")
    network, _ = parity.network(spec)
    before = network.heads[1].weight.clone()
    torch.save({"state_dict": parity.weights(spec), "epoch": 3}, tmp_path / "model.model")
    report = load_weights(network, tmp_path / "model.model")
    assert report.layout == "nnformer"
    assert set(report.fresh) == {f"heads.{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert "heads.1.weight" in caplog.text
    assert torch.equal(network.heads[1].weight, before)


def test_tables_of_other_windows_are_refused(tmp_path):
    spec, _ = parity.fixture("nnformer_acdc_small")
    spec["config"]["window_size"][0] = [5, 3, 5]  # as many tokens, and as many rows, in another order
    network, _ = parity.network(spec)
    torch.save(parity.weights(spec), tmp_path / "model.pt")
    with pytest.raises(Refusal, match="belongs to other windows") as refused:
        load_weights(network, tmp_path / "model.pt")
    assert refused.value.code == "E-WEIGHTS-MISMATCH"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi_size": (16,), "patch_size": (2,)}, "2 or 3 elements"),
        ({"patch_size": (3, 2)}, "powers of two that divide"),
        ({"num_heads": (2, 2)}, "an element a stage"),
        ({"decoder_heads": (2, 2, 2)}, "decoder_heads must have 2 elements"),
        ({"num_heads": (3, 2, 2)}, "multiple of num_heads"),
        ({"attention_backend": "flash"}, "attention_backend must be one of"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        NNFormer(1, 2, **{**SMALL, **options})


@pytest.mark.parametrize("dims", [2, 3])
def test_at_the_start_the_decoder_hands_on_coarser_stages_undiminished(dims):
    torch.manual_seed(0)
    options = {"roi_size": [16] * dims, "patch_size": [2] * dims, "feature_size": 32, "window": (4, 2, 2)}
    network = NNFormer(1, 2, **{**SMALL, **options})
    for stage in network.decoder:
        coarse = torch.randn(1, stage.up.in_channels, *[4] * dims)
        assert stage.up(coarse).std().item() == pytest.approx(1, rel=0.1)
