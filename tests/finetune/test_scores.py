"""Scores against closed forms: shifted boxes on an anisotropic grid, balls, and what is not there."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from monai_attention.finetune.scores import (
    IN_PREDICTION,
    IN_TRUTH,
    NEITHER,
    _surface,
    score,
    scores,
    tolerance_of,
)
from tests.io.make_volumes import oblique

STEPS = (1.0, 1.5, 3.0)
AFFINE = oblique(STEPS)
SIZE = (24, 20, 12)


def box(shift=(0, 0, 0), shape=(40, 36, 30)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(6 + by, 6 + by + n) for by, n in zip(shift, SIZE, strict=True))] = True
    return mask


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("by", [1, 3])
def test_boxes_shifted_along_an_axis(axis, by):
    shift = [0, 0, 0]
    shift[axis] = by
    mm = by * STEPS[axis]
    found = score(box(), box(shift), AFFINE, tolerance_mm=mm)
    assert found.dice == pytest.approx((SIZE[axis] - by) / SIZE[axis])
    assert found.hd95_mm == pytest.approx(mm)  # the two faces across the shift are more than 5 % of the surface
    assert found.surface_dice == 1
    below = score(box(), box(shift), AFFINE, tolerance_mm=mm - 0.01)
    extent = np.array(SIZE) * STEPS
    # Too far are the face that looks out of the other box, and of the one inside it what is not near its sides.
    across = np.delete(extent, axis)
    far = np.prod(across) + np.prod(np.clip(across - 2 * mm, 0, None))
    area = (2 * np.prod(extent) / extent).sum()
    assert below.surface_dice == pytest.approx(1 - far / area, abs=0.04)  # edges are bevelled
    assert found.truth_ml == found.found_ml == pytest.approx(np.prod(extent) / 1000, rel=1e-4)


def test_the_same_is_perfect_and_touches_the_border():
    whole = np.ones((4, 5, 6), bool)
    found = score(whole, whole.copy(), AFFINE, tolerance_mm=0)
    assert (found.dice, found.surface_dice, found.hd95_mm, found.where) == (1, 1, 0, "")


def test_row_35_what_is_not_there_is_not_scored_as_if_it_were():
    nothing = np.zeros_like(box())
    found = score(nothing, nothing, AFFINE, tolerance_mm=2)
    assert (found.dice, found.surface_dice, found.hd95_mm, found.where) == (None, None, None, NEITHER)
    for pair, where in (((box(), nothing), IN_TRUTH), ((nothing, box()), IN_PREDICTION)):
        found = score(*pair, AFFINE, tolerance_mm=2)
        assert (found.dice, found.surface_dice, found.hd95_mm, found.where) == (0, 0, None, where)


def test_a_sheared_grid_is_measured_in_the_world():
    """A slab two voxels further along an axis that leans by 45 degrees is farther away in index than in space."""
    affine = np.eye(4)
    affine[0, 2] = 1.0
    truth, found = np.zeros((2, 60, 60, 60), bool)
    truth[:, :, 20:40] = found[:, :, 22:42] = True
    truth[:8] = truth[-8:] = found[:8] = found[-8:] = False
    assert score(truth, found, affine, tolerance_mm=2).hd95_mm == pytest.approx(2)


def ball(radius, centre, steps):
    places = np.meshgrid(*[np.arange(-30, 30.1, step) for step in steps], indexing="ij")
    return sum((place - mm) ** 2 for place, mm in zip(places, centre, strict=True)) < radius**2


def test_monai_agrees():
    truth, found = ball(20, (0, 0, 0), (1, 1, 1)), ball(18, (3, 1, 0), (1, 1, 1))
    for steps in ((1.0, 1.0, 1.0), STEPS):
        ours = score(truth, found, np.diag([*steps, 1.0]), tolerance_mm=2)
        pair = [torch.from_numpy(mask)[None, None] for mask in (found, truth)]
        whole = {"include_background": True, "spacing": list(steps)}
        assert ours.surface_dice == pytest.approx(float(compute_surface_dice(*pair, [2], use_subvoxels=True, **whole)))
        theirs = float(compute_hausdorff_distance(*pair, percentile=95, **whole))
        assert ours.hd95_mm == pytest.approx(theirs, abs=max(steps))


def test_areas_add_up_to_the_surface():
    _, areas = _surface(ball(25, (0, 0, 0), STEPS), np.diag([*STEPS, 1.0]))
    assert areas.sum() == pytest.approx(4 * np.pi * 25**2, rel=0.2)  # of steps: always more than the smooth one
    _, areas = _surface(box(), AFFINE)
    extent = np.array(SIZE) * STEPS
    assert areas.sum() == pytest.approx((2 * np.prod(extent) / extent).sum(), rel=0.06)


def test_the_tolerance_is_never_finer_than_the_grid():
    assert tolerance_of(oblique((0.5, 0.5, 1.0))) == 2
    assert tolerance_of(oblique((0.5, 0.5, 5.0))) == pytest.approx(5)


def test_every_class_by_its_value():
    truth = np.where(box(), 3, 0).astype(np.uint8)
    assert {v: one.dice for v, one in scores(truth, truth, AFFINE, (3, 7), tolerance_mm=2).items()} == {3: 1, 7: None}
    with pytest.raises(ValueError, match="one shape"):
        scores(truth, truth[1:], AFFINE, (3,), tolerance_mm=2)
