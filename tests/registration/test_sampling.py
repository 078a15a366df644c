import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_attention.registration.sampling import sample

SIZES = [(9,), (7, 8), (5, 6, 7)]


def image_and_places(size, *, batch=2, channels=3, beyond=1.5):
    """Noise, and places in and a little around it, on a grid of another size."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, channels, *size, generator=generator, dtype=torch.double)
    grid = [n + 3 for n in size]
    unit = torch.rand(batch, len(size), *grid, generator=generator, dtype=torch.double)
    ends = torch.tensor(size, dtype=torch.double).view(-1, *[1] * len(size))
    return image, unit * (ends - 1 + 2 * beyond) - beyond


def by_scipy(image, places, order, mode):
    """One channel at a time; `grid-constant` has zeros beyond the edge to interpolate with."""
    result = [
        [ndimage.map_coordinates(channel, where, order=order, mode=mode) for channel in one]
        for one, where in zip(image.numpy(), places.numpy(), strict=True)
    ]
    return torch.from_numpy(np.array(result))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("padding", "theirs"), [("zeros", "grid-constant"), ("border", "nearest")])
def test_linear_and_nearest_are_scipys(size, padding, theirs, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for mode, order in (("linear", 1), ("nearest", 0)):
        image, places = image_and_places(size)
        torch.testing.assert_close(
            sample(image, places, mode=mode, padding=padding), by_scipy(image, places, order, theirs)
        )


@pytest.mark.parametrize("size", SIZES)
def test_cubic_reproduces_polynomials_of_the_second_degree(size):
    grid = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.double) for n in size], indexing="ij"))

    def polynomial(x):
        total = 2.0 + x.sum(dim=0)
        for i in range(len(size)):
            total = total + 0.3 * x[i] * x[i - 1]
        return total

    _, places = image_and_places(size, batch=1, beyond=-1.0)  # where all four neighbours are
    found = sample(polynomial(grid)[None, None], places, mode="cubic")
    torch.testing.assert_close(found[0, 0], polynomial(places[0]))


def test_cubic_is_keys_along_each_axis():
    line = torch.tensor([0.0, 0, 1, 0, 0, 0], dtype=torch.double)
    x = torch.linspace(-1, 6, 141, dtype=torch.double)
    far = (x - 2).abs()
    near = 1.5 * far**3 - 2.5 * far**2 + 1
    wide = -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2
    expected = torch.where(far <= 1, near, torch.where(far < 2, wide, 0.0))
    torch.testing.assert_close(sample(line[None, None], x[None, None], mode="cubic")[0, 0], expected)


def test_parts_of_cubic_interpolation_are_the_whole(monkeypatch):
    image, places = image_and_places((5, 6, 7))
    whole = sample(image, places, mode="cubic", padding="border")
    monkeypatch.setattr("monai_attention.registration.parts.PART_VOXELS", 1)
    assert torch.equal(sample(image, places, mode="cubic", padding="border"), whole)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_gradients(size, mode, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    small = tuple(min(n, 4) for n in size)
    image, places = image_and_places(small, batch=1, channels=1)
    places = places.floor() + 0.1 + 0.8 * (places - places.floor())  # linear interpolation has kinks at voxels
    image.requires_grad_()
    places.requires_grad_()
    assert torch.autograd.gradcheck(lambda i, p: sample(i, p, mode=mode), (image, places))


def test_labels_keep_their_dtype_and_half_precision_does_not_round_places():
    labels = torch.arange(300, dtype=torch.int16)[None, None]
    places = torch.tensor([[[255.0, 257.0, 299.0, 299.6]]])
    assert sample(labels, places, mode="nearest").tolist() == [[[255, 257, 299, 0]]]
    found = sample(labels.to(torch.bfloat16), places + 0.25)
    assert found.dtype == torch.float32
    exact = sample(labels.double(), places.double()).float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sample(labels.float(), places), exact, rtol=1e-4, atol=0)


def test_what_does_not_fit_is_refused():
    image, places = image_and_places((5, 6))
    with pytest.raises(ValueError, match="mode must be one of"):
        sample(image, places, mode="sinc")
    with pytest.raises(ValueError, match=r"coordinates must have shape \(2, 2, ...\)"):
        sample(image, places[:, :1])
