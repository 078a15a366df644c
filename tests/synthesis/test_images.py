import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_attention.synthesis.images import ImageGenerator, look_up, rescale
from monai_attention.synthesis.randomness import Draw, gaussian_blur, smooth_field, stretched

EFFECTS = ("rotation_deg", "scaling", "shear", "elastic_mm", "bias_std", "noise_std", "gamma_std", "max_spacing_mm")
STILL = dict.fromkeys(EFFECTS, 0.0)


def _random(seed=0):
    return torch.Generator().manual_seed(seed)


def _blocks(size=24):
    """A label map of eight cubes with values 1 to 8."""
    half = torch.arange(size) * 2 // size
    return (1 + half[:, None, None] + 2 * half[None, :, None] + 4 * half[None, None, :]).to(torch.uint8)


def _draw(generator, labels=None, seed=0, classes=None, **options):
    labels = _blocks() if labels is None else labels
    options = {"spacing": (2.0, 2.0, 2.0), "centre": [(n - 1) / 2 for n in labels.shape], **options}
    classes = torch.arange(int(labels.max()) + 1) if classes is None else classes
    return generator(
        labels, options["spacing"], centre=options["centre"], intensity_class=classes, generator=_random(seed)
    )


def test_the_same_seed_gives_the_same_image_and_another_seed_another():
    generator = ImageGenerator((20, 18, 16))
    image, labels = _draw(generator)
    again, labels_again = _draw(generator)
    other, _ = _draw(generator, seed=1)
    assert torch.equal(image, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(image, other)
    assert image.shape == (1, 20, 18, 16)
    assert labels.shape == (20, 18, 16)
    assert image.min() >= 0
    assert image.max() <= 1


def test_with_all_effects_off_the_map_comes_back_up_to_a_mirror():
    labels = _blocks()
    seen = set()
    for seed in range(6):
        _, drawn = _draw(ImageGenerator((24, 24, 24), **STILL), labels, seed)
        seen.add(next(k for k, expected in enumerate((labels, labels.flip(0))) if torch.equal(drawn, expected)))
    assert seen == {0, 1}


def test_brightness_follows_the_labels_through_the_deformation():
    """Inside each region, away from its borders, the image is flat: image and target were deformed alike."""
    generator = ImageGenerator(
        (32, 32, 32), **{**STILL, "rotation_deg": 20, "scaling": 0.2, "elastic_mm": 4, "shear": 0.1}
    )
    image, drawn = _draw(generator, _blocks(40), seed=3)
    spreads = []
    for label in range(1, 9):
        inside = ndimage.binary_erosion((drawn == label).numpy(), iterations=3)
        if inside.sum() > 20:
            spreads.append((image[0].numpy()[inside].mean(), image[0].numpy()[inside].std()))
    assert len(spreads) > 4
    means, stds = np.array(spreads).T
    assert means.std() > 4 * np.median(stds)


def test_left_and_right_share_their_brightness():
    pairs = torch.tensor([0, 1, 2, 1, 2, 5, 6, 5, 6])  # label 3 looks like 1, 4 like 2, 7 like 5, 8 like 6
    for seed in range(3):
        image, drawn = _draw(ImageGenerator((24, 24, 24), **STILL), seed=seed, classes=pairs)
        means = [image[0][drawn == label].mean().item() for label in range(1, 9)]
        assert means[0] == pytest.approx(means[2], abs=0.05)
        assert means[5] == pytest.approx(means[7], abs=0.05)


def test_stripping_blackens_the_labels_outside_the_brain_only():
    generator = ImageGenerator((24, 24, 24), strip_probability=1.0, strip_labels=(1, 2), **STILL)
    image, drawn = _draw(generator)
    inner = torch.from_numpy(ndimage.binary_erosion(np.isin(drawn.numpy(), (1, 2)), iterations=2))
    assert image[0][inner].max() == 0
    assert image[0][drawn > 2].max() > 0


def test_slices_are_thick_along_one_axis_only():
    labels = (torch.rand(40, 40, 40, generator=_random()) > 0.5).to(torch.uint8)
    roughness = []
    for seed in range(30):
        image, _ = _draw(ImageGenerator((32, 32, 32), **{**STILL, "max_spacing_mm": 8.0}), labels, seed)
        roughness.append([image[0].diff(dim=axis).abs().mean().item() for axis in range(3)])
    ratio = np.min(roughness, axis=1) / np.median(roughness, axis=1)
    assert (ratio < 0.7).any()  # thick slices
    assert (ratio > 0.9).any()  # the same resolution along all axes


def test_where_nothing_may_be_coarser_nothing_is_blurred():
    """One class is white noise, and neighbours in it are alike only where it was blurred."""
    labels, blurred = torch.ones(24, 24, 24, dtype=torch.uint8), {}
    for mm in (0.0, 2.0, 8.0):
        generator = ImageGenerator((24, 24, 24), **{**STILL, "max_spacing_mm": mm}, spacing=2.0, supersampling=1)
        images = [_draw(generator, labels, seed)[0][0] for seed in range(4)]
        pairs = [torch.stack([image[1:].flatten(), image[:-1].flatten()]) for image in images]
        blurred[mm] = any(torch.corrcoef(pair)[0, 1] > 0.1 for pair in pairs)
    assert blurred == {0.0: False, 2.0: False, 8.0: True}


def test_the_deformation_does_not_fold():
    generator = ImageGenerator((40, 40, 40))
    for seed in range(10):
        draw = Draw(_random(seed))
        places = generator._sampling_grid(1, generator._affine(draw), generator._elastic(draw), (0, 0, 0))
        grid = torch.stack(places, -1)
        steps = [grid.diff(dim=axis)[:39, :39, :39] for axis in range(3)]
        assert (torch.stack(steps, -1).double().det() > 0).all()


def test_looking_up_takes_the_nearest_voxel_and_nothing_outside():
    labels = torch.arange(24).reshape(2, 3, 4)
    index = torch.tensor([[0.4, 0.6, 2.6], [1.0, 2.0, 3.0], [-0.6, 0, 0], [1, 3, 0], [1, 2, 4]])
    assert look_up(labels, list(index.T.clone())).tolist() == [7, 23, 0, 0, 0]


def test_blur_is_the_gaussian_filter():
    x = torch.rand(1, 2, 12, 13, 14)
    expected = np.stack(
        [ndimage.gaussian_filter(c, (1.0, 0, 2.0), mode="nearest", radius=(3, 0, 6)) for c in x[0].numpy()]
    )
    np.testing.assert_allclose(gaussian_blur(x, (1.0, 0.0, 2.0))[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("size", [(9, 4, 12), (3, 30, 7), (5, 6, 8)])
def test_stretching_is_trilinear_interpolation(size, corners):
    x = torch.rand(2, 3, 5, 6, 8, generator=_random())
    expected = torch.nn.functional.interpolate(x, size=size, mode="trilinear", align_corners=corners)
    torch.testing.assert_close(stretched(x, size, align_corners=corners), expected)


def test_rescaling_maps_percentiles_to_zero_and_one():
    x = torch.arange(1001.0)
    got = rescale(x, 10, 90)
    assert got[100].item() == pytest.approx(0, abs=1e-3)
    assert got[500].item() == pytest.approx(0.5, abs=1e-3)
    assert got[-1] == 1
    assert rescale(torch.ones(5)).tolist() == [0] * 5


def test_a_smooth_field_is_smooth_and_is_of_the_size_it_says():
    field = smooth_field(64, (5, 5, 5), (40, 40, 40), _random())
    assert field.std() == pytest.approx(0.43, abs=0.04)
    assert field.diff(dim=1).abs().max() < 0.5
