"""Twelve balls that a network recognises: the pose between two scans of them, and how far they overlap."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from monai_attention.registration.model import RegistrationModel
from monai_attention.registration.network import recognise_of
from monai_attention.registration.recognised import affine_between, centres, overlap, pose
from monai_attention.registration.scan import Scan, transform
from monai_attention.registration.structures import StructureNetwork
from monai_attention.registration.transformation import Transformation
from tests.registration.make_balls import CENTRES, Balls, balls
from tests.registration.make_scans import STORED, moved, rigid

RECOGNISE = recognise_of(
    RegistrationModel(StructureNetwork(Balls(), nn.Identity(), roi_size=(96, 96, 96), coarseness=2)), (3.0, 3.0, 3.0)
)


def stored_as(scan, stored):
    """The same scan, its array in another order."""
    order = torch.from_numpy(np.abs(STORED[stored]).argmax(axis=0))
    backwards = [axis for axis in range(3) if STORED[stored][:, axis].sum() < 0]
    values = scan.values.permute(0, 1, *(2 + order)).flip([2 + axis for axis in backwards])
    ends = [n - 1.0 if axis in backwards else 0.0 for axis, n in enumerate(values.shape[2:])]
    step = torch.eye(4, dtype=torch.float64)
    step[:3, :3] = torch.from_numpy(STORED[stored])
    step[:3, 3] = -step[:3, :3] @ torch.tensor(ends, dtype=torch.float64)
    again = Scan(values, scan.affine @ step)
    probe = torch.tensor([[10.0, 20, -30]]).T.view(1, 3, 1, 1, 1)
    torch.testing.assert_close(again.at(probe), scan.at(probe))
    return again


def cubes(shift_mm=0.0, number=12):
    """So many structures, each a cube of 12 mm on a grid of 2 mm, not all on one plane, shifted along axis 0."""
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    affine[0, 3] = shift_mm
    values = torch.zeros(1, 12, 40, 30, 20)
    for structure in range(number):
        x, y, z = 10 * (structure // 3), 10 * (structure % 3), 2 * (structure % 2)
        values[:, structure, x + 2 : x + 8, y + 2 : y + 8, z + 6 : z + 12] = 1
    return Scan(values, affine)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("spacing", "off_mm"), [(3.0, 0.5), (2.6, 1.5)])  # halves of voxels of 6 mm do not count
def test_structures_lie_where_they_are_however_the_array_is_stored(stored, spacing, off_mm):
    found = RECOGNISE(stored_as(balls(spacing), stored))
    assert found.values.shape[:2] == (1, 12)
    assert found.spacing.tolist() == pytest.approx([6, 6, 6], rel=0.02)
    middles, _ = centres(found)
    assert (middles - CENTRES).norm(dim=1).max() < off_mm


def test_volumes_are_in_mm3():
    middles, mm3 = centres(cubes())
    assert mm3.tolist() == [12.0**3] * 12
    assert middles[0].tolist() == [9, 9, 17]


@pytest.mark.parametrize("stored", STORED)
def test_a_pose_is_found_by_structures_however_the_array_is_stored(stored):
    fixed, truth = balls(), rigid((8, -12, 20), (25, -15, 10))
    truth[:3, :3] *= 1.1
    moving = stored_as(moved(fixed, truth, mode="nearest"), stored)
    found = pose(RECOGNISE(fixed), RECOGNISE(moving))
    points = fixed.points()
    assert (transform(points, found) - transform(points, truth)).norm(dim=1).max() < 3  # mm; voxels have 3 to 5


def test_there_is_no_pose_without_enough_structures_or_without_a_network_that_recognises_any():
    fixed = balls()
    few = RECOGNISE(Scan(fixed.values * (fixed.values < 8 / 12), fixed.affine))  # seven, less the one that scales all
    assert pose(RECOGNISE(fixed), RECOGNISE(fixed)) is not None
    assert pose(few, few) is None
    assert recognise_of(RegistrationModel(nn.Conv3d(2, 3, 1)), (3.0, 3.0, 3.0)) is None
    assert recognise_of(lambda moving, fixed: moving, (3.0, 3.0, 3.0)) is None


def test_a_few_wrong_points_hardly_change_an_affine_map():
    generator = torch.Generator().manual_seed(0)
    here = 60 * torch.randn(30, 3, generator=generator)
    truth = rigid((10, 20, 30), (5, 6, 7))
    there = transform(here.T[None], truth)[0].T.double() + torch.randn(30, 3, generator=generator)
    there[:4] += 80
    found = affine_between(here, there)
    assert found[3].tolist() == [0, 0, 0, 1]
    assert (found - truth)[:3, 3].norm() < 1.5
    assert (found - truth)[:3, :3].abs().max() < 0.03
    assert affine_between(here, there * torch.tensor([-1.0, 1, 1])) is None
    assert affine_between(here, there[torch.randperm(30, generator=generator)]) is None


def test_overlap_is_the_dice_after_the_transformation():
    fixed, moving = cubes(), cubes(shift_mm=4.0)
    stay, follow = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    follow[0, 3] = 4
    assert overlap(fixed, moving, Transformation(stay)) == pytest.approx(8 / 12)
    assert overlap(fixed, moving, Transformation(follow)) == pytest.approx(1)
    ddf = torch.zeros(1, 3, *fixed.shape)
    ddf[:, 0] = 1  # voxels of 2 mm, of 4 mm that are to go
    assert overlap(fixed, moving, Transformation(stay, ddf, fixed.affine)) == pytest.approx(10 / 12)


def test_overlap_is_of_what_both_scans_show():
    fixed, whole = cubes(), cubes()
    half = Scan(whole.values[:, :, :, :, :10], whole.affine)  # 4 of 6 voxels
    assert overlap(fixed, half, Transformation(torch.eye(4, dtype=torch.float64))) == pytest.approx(1)


@pytest.mark.parametrize("lacking", ["fixed", "moving"])
def test_overlap_of_too_few_structures_is_not_known(lacking):
    scans = {"fixed": cubes(), "moving": cubes()} | {lacking: cubes(number=11)}
    assert math.isnan(overlap(**scans, transformation=Transformation(torch.eye(4, dtype=torch.float64))))
    scans[lacking] = cubes()
    assert overlap(**scans, transformation=Transformation(torch.eye(4, dtype=torch.float64))) > 0.999


def test_what_does_not_fit_is_not_pushed_out_of_sight():
    """Structures of the moving scan, which ends soon after them, are 4 mm off: 8 of 12 mm overlap."""
    fixed, moving = cubes(), cubes()
    middle = [structure for structure in range(12) if structure % 3 == 1]
    moving.values[:, middle] = moving.values[:, middle].roll(2, dims=3)
    moving = Scan(moving.values[:, :, :, :20], moving.affine)
    fixed.values[:, [s + 1 for s in middle]], moving.values[:, [s + 1 for s in middle]] = (
        cubes().values[:, [s - 1 for s in middle]],
        cubes().values[:, [s - 1 for s in middle], :, :20],
    )  # the third of each row is where the first is: all of them are in both
    stay = Transformation(torch.eye(4, dtype=torch.float64))
    assert overlap(fixed, moving, stay) == pytest.approx((8 + 4 * 8 / 12) / 12)
    ddf = torch.zeros(1, 3, *fixed.shape)
    ddf[:, 1, :, 12:14] = 30.0  # those of the fixed scan that have no counterpart
    assert overlap(fixed, moving, Transformation(stay.matrix, ddf, fixed.affine)) <= overlap(fixed, moving, stay)
    away = Transformation(stay.matrix, torch.full_like(ddf, 100.0), fixed.affine)
    assert overlap(fixed, moving, away) == 0
    moving.values[:, 9:] = moving.values[:, :3]
    ends = Scan(moving.values[:, :, :30], moving.affine)  # before the last three structures of the fixed scan begin
    assert overlap(fixed, ends, away) == 0


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_centres_of_what_the_image_cuts_have_no_say_in_a_pose(which):
    whole = cubes()
    scans = {"fixed": whole, "moving": whole}
    assert pose(**scans) is not None
    scans[which] = Scan(whole.values[:, :, 4:], whole.affine)  # three of twelve begin at its first voxel
    assert pose(**scans) is None


def test_points_on_a_plane_or_all_wrong_give_no_affine_map():
    generator = torch.Generator().manual_seed(0)
    here = 40 * torch.randn(12, 3, generator=generator)
    flat = here * torch.tensor([1.0, 1.0, 0.01])
    assert affine_between(flat, flat + torch.randn(12, 3, generator=generator)) is None
    assert affine_between(here, 3 * here) is None
    assert affine_between(here, here / 3) is None
    wrong = [affine_between(here, here[torch.randperm(12, generator=generator)]) is None for _ in range(50)]
    assert sum(wrong) == 50
