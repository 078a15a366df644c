"""Labels from windows are what the logits of all windows say, and so is the Dice that is counted from them."""

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import MeanDice, from_engine
from monai.inferers import SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.networks.utils import one_hot

from monai_attention.inference.label_inferer import LabelInferer
from monai_attention.inference.sliding_window import StreamingInferer

WINDOWS = {"roi_size": (8, 7, 6), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian", "padding_mode": "reflect"}
SIZE = (17, 14, 5)


class Own(SlidingWindowInferer):
    """One that means something else by its windows."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs).flip(1)


def network(windows, offset=0.0):
    """Four classes; depends on the place within the window, so that overlap and blending matter. Never class 3."""
    ramp = torch.linspace(-1, 1, windows[0, 0].numel()).view(windows.shape[2:]).to(windows)
    none = torch.full_like(windows, -1e3)
    return torch.cat([windows + offset, windows * (2 - ramp), ramp.expand_as(windows), none], dim=1)


@pytest.fixture
def images():
    return torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [SlidingWindowInferer, SlidingWindowInfererAdapt, StreamingInferer, Own])
def test_labels_are_those_of_whole_logits(kind, images):
    reference = kind if kind is Own else SlidingWindowInferer
    expected = reference(**WINDOWS)(images, network, 0.1).argmax(dim=1, keepdim=True)
    found = LabelInferer(kind(**WINDOWS))(images, network, offset=0.1)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), expected)
    assert set(found.unique().tolist()) == ({1, 2, 3} if kind is Own else {0, 1, 2})


def test_logits_of_all_voxels_are_never_there(images, monkeypatch):
    monkeypatch.setattr(SlidingWindowInferer, "__call__", None)
    most = 0

    def watched(windows):
        nonlocal most
        most = max(most, len(windows))
        return network(windows)

    LabelInferer(SlidingWindowInferer(**WINDOWS))(images, watched)
    assert most == 3


def test_it_computes_in_bfloat16_where_the_bundle_says_so(images):
    dtypes = []

    def watched(windows):
        dtypes.append(torch.nn.functional.linear(windows, windows.new_ones(6, 6)).dtype)
        return network(windows)

    for bfloat16 in (True, False):
        LabelInferer(StreamingInferer(**WINDOWS, bfloat16=bfloat16))(images, watched)
    assert set(dtypes[: len(dtypes) // 2]) == {torch.bfloat16}
    assert set(dtypes[len(dtypes) // 2 :]) == {torch.float32}


def dice(pairs, **options):
    """Mean Dice, and that of each case and class, by MONAI's handler."""
    engine = Engine(lambda _, pair: [{"pred": pair[0], "label": pair[1]}])
    transform = from_engine(["pred", "label"])
    MeanDice(include_background=False, output_transform=transform, **options).attach(engine, "dice")
    engine.run(pairs)
    return engine.state.metrics["dice"], engine.state.metric_details["dice"]


def test_dice_of_label_maps_is_that_of_a_channel_a_class(images):
    truth = torch.randint(0, 3, (2, 1, *SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    truth[1][truth[1] == 2] = 3  # which is in one case only and never found; 2 is found where it is not
    found = LabelInferer(SlidingWindowInferer(**WINDOWS))(images, network)
    pairs = list(zip(found, truth, strict=True))
    mean, details = dice(pairs, num_classes=4)
    old = [[one_hot(one[None].long(), 4)[0] for one in pair] for pair in pairs]
    expected, expected_details = dice(old)
    torch.testing.assert_close(details, expected_details, rtol=0, atol=1e-6, equal_nan=True)
    assert details.isnan().tolist() == [[False, False, True], [False, True, False]]
    assert mean == pytest.approx(expected, abs=1e-6)
    assert 0 < mean < 1
