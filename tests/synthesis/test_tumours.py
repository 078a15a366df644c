import math

import nibabel
import numpy as np
import pytest
import torch

from monai_attention.synthesis.dataset import LabelMapDataset
from monai_attention.synthesis.images import ImageGenerator
from monai_attention.synthesis.randomness import Draw
from monai_attention.synthesis.tumours import CORE, ENHANCING, OEDEMA, Soil, Tumour, draw_tumour

AXES = [torch.arange(40.0) - 19.5] * 3
OUTSIDE, FLUID, GREY, WHITE = range(4)
SOIL = Soil(torch.tensor([WHITE]), torch.tensor([-1.0, 0, 0.5, 1, 0, 0, 0]), (4, 5, 6))


def tumour(**options):
    plain = {"centre": torch.tensor([0.5, 0.5, 0.5]), "radius_mm": 8.0, "necrosis": 0.5, "oedema_mm": 6.0, "mass": 0.3}
    return Tumour(**{**plain, "waves": torch.zeros(2, 10, 10, 10), **options})


def distance():
    return torch.stack(torch.meshgrid(*[a - 0.5 for a in AXES], indexing="ij")).norm(dim=0)


def test_the_brain_is_pushed_out_by_the_volume_that_was_put_in():
    """What is seen at distance d came from d' with d^3 - d'^3 = mass R^3, in the same direction."""
    moved = tumour().pushed(AXES)
    d = distance()
    before = (torch.stack(torch.meshgrid(*[a - 0.5 for a in AXES], indexing="ij")) + moved).norm(dim=0)
    away = d > 6
    torch.testing.assert_close((d**3 - before**3)[away], torch.full_like(d[away], 0.3 * 8**3), rtol=0.01, atol=0.1)
    jacobian = torch.stack([torch.stack(torch.gradient(m)) for m in moved]) + torch.eye(3)[:, :, None, None, None]
    inner = (slice(2, -2),) * 3
    determinant = torch.linalg.det(jacobian.movedim((0, 1), (-2, -1)))[inner]
    assert (determinant - 1)[d[inner] > 10].abs().max() < 0.03


def test_what_grows_where():
    labels = torch.full((40, 40, 40), WHITE)
    labels[:10], labels[10:15], labels[:, :, :12] = GREY, FLUID, OUTSIDE
    given = labels.clone()
    grown = tumour(oedema_mm=9.0).grown(labels, AXES, SOIL)
    assert torch.equal(labels, given)
    d, inside = distance(), given != OUTSIDE
    reach = SOIL.reach[given]
    expected = torch.where(inside & (reach > 0) & (d < 8 + 9 * reach), 5, given)
    expected = torch.where(inside & (d < 8), torch.where(d < 4, 4, 6), expected)
    assert torch.equal(grown, expected)
    assert set(expected[given == GREY].tolist()) == {GREY, 5}
    assert set(expected[given == FLUID].tolist()) == {FLUID, 6}


@pytest.mark.parametrize(("necrosis", "parts"), [(-math.inf, {6}), (math.inf, {4})])
def test_a_core_may_enhance_as_a_whole_or_not_at_all(necrosis, parts):
    labels = torch.full((40, 40, 40), WHITE)
    grown = tumour(necrosis=necrosis, waves=torch.randn(2, 10, 10, 10)).grown(labels, AXES, SOIL)
    assert set(grown.unique().tolist()) - {WHITE, 5} == parts


def test_its_middle_lies_in_a_seat():
    labels = torch.full((40, 40, 40), GREY)
    assert draw_tumour(labels, AXES, SOIL, Draw(torch.Generator().manual_seed(0))) is None
    labels[5, 6:8, 30] = WHITE
    centres = set()
    for seed in range(8):
        found = draw_tumour(labels, AXES, SOIL, Draw(torch.Generator().manual_seed(seed)))
        centres.add(tuple(found.centre.tolist()))
        assert found.waves.shape == (2, 40, 40, 40)
    assert centres == {(-14.5, -13.5, 10.5), (-14.5, -12.5, 10.5)}


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    array = np.zeros((60, 60, 60), np.int16)
    array[5:55, 5:55, 5:55], array[10:50, 10:50, 10:50], array[15:45, 15:45, 15:45] = 500, 3, 2
    array[28:32, 28:32, 28:32] = 4
    path = tmp_path_factory.mktemp("brain") / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 2, 1])), path)
    return path


def four_sequences(brain, *, tumour_probability=1.0, **options):
    generator = ImageGenerator(
        (48, 48, 48),
        channels=4,
        contrasts=[[0.5, 0.8, 0.1, 0.3, 0.4, bright, 0.5] for bright in (0.4, 1.0, 0.6, 0.7)],
        contrast_probability=1.0,
        strip_probability=0.5,
        rotation_deg=0.0,
        scaling=0.0,
        shear=0.0,
        elastic_mm=0.0,
        noise_std=0.0,
        gamma_std=0.0,
        bias_std=0.0,
        max_spacing_mm=2.0,
        tumour_probability=tumour_probability,
    )
    given = {"tissues": [[3], [2], [4], [CORE], [OEDEMA], [ENHANCING], [500]], "strip": [0, 500], "jitter_mm": 0.5}
    given["classes"] = {"core": [CORE], "oedema": [OEDEMA], "enhancing tumour": [ENHANCING]}
    return LabelMapDataset([brain], generator=generator, length=8, **{"seats": [2], **given, **options})


def test_sequences_show_one_head_each_in_its_own_contrast(brain):
    stripped = set()
    enhancing = []
    for item in four_sequences(brain):
        image, label = item["image"], item["label"][0]
        assert image.shape == (4, 48, 48, 48)
        assert set(label.unique().tolist()) <= {0, 1, 2, 3}
        assert (label > 0).any()
        black = {bool(channel[:2].max() < 0.01) for channel in image}
        assert len(black) == 1  # what is gone from one is gone from all
        stripped |= black
        if (label == 3).sum() > 200:
            enhancing.append([float(channel[label == 3].mean()) for channel in image])
    assert stripped == {True, False}
    plain, with_agent, *_ = np.transpose(enhancing)
    assert (with_agent > plain + 0.2).all()


def test_some_heads_have_no_tumour_if_so_wanted(brain):
    have = [bool((item["label"] > 0).any()) for item in four_sequences(brain, tumour_probability=0.5)]
    assert 0 < sum(have) < len(have)


@pytest.mark.parametrize("strip", [[0, 500], [500]])
def test_nothing_grows_outside_of_the_map_whether_or_not_it_is_said_to_be_outside_of_the_brain(brain, strip):
    assert four_sequences(brain, strip=strip).soil.reach[0] < 0


def test_without_seats_nothing_grows(brain):
    dataset = four_sequences(brain, seats=(), classes={"white": [2]}, tissues=[[3], [2], [4]])
    assert set(dataset[0]["label"].unique().tolist()) == {0, 1}


@pytest.mark.parametrize("without", [{"strip": ()}, {"tissues": ()}])
def test_where_the_brain_is_must_be_said(brain, without):
    with pytest.raises(ValueError, match="tumours need to know"):
        four_sequences(brain, **without)
