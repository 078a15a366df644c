"""Metrics of registration against closed forms."""

import math

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from monai_attention.registration.fields import affine_to_ddf, identity
from monai_attention.registration.metrics import (
    Folds,
    SDLogJacobian,
    TargetRegistrationError,
    dice,
    folds,
    hd95,
    inverse_consistency,
    mean_and_max,
    sd_log_jacobian,
    target_registration_error,
    warp_labels,
)
from tests.io.make_volumes import oblique

SIZE = (10, 9, 8)
AFFINE = oblique()


def stretched(factor):
    """A field whose det J is 1 in the first half along x and `factor` in the second; and a mask without the seam."""
    half = SIZE[0] // 2
    ddf = torch.zeros(1, 3, *SIZE)
    beyond = torch.arange(SIZE[0]).sub(half).clamp(min=0)
    ddf[:, 0] = ((factor - 1) * beyond)[:, None, None]
    mask = torch.ones(1, 1, *SIZE)
    mask[:, :, [0, half - 1, half, -1]] = 0
    return ddf, mask


def test_a_mirrored_field_folds_everywhere_and_a_collapsed_one_too():
    for scale, percent in ((-1.0, 100), (0.0, 100), (0.5, 0), (1.0, 0)):
        matrix = torch.diag(torch.tensor([1.0, scale, 1.0, 1.0]))[None]
        assert folds(affine_to_ddf(matrix, SIZE)).tolist() == [percent]


def test_only_the_mask_counts_item_by_item():
    ddf, mask = stretched(-1.0)
    both, masks = torch.cat([ddf, 0 * ddf]), torch.cat([mask, mask])
    assert folds(both, masks).tolist() == [50, 0]
    masks[0, :, :5] = 0
    assert folds(both, masks).tolist() == [100, 0]
    masks[1] = 0
    for found in (folds(both, masks), sd_log_jacobian(both, masks), *mean_and_max(both[:, :1], masks)):
        assert found.isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="mask must have shape"):
        folds(both, mask)


@pytest.mark.parametrize("factor", [2.0, 1.04, -1.0, -9.0])
def test_sd_log_jacobian_is_the_challenge_s(factor):
    ddf, mask = stretched(factor)
    expected = abs(math.log(max(factor + 3, 1e-9)) - math.log(4)) / 2  # two values, as many of each
    assert sd_log_jacobian(ddf, mask).item() == pytest.approx(expected, rel=1e-4)
    if factor == 1.04:
        assert sd_log_jacobian(ddf, mask).item() == pytest.approx(math.log(factor) / 2 / 4, rel=0.02)


def test_there_and_back_is_measured_in_mm_of_the_world():
    ddf = torch.zeros(1, 3, *SIZE)
    ddf[:, 0], ddf[:, 2] = 1.0, -2.0
    assert inverse_consistency(ddf, -ddf, AFFINE).max() < 1e-5
    expected = math.hypot(0.8, 2 * 3.0)  # spacing of `oblique`
    found = inverse_consistency(ddf, torch.zeros_like(ddf), AFFINE)
    torch.testing.assert_close(found, torch.full((1, 1, *SIZE), expected))
    found[..., 0] = 0
    mean, highest = mean_and_max(found)
    assert (mean.item(), highest.item()) == pytest.approx((expected * 7 / 8, expected))


def landmarks():
    """A field that is affine in the world, in mm; points between voxels, and where it says that they come from."""
    matrix = np.eye(4)
    matrix[:3] += 0.05 * np.random.default_rng(0).normal(size=(3, 4)) * [1, 1, 1, 40]
    grid = identity(SIZE, like=torch.empty(0, dtype=torch.double)).numpy()
    points = np.tensordot(AFFINE[:3, :3], grid, 1) + AFFINE[:3, 3][:, None, None, None]
    moves = np.tensordot(matrix[:3, :3] - np.eye(3), points, 1) + matrix[:3, 3][:, None, None, None]
    places = np.random.default_rng(1).uniform(0, np.array(SIZE) - 1, (6, 3))
    fixed = places @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    moving = fixed @ matrix[:3, :3].T + matrix[:3, 3]
    return [torch.from_numpy(x)[None].float() for x in (moves, fixed, moving)]


def test_target_registration_error_is_of_points_in_the_world():
    moves, fixed, moving = landmarks()
    assert target_registration_error(moves, AFFINE, fixed, moving).max() < 1e-3
    assert target_registration_error(0 * moves, AFFINE, fixed, moving).min() > 0.5
    off = moving + torch.tensor([3.0, 0.0, -4.0])
    off[0, 2, 1] = torch.nan
    expected = torch.full((1, 6), 5.0)
    expected[0, 2] = torch.nan
    found = target_registration_error(moves, AFFINE, fixed, off)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3, equal_nan=True)
    beyond, shift = fixed + 100, torch.tensor([1.0, 2.0, 3.0])
    everywhere = shift.view(1, 3, 1, 1, 1).expand(1, 3, *SIZE)
    assert target_registration_error(everywhere, AFFINE, beyond, beyond + shift).max() < 1e-3
    with pytest.raises(ValueError, match=r"must both have shape \(B, N, 3\)"):
        target_registration_error(moves, AFFINE, fixed, moving[:, 1:])


def test_labels_are_of_the_class_with_the_largest_share():
    labels = torch.randint(0, 4, (1, 1, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ddf = torch.zeros(1, 3, *SIZE)
    ddf[:, 1] = 2
    rolled = torch.roll(labels, -2, dims=3)
    rolled[:, :, :, -2:] = 0  # beyond the moving image is background
    assert torch.equal(warp_labels(labels, ddf, 4), rolled)
    line = torch.tensor([2, 2, 0, 0, 1, 3, 3], dtype=torch.uint8)[None, None]
    for shift, expected in ((0.4, [2, 2, 0, 0, 1, 3, 3]), (0.6, [2, 0, 0, 1, 3, 3, 0])):
        assert warp_labels(line, torch.full((1, 1, 7), shift), 4)[0, 0].tolist() == expected
    corner = torch.tensor([[1, 2], [3, 2]])[None, None]  # nearest is 1, with a share of 0.36; 2 has 0.4
    assert warp_labels(corner, torch.full((1, 2, 2, 2), 0.4), 4)[0, 0, 0, 0] == 2


def cubes(shift):
    """Class 1 moved along the first axis; 2 in the fixed image only; 3 in none."""
    warped, fixed = torch.zeros(2, 1, 1, 14, 10, 10)
    warped[:, :, 2:8, 2:8, 2:8] = 1
    fixed[:, :, 2 + shift : 8 + shift, 2:8, 2:8] = 1
    fixed[:, :, 0, 0, 0] = 2
    return warped, fixed


def test_dice_and_hd95_of_shifted_cubes():
    warped, fixed = cubes(2)
    nan = torch.nan
    for pair in ((warped, fixed), (fixed, warped)):
        torch.testing.assert_close(dice(*pair, 4), torch.tensor([[4 / 6, 0, nan]]), equal_nan=True)
    for axes, spacing in (((0, 1, 2), (3.0, 1.0, 0.5)), ((1, 0, 2), (1.0, 3.0, 0.5))):
        turned = [x.permute(0, 1, *(2 + axis for axis in axes)) for x in (warped, fixed)]
        found = hd95(*turned, 4, spacing)  # a face, far more than 5 % of the surface, is 2 voxels of 3 mm away
        torch.testing.assert_close(found, torch.tensor([[6.0, torch.inf, nan]]), equal_nan=True)
    far = warped.clone()
    far[0, 0, -1, -1, -1] = 1  # one stray voxel is less than 5 %
    assert hd95(far, warped, 2, (1.0, 1.0, 1.0)).item() == 0


def test_metrics_are_monai_s_and_average_over_fields():
    metric = ConfigParser({"m": {"_target_": "monai_attention.registration.metrics.Folds"}}).get_parsed_content("m")
    assert isinstance(metric, Folds)
    mirrored = affine_to_ddf(torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))[None], SIZE)
    metric(y_pred=torch.cat([mirrored, 0 * mirrored]))
    metric([0 * mirrored[0]], [torch.zeros(1, *SIZE)])  # an empty mask: no number
    assert metric.get_buffer().shape == (3, 1)
    assert metric.aggregate() == 50
    metric.reset()
    assert metric.aggregate().isnan()
    ddf, mask = stretched(2.0)
    metric = SDLogJacobian()
    metric(MetaTensor(ddf), mask)
    torch.testing.assert_close(metric.aggregate(), sd_log_jacobian(ddf, mask)[0])


def test_landmarks_of_several_fields_as_an_evaluator_gives_them():
    from ignite.engine import Engine
    from monai.handlers import IgniteMetricHandler

    from monai_attention.registration.world import mm_to_ddf

    moves, fixed, moving = landmarks()
    points = torch.stack([fixed, moving + torch.tensor([0.0, 2.0, 0.0])], dim=1)
    fewer = points.clone()
    fewer[:, 1] += torch.tensor([0.0, 2.0, 0.0])
    fewer[:, :, 3:] = torch.nan
    ddf = mm_to_ddf(moves, AFFINE)[0]
    output = [MetaTensor(ddf, affine=torch.from_numpy(AFFINE))] * 2, [points[0], fewer[0]]
    engine = Engine(lambda *_: output)
    IgniteMetricHandler(metric_fn=TargetRegistrationError()).attach(engine, "tre")
    engine.run([0])
    assert engine.state.metrics["tre"] == pytest.approx((2 + 4) / 2, abs=1e-3)
    with pytest.raises(TypeError, match="MetaTensor"):
        TargetRegistrationError()(ddf[None], points)
