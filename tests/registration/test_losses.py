import itertools
import math
import warnings

import pytest
import torch
from monai.bundle import ConfigParser

from monai_attention.registration import local_correlation, mutual_information
from monai_attention.registration.fields import affine_to_ddf, identity
from monai_attention.registration.losses import (
    Bending,
    Diffusion,
    FoldPenalty,
    InverseConsistency,
    LocalCorrelation,
    LocalMutualInformation,
    Mind,
    MutualInformation,
)
from monai_attention.registration.self_similarity import mind_ssc

SIZES = [(11,), (6, 8), (5, 6, 4)]
SIMILARITIES = [LocalCorrelation(5), MutualInformation(8), LocalMutualInformation(6, 4), Mind(1, 1)]
FIELD_LOSSES = [Diffusion(), Bending(), FoldPenalty()]


def name(loss):
    return type(loss).__name__


def noise(*shape, seed=0, dtype=torch.double):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def blob(centre, size=(20, 22), width=3.0):
    grid = identity(size, like=torch.empty(0))
    return torch.exp(-sum((x - c) ** 2 for x, c in zip(grid, centre, strict=True)) / (2 * width**2))[None, None]


def some_mask(shape, seed=3):
    mask = noise(shape[0], 1, *shape[2:], seed=seed) > -0.7
    mask[:, :, 0] = False
    return mask


def with_gradients(loss, *tensors, **kwargs):
    tensors = [x.clone().requires_grad_() for x in tensors]
    value = loss(*tensors, **kwargs)
    return value, torch.autograd.grad(value, tensors)


def slow_squared_correlation(a, b, inside, kernel_size):
    """One window after the other."""
    floors = [
        1e-5 * x[inside].var(correction=0) + (8 * torch.finfo(torch.float32).eps * x[inside].mean()) ** 2
        for x in (a, b)
    ]
    total, r = 0.0, kernel_size // 2
    for centre in inside.nonzero().tolist():
        window = tuple(slice(max(0, i - r), i + r + 1) for i in centre)
        x, y = (image[window][inside[window]] for image in (a, b))
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        total += covariance**2 / ((x.var(correction=0) + floors[0]) * (y.var(correction=0) + floors[1]))
    return total / inside.sum()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_local_correlation_is_that_of_each_window(size, masked, monkeypatch):
    a, b = noise(2, 2, *size), noise(2, 2, *size, seed=1)
    b[0] += a[0]
    mask = some_mask(a.shape) if masked else None
    everywhere = torch.ones(2, 1, *size, dtype=torch.bool) if mask is None else mask
    terms = [
        slow_squared_correlation(a[i, c], b[i, c], everywhere[i, 0], 5)
        for i, c in itertools.product(range(2), range(2))
    ]
    expected = 1 - sum(terms) / 4
    for voxels in (1, 2**20):  # plane by plane, and all at once
        monkeypatch.setattr(local_correlation, "SLAB_VOXELS", voxels)
        torch.testing.assert_close(LocalCorrelation(5)(a, b, mask), expected)
        float32 = LocalCorrelation(5)(a.float() + 1000, b.float(), mask)
        torch.testing.assert_close(float32.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_similarities(size, masked, monkeypatch):
    monkeypatch.setattr(local_correlation, "SLAB_VOXELS", 80)
    monkeypatch.setattr(mutual_information, "PART_VOXELS", 40)
    a, b = noise(2, 1, *size).requires_grad_(), noise(2, 1, *size, seed=1).requires_grad_()
    mask = some_mask(a.shape) if masked else None
    ranges = {"warped_range": [-1.5, 2.0], "fixed_range": [-9.0, 9.0]}
    losses = [LocalCorrelation(3), MutualInformation(5, **ranges), LocalMutualInformation(4, 3, **ranges)]
    for loss in losses + ([Mind(1, 1)] if len(size) > 1 else []):
        assert torch.autograd.gradcheck(lambda x, y, loss=loss: loss(x, y, mask), (a, b), fast_mode=True), name(loss)
        one_sided = torch.autograd.grad(loss(a, b.detach(), mask), a)
        torch.testing.assert_close(one_sided, torch.autograd.grad(loss(a, b, mask), a))


def test_scaling_an_image_leaves_its_local_correlation():
    """Where most windows have so little contrast that it is about the 1e-5 of the image's that count as none."""
    a, b = 0.1 * noise(1, 1, 60), noise(1, 1, 60, seed=1)
    a[..., 45:] *= 1000
    _, (gradient, _) = with_gradients(LocalCorrelation(3), a, b)
    assert gradient.abs().sum() > 0.1
    assert (gradient * a).sum().abs() < 1e-7
    assert gradient.sum().abs() < 1e-7


def test_local_correlation_keeps_its_precision_next_to_bright_spots():
    """Sums of squares in float32 have errors larger than the variance of these windows."""
    a, b = (torch.randint(3, (1, 1, 6000), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for image in (a, b):
        image[..., 1000:1030] += 10000
    exact = with_gradients(LocalCorrelation(3), a.double(), b.double())
    for found, expected in zip(with_gradients(LocalCorrelation(3), a.float(), b.float()), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, check_dtype=False)


def test_an_offset_leaves_local_correlation_within_its_bounds():
    """MONAI's is -1.3e10 for the first of these, and below 0 for a constant image."""
    image = noise(1, 1, 12, 12, 12, dtype=torch.float32)
    loss, (gradient, _) = with_gradients(LocalCorrelation(), image + 1000, image)
    expected, (expected_gradient, _) = with_gradients(LocalCorrelation(), image, image)
    assert 0 <= expected < 1e-4
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_constant_image_tells_nothing(value):
    constant, image = torch.full((1, 1, 9, 9, 9), value), noise(1, 1, 9, 9, 9, dtype=torch.float32)
    rounded = constant * (1 + torch.finfo(torch.float32).eps * image.sign())  # as interpolation leaves it
    for loss, nothing in ((LocalCorrelation(3), 1.0), (MutualInformation(8), 0.0), (LocalMutualInformation(4, 4), 0.0)):
        for a, b in ((constant, constant), (constant, image), (rounded, rounded)):
            found, gradients = with_gradients(loss, a, b)
            assert abs(found - nothing) < 1e-3, name(loss)
            assert all(gradient.isfinite().all() for gradient in gradients)
    assert (mind_ssc(constant) == 1).all()
    assert all(gradient.isfinite().all() for gradient in with_gradients(Mind(), constant, image)[1])


@pytest.mark.parametrize("loss", SIMILARITIES[:3], ids=name)
def test_what_is_outside_of_the_mask_does_not_matter(loss):
    a, b = noise(2, 1, 9, 8, 7), noise(2, 1, 9, 8, 7, seed=1)
    mask = some_mask(a.shape)
    mask[1] = False  # nothing to compare there
    expected, gradients = with_gradients(loss, a, b, mask=mask)
    found, with_nan = with_gradients(loss, a.masked_fill(~mask, math.nan), b.masked_fill(~mask, 1e6), mask=mask.float())
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients, with_nan, strict=True):
        torch.testing.assert_close(one, other)
        assert one.masked_fill(~mask, 0).equal(one)
        assert one[0].any()


def test_the_mask_of_mind_says_where_it_is_compared():
    a, b = noise(1, 1, 9, 8), noise(1, 1, 9, 8, seed=1)
    mask = some_mask(a.shape)
    expected = (mind_ssc(a) - mind_ssc(b))[mask.expand(1, 4, 9, 8)].square().mean()
    torch.testing.assert_close(Mind()(a, b, mask), expected)


def slow_information(a, b, bins, ranges=(None, None)):
    """With a dense matrix voxels x bins for each image."""
    windows = []
    for values, given in zip((a, b), ranges, strict=True):
        low, high = given or (values.min(), values.max())
        place = ((values - low) / (high - low) * (bins - 1)).clamp(0, bins - 1)
        windows.append((1 - (place[:, None] - torch.arange(bins)).abs()).clamp(min=0))
    joint = windows[0].T @ windows[1] / len(a)
    return torch.special.xlogy(joint, joint / (joint.sum(1, keepdim=True) * joint.sum(0))).nan_to_num().sum()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_mutual_information_is_that_of_the_dense_histogram(size, masked, monkeypatch):
    monkeypatch.setattr(mutual_information, "PART_VOXELS", 7)
    a, b = noise(2, 2, *size), noise(2, 2, *size, seed=1)
    b[0] += a[0]
    mask = some_mask(a.shape) if masked else torch.ones(2, 1, *size, dtype=torch.bool)
    for ranges in ((None, None), ([-1.0, 2.0], None)):
        pairs = [(a[i, c][mask[i, 0]], b[i, c][mask[i, 0]]) for i, c in itertools.product(range(2), range(2))]
        expected = -sum(slow_information(x, y, 6, ranges) for x, y in pairs) / 4
        found = MutualInformation(6, *ranges)(a, b, mask if masked else None)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        float32 = MutualInformation(6, *ranges)(a.float(), 1000 - 10 * b.float(), mask if masked else None)
        torch.testing.assert_close(float32.double(), expected, rtol=0, atol=1e-3)


def test_mutual_information_of_few_grey_levels_is_their_entropy():
    levels = torch.tensor([0.0, 1, 2, 2, 3, 3, 3, 3]).repeat(8).view(1, 1, 8, 8)
    shares = [1 / 8, 1 / 8, 1 / 4, 1 / 2]
    entropy = -sum(p * math.log(p) for p in shares)
    relabelled = torch.tensor([70.0, -20, 100, 10])[levels.long()]
    assert MutualInformation(4)(levels, levels).item() == pytest.approx(-entropy)
    assert MutualInformation(13)(relabelled, levels).item() == pytest.approx(-entropy)
    assert MutualInformation(4)(levels, levels.mT).item() == pytest.approx(0, abs=1e-6)  # independent


def test_samples_are_voxels_and_the_same_at_each_call():
    a = noise(1, 1, 30, 30, 30, dtype=torch.float32)
    b = a + 0.5 * noise(1, 1, 30, 30, 30, seed=1, dtype=torch.float32)
    every, some = MutualInformation(8, [-3, 3], [-3, 3]), MutualInformation(8, [-3, 3], [-3, 3], samples=5000)
    value, (gradient, _) = with_gradients(some, a, b)
    assert value == some(a, b)
    assert value != MutualInformation(8, [-3, 3], [-3, 3], samples=5000, seed=1)(a, b)
    torch.testing.assert_close(value, every(a, b), rtol=0.1, atol=0)
    assert 4000 < (gradient != 0).sum() <= 5000
    half = torch.ones_like(a)
    half[:, :, :15] = 0
    _, (gradient, _) = with_gradients(some, a, b, mask=half)
    assert not gradient[:, :, :15].any()
    assert gradient[:, :, 15:].any()


def test_local_mutual_information_is_that_of_patches_by_their_voxels():
    a, b = noise(1, 1, 7, 9), noise(1, 1, 7, 9, seed=1)
    ranges = [-4.0, 4.0], [-3.0, 3.0]
    mask = some_mask(a.shape)
    for inside in (torch.ones_like(mask), mask):
        total = 0.0
        for rows, columns in itertools.product((slice(0, 4), slice(4, 7)), (slice(0, 4), slice(4, 8), slice(8, 9))):
            x, y, here = (image[0, 0, rows, columns] for image in (a, b, inside))
            if here.any():
                total -= here.sum() * slow_information(x[here], y[here], 3, ranges)
        found = LocalMutualInformation(4, 3, *ranges)(a, b, None if inside.all() else mask)
        torch.testing.assert_close(found, total / inside.sum(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [(6, 8), (3, 4, 3)])
def test_mind_compares_patches_of_neighbours_at_right_angles(size):
    image, n = noise(1, 1, *size), len(size)
    radius, dilation = 1, 2

    def at(place, limits=size):
        return [min(max(i, 0), m - 1) for i, m in zip(place, limits, strict=True)]

    steps = [(axis, sign * dilation) for axis in range(n) for sign in (-1, 1)]
    pairs = [(p, q) for p, q in itertools.combinations(steps, 2) if p[0] != q[0]]
    patch = list(itertools.product(range(-radius, radius + 1), repeat=n))
    found = torch.empty(len(pairs), *size, dtype=torch.double)
    for k, pair in enumerate(pairs):
        for voxel in itertools.product(*map(range, size)):
            squares = []
            for offset in patch:
                middle = at([i + o for i, o in zip(voxel, offset, strict=True)])
                ends = []
                for axis, step in pair:
                    end = list(middle)
                    end[axis] += step
                    ends.append(image[0, 0][tuple(at(end))])
                squares.append((ends[0] - ends[1]) ** 2)
            found[(k, *voxel)] = sum(squares) / len(squares)
    found -= found.amin(0)
    scale = found.mean(0)
    expected = torch.exp(-found / scale.clamp(1e-3 * scale.mean(), 1e3 * scale.mean()))
    torch.testing.assert_close(mind_ssc(image, radius, dilation)[0], expected)
    assert len(pairs) == 2 * n * (n - 1)


def test_the_gradient_of_mind_where_almost_nothing_is():
    a, b = noise(1, 1, 9, 9), noise(1, 1, 9, 9, seed=1)
    a[..., 3:] *= 0.01  # less than the least that counts
    assert torch.autograd.gradcheck(Mind(1, 1), (a.requires_grad_(), b.requires_grad_()), atol=1e-7, fast_mode=True)


def test_mind_is_blind_to_contrast():
    image = noise(1, 2, 10, 11, 9)
    for a, b in ((0.01, 5.0), (-300.0, 1000.0)):
        torch.testing.assert_close(mind_ssc(a * image + b), mind_ssc(image))
    assert (mind_ssc(image**3) - mind_ssc(image)).abs().max() > 0.1


@pytest.mark.parametrize("loss", SIMILARITIES, ids=name)
@pytest.mark.parametrize("inverted", [False, True])
def test_the_loss_falls_as_images_come_together(loss, inverted):
    fixed = blob((10, 11)) + 0.5 * blob((6, 14), width=1.5)
    fixed = 1 - fixed if inverted else fixed
    start = [blob((10 + shift, 11)) + 0.5 * blob((6 + shift, 14), width=1.5) for shift in (0, 0.5, 1, 2, 3)]
    values = [float(loss(moving, fixed)) for moving in start]
    assert values == sorted(values)
    assert values[0] < values[1] - 1e-4
    shift = torch.tensor(1.0, requires_grad=True)
    loss(blob((10 + shift, 11)) + 0.5 * blob((6 + shift, 14), width=1.5), fixed).backward()
    assert shift.grad > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", SIMILARITIES, ids=name)
def test_half_precision_and_autocast_change_nothing_but_the_images(loss, dtype):
    """MONAI's mutual information is -inf under autocast."""
    a, b = noise(1, 1, 12, 12, dtype=dtype) + 4, noise(1, 1, 12, 12, seed=1, dtype=dtype)
    expected, gradients = with_gradients(loss, a.float(), b.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, halves = with_gradients(loss, a, b)
    assert found.dtype == torch.float32
    assert found == expected
    for one, other in zip(gradients, halves, strict=True):
        assert other.equal(one.to(dtype))


def quadratic(size):
    """Component 0 is x0^2, component 1 is x0 * x1, others are 0."""
    x = identity(size, like=torch.empty(0, dtype=torch.double))
    ddf = torch.zeros_like(x)[None]
    ddf[0, 0] = x[0] ** 2
    ddf[0, 1] = x[0] * x[1]
    return ddf


def test_roughness_in_closed_form():
    size = (5, 6, 7)
    matrix = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1).double()[None]
    matrix[0, :, :3] += noise(3, 3)
    affine = affine_to_ddf(matrix, size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # MONAI's warn at each call
        torch.testing.assert_close(Diffusion()(affine), noise(3, 3).square().mean())
        torch.testing.assert_close(Bending()(affine), torch.zeros((), dtype=torch.double))
        # d00 of component 0 is 2, d01 and d10 of component 1 are 1, of 3 components and 9 pairs of axes
        torch.testing.assert_close(Bending()(quadratic(size)), torch.tensor((2**2 + 1 + 1) / 27).double())
    alternating = torch.tensor([1.0, -1] * 4)[None, None]
    assert Diffusion()(alternating) == 4
    assert Bending()(alternating) == 16


def test_folds_and_inconsistency_in_closed_form():
    mirror = affine_to_ddf(torch.diag(torch.tensor([-2.0, 1, 1]))[None], (6, 6))
    assert FoldPenalty()(mirror).item() == pytest.approx(2)
    assert FoldPenalty()(affine_to_ddf(torch.diag(torch.tensor([0.1, 3.0, 1]))[None], (6, 6))) == 0
    there, back = torch.full((1, 2, 8, 8), 1.5), torch.full((1, 2, 8, 8), -1.5)
    assert InverseConsistency()(there, back) == 0
    assert InverseConsistency()(there, -2 * there).item() == pytest.approx(2 * 1.5**2)
    # A step back, but from the border, and from there half the way to 0.
    half, step = affine_to_ddf(torch.tensor([[[0.5, 0]]]), (9,)), torch.full((1, 1, 9), -1.0)
    off = [1.0] + [(x + 1) / 2 for x in range(1, 9)]
    assert InverseConsistency()(half, step).item() == pytest.approx(sum(x**2 for x in off) / 9)


def test_gradients_of_field_losses():
    ddf, other = ((0.8 * noise(1, 2, 4, 5, seed=seed)).requires_grad_() for seed in (0, 1))
    for loss in FIELD_LOSSES:
        assert torch.autograd.gradcheck(loss, (ddf,), fast_mode=True)
    assert FoldPenalty()(ddf) > 0
    assert torch.autograd.gradcheck(InverseConsistency(), (ddf, other), fast_mode=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = ddf.detach().bfloat16()
        for found, exact in [(loss(half), loss(half.double())) for loss in FIELD_LOSSES]:
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_config_makes_them():
    module = "monai_attention.registration.losses"
    arguments = {
        "LocalCorrelation": {"kernel_size": 7},
        "MutualInformation": {"bins": 16, "warped_range": [0, 1], "samples": 1000},
        "LocalMutualInformation": {"patch_size": 8},
        "Mind": {"radius": 1, "dilation": 3},
        **{name: {} for name in ("Diffusion", "Bending", "FoldPenalty", "InverseConsistency")},
    }
    parser = ConfigParser({key: {"_target_": f"{module}.{key}", **value} for key, value in arguments.items()})
    assert all(isinstance(parser.get_parsed_content(key), torch.nn.Module) for key in arguments)


def test_what_does_not_fit_is_refused():
    image, ddf = torch.zeros(1, 1, 5, 5), torch.zeros(1, 2, 5, 5)
    for loss in SIMILARITIES:
        with pytest.raises(ValueError, match=r"one shape .* got \(1, 1, 5, 5\) and \(1, 1, 5, 6\)"):
            loss(image, torch.zeros(1, 1, 5, 6))
        with pytest.raises(ValueError, match=r"mask of shape \(1, 1, 5, 5\).* got \(5, 5\)"):
            loss(image, image, torch.zeros(5, 5))
    for loss, least in zip(FIELD_LOSSES, (2, 3, 2), strict=True):
        with pytest.raises(ValueError, match=r"n axes in S"):
            loss(torch.zeros(1, 3, 5, 5))
        with pytest.raises(ValueError, match=rf"at least {least} voxels; got \(1, 2, 5, {least - 1}\)"):
            loss(ddf[..., : least - 1])
        assert loss(ddf[..., :least]) == 0
    with pytest.raises(ValueError, match="of one shape"):
        InverseConsistency()(ddf, ddf[..., 1:])
    with pytest.raises(ValueError, match="two or three axes"):
        mind_ssc(torch.zeros(1, 1, 5))
    for make, message in (
        (lambda: LocalCorrelation(4), "odd"),
        (lambda: MutualInformation(1), "bins must be at least 2"),
        (lambda: MutualInformation(samples=0), "samples must be at least 1"),
        (lambda: MutualInformation(fixed_range=[1, 0]), "the first below the second"),
        (lambda: LocalMutualInformation(1), "patch_size must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
