import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_attention import bundles
from monai_attention.registration.inferer import PairInferer
from monai_attention.registration.model import RegistrationModel
from monai_attention.registration.network import affine_between, network_of, pose_of
from monai_attention.registration.register import register
from monai_attention.registration.scan import Scan, transform
from monai_attention.registration.structures import StructureNetwork
from monai_attention.registration.transformation import Transformation
from tests.make_bundle import threshold_bundle, write_bundle
from tests.refusals import refusal
from tests.registration.make_scans import head, moved, rigid

SPACING = (2.0, 4.0, 4.0)
STORED = {
    "as_it_is": np.eye(3),
    "permuted_and_backwards": np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]]),
}


def by_brightness(moving, fixed):
    """In voxels: by the fixed image along x, by the moving one along y, backwards one everywhere along z."""
    return torch.cat([fixed, moving, -torch.ones_like(fixed)], dim=1)


@pytest.mark.parametrize("stored", STORED)
def test_the_same_points_move_alike_however_the_array_is_stored(stored):
    oblique = rigid((4, -5, 6), (10, 20, -30))
    affine = oblique.clone()
    affine[:3, :3] = (
        oblique[:3, :3] @ torch.from_numpy(STORED[stored]) @ torch.diag(torch.tensor([2.0, 2.0, 4.0]).double())
    )
    grid = Scan(torch.zeros(1, 1, 12, 12, 8), affine)  # the model's voxels hold whole ones
    points = grid.points()
    fixed, moving = (Scan(1 + 0.01 * points[:, i : i + 1], affine) for i in (0, 1))  # linear: resampling keeps it
    found = Transformation(torch.eye(4).double(), network_of(by_brightness, SPACING)(moving, fixed), affine)(points)
    along = oblique[:3, :3].float() @ torch.diag(
        torch.tensor(SPACING)
    )  # mm for a voxel along x, y, z of the model's grid
    voxels = torch.cat([fixed.values, moving.values, -torch.ones_like(fixed.values)], dim=1)
    expected = points + torch.einsum("ij,bjxyz->bixyz", along, voxels)
    inner = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    assert (found - expected)[inner].abs().max() < 1e-3  # mm


class Balls(nn.Module):
    """An anatomy that knows twelve classes by how bright they are, in steps of 1/12, where they are even."""

    def forward(self, image):
        uneven = F.max_pool3d(image, 3, 1, 1) + F.max_pool3d(-image, 3, 1, 1)
        levels = [-2000 * (image - level / 12) ** 2 - 1e4 * uneven**2 for level in range(1, 13)]
        return torch.cat([torch.full_like(image, -3.0), *levels], dim=1)


def balls(spacing=3.0):
    """Twelve balls, the k-th of them k / 12 bright; the last one is larger, so that the percentiles are 0 and 1."""
    affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = -spacing * 33.5
    scan = Scan(torch.zeros(1, 1, 68, 68, 68), affine)
    centres = torch.tensor([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 0, 1)]) * 45.0
    centres[-1] = 0
    for number, centre in enumerate(centres, 1):
        near = (scan.points() - centre.view(1, 3, 1, 1, 1)).norm(dim=1) < (38 if number == 12 else 16)
        scan.values[0][near] = number / 12
    return scan


BALLS = StructureNetwork(Balls(), nn.Identity(), roi_size=(96, 96, 96), coarseness=2)


@pytest.mark.parametrize("stored", STORED)
def test_a_pose_is_found_by_structures_however_the_array_is_stored(stored):
    fixed, truth = balls(), rigid((8, -12, 20), (25, -15, 10))
    truth[:3, :3] *= 1.1
    moving = moved(fixed, truth, mode="nearest")
    order = torch.from_numpy(np.abs(STORED[stored]).argmax(axis=0))
    backwards = [axis for axis in range(3) if STORED[stored][:, axis].sum() < 0]
    values = moving.values.permute(0, 1, *(2 + order)).flip([2 + axis for axis in backwards])
    ends = [n - 1.0 if axis in backwards else 0.0 for axis, n in enumerate(values.shape[2:])]
    step = torch.eye(4, dtype=torch.float64)
    step[:3, :3] = torch.from_numpy(STORED[stored])
    step[:3, 3] = -step[:3, :3] @ torch.tensor(ends, dtype=torch.float64)
    again = Scan(values, moving.affine @ step)
    probe = torch.tensor([[10.0, 20, -30]]).T.view(1, 3, 1, 1, 1)
    torch.testing.assert_close(again.at(transform(probe, truth)), moving.at(transform(probe, truth)))
    pose = pose_of(RegistrationModel(BALLS), (3.0, 3.0, 3.0))
    found = pose(again, fixed)
    points = fixed.points()
    assert (transform(points, found) - transform(points, truth)).norm(dim=1).max() < 3  # mm; voxels have 3 to 5


def test_there_is_no_pose_without_enough_structures_or_without_a_network_that_recognises_any():
    fixed = balls()
    few = Scan(fixed.values * (fixed.values < 8 / 12), fixed.affine)  # seven, less the brightest, which scales all
    pose = pose_of(RegistrationModel(BALLS), (3.0, 3.0, 3.0))
    assert pose(fixed, fixed) is not None
    assert pose(few, few) is None
    assert pose_of(RegistrationModel(nn.Conv3d(2, 3, 1)), (3.0, 3.0, 3.0)) is None
    assert pose_of(by_brightness, (3.0, 3.0, 3.0)) is None


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


def test_an_inferer_gives_the_model_its_two_images():
    pair = torch.rand(2, 4, 5, 6)
    assert torch.equal(PairInferer()(pair, lambda moving, fixed: moving - fixed), pair[:, :2] - pair[:, 2:])
    with pytest.raises(ValueError, match="3"):
        PairInferer()(pair[:, :3], by_brightness)


def shifting_bundle(folder):
    """A bundle whose network says that everything comes from 1 voxel, 2 mm, further along y, whatever it sees."""
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 3, "kernel_size": 1}
    weights = {"weight": torch.zeros(3, 2, 1, 1, 1), "bias": torch.tensor([0.0, 1.0, 0.0])}
    write_bundle(folder, network, weights, channels=(2, 3))
    model = {"_target_": "monai_attention.registration.model.RegistrationModel", "network": "@network_def"}
    path = folder / "configs/inference.json"
    path.write_text(
        path.read_text().replace(
            '{"network_def"', '{"registration_def": ' + str(model).replace("'", '"') + ', "network_def"', 1
        )
    )
    return folder


def test_a_pair_is_registered_with_a_bundle(tmp_path):
    bundle = shifting_bundle(tmp_path / "bundle")
    scan = head(4.0)
    for name, values in (("fixed", scan.values), ("moving", scan.values.roll(1, dims=3))):  # 4 mm further along y
        nibabel.save(nibabel.Nifti1Image(values[0, 0].numpy(), scan.affine.numpy()), tmp_path / f"{name}.nii.gz")
    found, again = (
        register(tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", tmp_path / "out", bundle=bundle, optimize=0)[0]
        for _ in range(2)
    )
    assert not found.resumed
    assert again.resumed
    assert set(found.figures) >= {"unlike, affine", "unlike, network"}
    assert '"weights_sha256"' in (tmp_path / "out" / found.case_id / "run.json").read_text()
    assert bundle.name in (tmp_path / "out/report.html").read_text()


def test_bundles_are_used_for_what_they_are_for(tmp_path):
    segmenting, registering = threshold_bundle(tmp_path / "a"), shifting_bundle(tmp_path / "b")
    assert [bundles.info(one).purpose for one in (segmenting, registering)] == ["segment", "register"]
    assert bundles.info(registering).classes == {}
    assert refusal(bundles.load, registering).code == "E-BUNDLE-PURPOSE"
    assert refusal(bundles.load_registration, segmenting).code == "E-BUNDLE-PURPOSE"
    loaded = bundles.load_registration(registering)
    assert isinstance(loaded.model, nn.Module)
    assert loaded.spacing_mm == (2.0, 2.0, 2.0)
    ddf = loaded.model(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 1, 4, 4, 4))
    assert torch.equal(ddf[0, :, 0, 0, 0], torch.tensor([0.0, 1.0, 0.0]))
