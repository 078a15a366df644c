import logging
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from torch import nn

from monai_attention.inference import sliding_window as module
from monai_attention.inference.sliding_window import StreamingInferer, assembled, settings_of, stream
from monai_attention.inference.uncertainty import disagreement
from monai_attention.inference.windows import Background, WindowSettings


def two_classes(windows, *_):
    """Depends on the place within the window, so that blending matters."""
    ramp = torch.linspace(0, 1, windows[0, 0].numel()).view(windows.shape[2:])
    return torch.cat([windows[:, :1] + ramp, windows[:, :1] * (2 - ramp)], dim=1)


@st.composite
def tasks(draw):
    dims = draw(st.integers(1, 3))
    size = draw(st.tuples(*[st.integers(1, 17)] * dims))
    roi = draw(st.tuples(*[st.integers(1, 9)] * dims))
    overlap = draw(st.tuples(*[st.sampled_from([0, 0.25, 0.5, 0.8])] * dims))
    mode = draw(st.sampled_from(["constant", "gaussian"]))
    return size, roi, overlap, mode, draw(st.integers(1, 5))


@settings(max_examples=60, deadline=None)
@given(tasks(), st.sampled_from([0, 1e9]))
def test_it_equals_monai(task, sum_bytes):
    size, roi, overlap, mode, batch = task
    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    expected = sliding_window_inference(image[None], roi, batch, two_classes, overlap=overlap, mode=mode)[0]
    choices = WindowSettings(roi, batch, overlap, mode, sum_bytes=sum_bytes)
    result = torch.full_like(expected, torch.nan)
    for (piece,) in stream(image, lambda windows, _: [two_classes(windows)], choices):
        assert result[(slice(None), *piece.box)].isnan().all()  # nothing is handed out twice
        result[(slice(None), *piece.box)] = piece.values
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_row_29_only_the_overlap_of_two_rows_is_held(monkeypatch):
    made = []

    class Recorded(module.BlendedSum):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append([self.row.numel(), self.carry.numel()])

    monkeypatch.setattr(module, "BlendedSum", Recorded)
    for length in (40, 400):
        list(stream(torch.zeros(1, 20, length, 24), lambda w, _: [w], WindowSettings(8, overlap=0.5, sum_bytes=0)))
    assert made == [[2 * 4 * 8 * 20, 2 * 4 * 24 * 20]] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float32(dtype):
    """MONAI sums in the image's type: of an identity in bfloat16, a tenth is lost."""
    image = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    inferer = StreamingInferer((16, 16), 4, overlap=0.75, mode="gaussian")
    result = inferer(image, nn.Identity())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, image.float(), rtol=1e-6, atol=1e-6)


def test_whole_numbers_are_an_image_too():
    """MONAI raises."""
    image = torch.arange(400, dtype=torch.int16).view(1, 1, 20, 20)
    result = StreamingInferer((8, 8), 4, mode="gaussian")(image, lambda x: x.float())
    torch.testing.assert_close(result, image.float())


def test_neither_the_image_nor_the_networks_output_is_written_to():
    """With MONAI, an identity at one window a time corrupts the caller's image."""
    image = torch.rand(1, 1, 20, 20)
    given_, kept = image.clone(), []

    def network(windows):
        kept.append((windows, windows.clone()))
        return windows

    StreamingInferer((8, 8), 1, mode="gaussian")(image, network)
    assert torch.equal(image, given_)
    assert all(torch.equal(output, before) for output, before in kept)


@pytest.mark.parametrize("buffer_steps", [None, 2])
def test_all_outputs_come_back_in_their_structure(buffer_steps):
    """MONAI's buffered form drops all but the first."""
    image = torch.rand(2, 1, 20, 20)

    def network(windows):
        return {"a": windows, "b": (torch.cat([windows] * 3, dim=1), -windows)}

    result = StreamingInferer((8, 8), 3, buffer_steps=buffer_steps)(image, network)
    torch.testing.assert_close(result["a"], image)
    torch.testing.assert_close(result["b"][0], image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(result["b"][1], -image)


def test_many_overlaps_are_counted():
    """MONAI's mergers count in eight bits: 256 overlaps divide by zero."""
    image = torch.rand(1, 1, 300)
    torch.testing.assert_close(StreamingInferer((280,), 8, overlap=0.999)(image, nn.Identity()), image)


def test_it_stands_in_for_monais_with_its_arguments():
    image = MetaTensor(torch.rand(1, 1, 24, 20, 12), affine=torch.diag(torch.tensor([1.0, 2, 3, 1])))
    arguments = {"roi_size": (8, 8, -1), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.2}
    ours, monais = (
        make(**arguments, with_coord=True)(image, lambda x, where, k: x * k + where[0][2].start, 2)
        for make in (StreamingInferer, SlidingWindowInferer)
    )
    torch.testing.assert_close(ours, monais, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.affine, image.affine)


def test_what_monais_inferer_was_told_is_kept():
    inferer = SlidingWindowInferer((8, 9), 3, 0.5, "gaussian", 0.2, "replicate", 7.0, device="cpu")
    assert settings_of(inferer) == WindowSettings((8, 9), 3, 0.5, "gaussian", 0.2, "replicate", 7.0, sum_device="cpu")


def test_outputs_of_another_size_than_windows_are_refused():
    with pytest.raises(ValueError, match=r"2 windows of \(8, 8\) voxels, got shape \(2, 1, 4, 4\)"):
        StreamingInferer((8, 8), 2)(torch.rand(1, 1, 8, 20), nn.AvgPool2d(2))


def test_mirrored_windows_are_averaged():
    image = torch.randn(1, 1, 12, 10)
    weights = torch.randn(1, 1, 3, 3)

    def network(x):
        return torch.nn.functional.conv2d(x, weights, padding=1)

    result = StreamingInferer((12, 10), mirror_axes=(0, 1))(image, network)
    flips = ([], [2], [3], [2, 3])
    expected = sum(network(image.flip(f)).flip(f) for f in flips) / 4
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("axes", [(0, 1), ()])
def test_how_much_mirrored_windows_disagree(axes):
    image = torch.randn(1, 12, 10)
    choices = WindowSettings((12, 10), mirror_axes=axes, disagreement=True)
    logits, found = assembled(stream(image, lambda windows, _: [two_classes(windows)], choices))
    flips = ([], [2], [3], [2, 3]) if axes else ([],)
    each = [two_classes(image[None].flip(f)).flip(f)[0] for f in flips]
    torch.testing.assert_close(logits, sum(each) / len(each))
    torch.testing.assert_close(found[0], disagreement([one.softmax(dim=0) for one in each], 0))
    assert (found.max() > 0.01) == bool(axes)


def test_where_no_window_is_computed_none_disagree():
    image = torch.zeros(1, 8, 32)
    image[:, :, 20:] = 1
    choices = WindowSettings(8, overlap=0, mirror_axes=(0,), disagreement=True, background=Background(0.5))
    logits, found = assembled(stream(image, lambda windows, _: [two_classes(windows)], choices))
    assert (logits[0, :, :16] == 20).all()
    assert (found[0, :, :16] == 0).all()
    assert found[0, :, 16:].max() > 0.01


@pytest.mark.parametrize("room", [4, 1])
def test_several_predictors_share_the_windows(room):
    image = torch.randn(1, 8, 80)
    networks = [Forgetful(4, MemoryError()), Forgetful(room, MemoryError()), Forgetful(4, MemoryError())]
    grads = []

    def predict(network):
        return lambda windows, _: grads.append(torch.is_grad_enabled()) or [network(windows)]

    choices = WindowSettings(8, 2, 0)
    (result,) = assembled(stream(image, [predict(network) for network in networks], choices))
    torch.testing.assert_close(result[None], sliding_window_inference(image[None], (8, 8), 1, two_classes, overlap=0))
    computed = [sum(n for n in network.sizes if n <= network.room) for network in networks]
    assert min(computed) >= 2
    if room == 4:
        assert computed == [4, 4, 2]  # ten windows, two at a time, by turns
    assert not any(grads)


def test_the_network_may_compute_in_bfloat16():
    layer, image = nn.Conv2d(1, 2, 3, padding=1), torch.randn(1, 1, 20, 20)
    seen = []
    result = StreamingInferer((8, 8), 4, bfloat16=True)(image, lambda x: seen.append(layer(x)) or seen[-1])
    assert seen[0].dtype == torch.bfloat16
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, StreamingInferer((8, 8), 4)(image, layer), rtol=0.02, atol=0.02)


def test_the_callers_autocast_stays_on():
    layer, seen = nn.Conv2d(1, 2, 3, padding=1), []
    with torch.autocast("cpu", torch.bfloat16):
        StreamingInferer((8, 8), 4)(torch.randn(1, 1, 20, 20), lambda x: seen.append(layer(x)) or seen[-1])
    assert seen[0].dtype == torch.bfloat16


def test_outputs_are_kept_no_longer_than_needed():
    alive, made = [], []

    def network(windows, _):
        alive.append(sum(reference() is not None for reference in made))
        output = windows + 1
        made.append(weakref.ref(output))
        return [output]

    list(stream(torch.zeros(1, 8, 80), network, WindowSettings(8, 2, 0)))
    assert alive == [0] * 5


def test_what_monais_inferer_takes_when_it_is_called():
    image = torch.randn(1, 1, 20, 20)
    result = StreamingInferer((8, 8), 4)(image, nn.Identity(), device="cpu", buffer_steps=2, buffer_dim=0)
    torch.testing.assert_close(result, image)
    with pytest.raises(ValueError, match="condition is not supported"):
        StreamingInferer((8, 8), 4)(image, nn.Identity(), condition=image)


def test_windows_of_background_are_not_computed():
    image = torch.zeros(1, 1, 16, 48)
    image[..., 20:28] = 1
    seen = []

    def network(windows):
        seen.append(len(windows))
        return torch.cat([windows, windows + 3], dim=1)

    blank = Background(0.5)
    result = StreamingInferer((16, 8), 4, overlap=0, background=blank)(image, network)
    assert seen == [2]
    assert torch.equal(result[0, :, 0, 10], torch.tensor([20.0, -20.0]))
    assert torch.equal(result[0, :, 0, 20], torch.tensor([1.0, 4.0]))
    seen.clear()
    StreamingInferer((16, 8), 4, overlap=0, background=Background(0.5, margin=5))(image, network)
    assert seen == [4]
    StreamingInferer((16, 8), 4, overlap=0, background=Background(2.0))(image, network)
    assert seen == [4, 1]  # of a window of background, to see what outputs are


class Forgetful:
    """A network with room for a few windows only."""

    def __init__(self, room, error):
        self.room = room
        self.error = error
        self.sizes = []

    def __call__(self, windows):
        self.sizes.append(len(windows))
        if len(windows) > self.room:
            raise self.error
        return two_classes(windows)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_row_54_out_of_memory_goes_on_with_fewer_windows_where_it_stopped(error, caplog):
    image = torch.randn(1, 1, 8, 80)
    network = Forgetful(2, error)
    with caplog.at_level(logging.WARNING):
        result = StreamingInferer((8, 8), 7, overlap=0)(image, network)
    torch.testing.assert_close(result, sliding_window_inference(image, (8, 8), 1, two_classes, overlap=0))
    assert network.sizes == [7, 3] + [1] * 10
    assert "going on with 1 windows at a time" in caplog.text


def test_not_even_room_for_one_window():
    with pytest.raises(MemoryError, match="single window"):
        StreamingInferer((8, 8), 4)(torch.randn(1, 1, 8, 80), Forgetful(0, torch.OutOfMemoryError()))


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        StreamingInferer((8, 8), 4)(torch.randn(1, 1, 8, 80), Forgetful(0, RuntimeError("shapes")))
