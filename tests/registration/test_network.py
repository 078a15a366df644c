import json

import nibabel
import pytest
import torch
from torch import nn

from monai_attention import bundles
from monai_attention.registration.inferer import PairInferer
from monai_attention.registration.network import network_of
from monai_attention.registration.register import register
from monai_attention.registration.scan import Scan
from monai_attention.registration.transformation import Transformation
from tests.make_bundle import threshold_bundle, write_bundle
from tests.refusals import refusal
from tests.registration.make_balls import balls
from tests.registration.make_scans import STORED, head, rigid

SPACING = (2.0, 4.0, 4.0)


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


def test_an_inferer_gives_the_model_its_two_images():
    pair = torch.rand(2, 4, 5, 6)
    assert torch.equal(PairInferer()(pair, lambda moving, fixed: moving - fixed), pair[:, :2] - pair[:, 2:])
    with pytest.raises(ValueError, match="3"):
        PairInferer()(pair[:, :3], by_brightness)


def registering_bundle(folder, network, weights):
    write_bundle(folder, network, weights, channels=(2, 3))
    model = {"_target_": "monai_attention.registration.model.RegistrationModel", "network": "@network_def"}
    path = folder / "configs/inference.json"
    path.write_text(json.dumps({"registration_def": model, **json.loads(path.read_text())}))
    return folder


def shifting_bundle(folder):
    """A bundle whose network says that everything comes from 1 voxel, 2 mm, further along y, whatever it sees."""
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 3, "kernel_size": 1}
    weights = {"weight": torch.zeros(3, 2, 1, 1, 1), "bias": torch.tensor([0.0, 1.0, 0.0])}
    return registering_bundle(folder, network, weights)


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
    assert found.figures["unlike, network"] > found.figures["unlike, affine"]  # it has done what was to be done
    assert found.code == "F-NOT-IMPROVED"
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


def test_structures_of_a_bundle_are_recognised_and_judged_by(tmp_path):
    """Balls of which one lies elsewhere in the moving scan; the bundle's network moves nothing."""
    anatomy = {"_target_": "tests.registration.make_balls.Balls"}
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 30, "out_channels": 3, "kernel_size": 1}
    structures = "monai_attention.registration.structures.StructureNetwork"
    whole = {"_target_": structures, "anatomy": anatomy, "network": network, "roi_size": [96, 96, 96]}
    weights = {"network.weight": torch.zeros(3, 30, 1, 1, 1), "network.bias": torch.zeros(3)}
    bundle = registering_bundle(tmp_path / "bundle", whole, weights)
    fixed, moving = balls(), balls()
    moving.values[0, 0, :25, :25, :25] = moving.values[0, 0, :25, :25, :25].roll(4, dims=0)  # 12 of some 16 mm
    for name, scan in (("fixed", fixed), ("moving", moving)):
        nibabel.save(nibabel.Nifti1Image(scan.values[0, 0].numpy(), scan.affine.numpy()), tmp_path / f"{name}.nii.gz")
    files = tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"
    (found,) = register(*files, tmp_path / "out", bundle=bundle, optimize=0, trust_bundle=True)
    assert 0.9 < found.figures["recognised, affine"] < 0.99
    assert found.figures["recognised, network"] == found.figures["recognised, affine"]
