import numpy as np
import pytest
import torch

from monai_attention.registration.fields import jacobian_determinant
from monai_attention.registration.scan import Scan, affine_of_grid, coarser, part_of, transform
from monai_attention.registration.transformation import (
    Transformation,
    displacement,
    from_displacement,
    inverse,
    jacobian_of,
    percent_folded,
    resample,
    sd_of_log,
    usable,
)
from monai_attention.registration.world import mm_to_ddf
from tests.registration.make_scans import rigid
from tests.registration.test_fields import smooth


def a_grid(size=(20, 18, 22), degrees=(10, -20, 30), spacing=(1.5, 2.0, 3.0)):
    """An oblique, anisotropic grid with noise on it."""
    affine = rigid(degrees, (5, -8, 12)) @ torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return Scan(torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0)), affine)


def a_transformation(amplitude=1.5):
    scan = a_grid()
    return Transformation(rigid((5, 10, -15), (10, 20, -5)), smooth(scan.shape, amplitude).float(), scan.affine)


def test_a_point_is_deformed_and_then_moved():
    forward, scan = a_transformation(), a_grid()
    p = scan.points()
    mm = torch.einsum("ij,bj...->bi...", scan.affine[:3, :3].float(), forward.ddf)
    torch.testing.assert_close(forward(p), transform(p + mm, forward.matrix), rtol=0, atol=1e-3)


def test_there_and_back():
    forward, scan = a_transformation(), a_grid()
    back = inverse(forward)
    p = scan.points()
    assert (back.transformation(forward(p)) - p).norm(dim=1).max() < 0.4  # of up to 4.5 mm, on a grid of up to 3 mm
    assert (forward(back.transformation(forward(p))) - forward(p)).norm(
        dim=1
    ).max() < 0.4  # of up to 4.5 mm, on a grid of up to 3 mm
    assert back.residual_mm < 0.01
    assert usable(back, 1.0)
    assert not usable(back, back.residual_mm / 2)


def test_row_59_a_fold_makes_an_inverse_useless():
    back = inverse(a_transformation(8.0))
    assert back.folds > 1
    assert not usable(back, 100.0)


def test_a_field_in_mm_is_the_transformation_it_came_from(monkeypatch):
    monkeypatch.setattr("monai_attention.registration.parts.PART_VOXELS", 1000)
    forward, scan = a_transformation(), a_grid()
    again = from_displacement(displacement(forward, scan), scan.affine.numpy())
    p = scan.points()
    torch.testing.assert_close(again(p), forward(p), rtol=0, atol=1e-3)
    assert again.ddf.abs().max() < 2.5  # the affine part is apart
    plain = from_displacement(displacement(Transformation(forward.matrix), scan), scan.affine.numpy())
    torch.testing.assert_close(plain.matrix, forward.matrix, rtol=0, atol=1e-4)
    assert plain.ddf.abs().max() < 1e-3


def test_a_scan_is_resampled_once_in_the_world():
    """A linear image is the same function of the world on any grid."""
    slope = torch.tensor([0.3, -0.7, 1.1])

    def ramp(points):
        return torch.einsum("i,bi...->b...", slope, points)[:, None] + 500

    moving = a_grid((60, 60, 60), (0, 5, 0), (4.0, 4, 4))
    moving.affine[:3, 3] -= 100
    moving = Scan(ramp(moving.points()), moving.affine)
    fixed, forward = a_grid(), a_transformation()
    torch.testing.assert_close(resample(moving, forward, fixed), ramp(forward(fixed.points())), rtol=1e-5, atol=1e-2)


def test_beyond_the_field_of_view_is_the_least_value():
    moving = Scan(torch.full((1, 1, 4, 4, 4), -500.0), torch.eye(4, dtype=torch.float64))
    moving.values[0, 0, 0] = -1000
    far = Transformation(rigid((0, 0, 0), (100, 0, 0)))
    assert (resample(moving, far, moving) == -1000).all()


def test_coarser_voxels_cover_the_same_space():
    scan = a_grid((16, 12, 10), spacing=(1.0, 1.5, 4.0))
    small = coarser(scan, 3.0)
    assert small.shape == (5, 6, 10)
    np.testing.assert_allclose(small.spacing.numpy(), [16 / 5, 3, 4])
    torch.testing.assert_close(small.points().mean(dim=(2, 3, 4)), scan.points().mean(dim=(2, 3, 4)))
    torch.testing.assert_close(affine_of_grid(scan, scan.shape), scan.affine)
    assert abs(float(coarser(scan, 3.0).values.mean() - scan.values.mean())) < 1e-2


@pytest.mark.parametrize("part", [1, 18 * 22, 3 * 18 * 22, 10**9])
def test_the_jacobian_in_parts_is_that_of_the_whole(part, monkeypatch):
    forward, scan = a_transformation(), a_grid()
    mm, affine = displacement(forward, scan), scan.affine.numpy()
    whole = jacobian_determinant(mm_to_ddf(torch.from_numpy(mm)[None], affine))[0, 0].numpy()
    monkeypatch.setattr("monai_attention.registration.parts.PART_VOXELS", part)
    np.testing.assert_allclose(jacobian_of(mm, affine), whole, rtol=1e-5)
    scaled = displacement(Transformation(torch.diag(torch.tensor([2.0, 1, 1, 1]).double())), scan)
    np.testing.assert_allclose(jacobian_of(scaled, affine), 2, rtol=1e-4)


@pytest.mark.parametrize("part", [1, 3 * 18 * 22])
def test_what_is_done_in_parts_is_what_is_done_at_once(part, monkeypatch):
    forward, scan = a_transformation(), a_grid()
    affine = scan.affine.numpy()

    def everything():
        mm = displacement(forward, scan)
        apart = from_displacement(mm, affine)
        back = inverse(apart)
        jacobian = jacobian_of(mm, affine)
        yield from (mm, apart.ddf, apart.matrix, back.transformation.ddf, jacobian)
        yield from (resample(scan, forward, scan, mode=mode) for mode in ("linear", "nearest", "cubic"))
        yield torch.tensor([back.residual_mm, back.folds, percent_folded(jacobian), sd_of_log(jacobian)])

    at_once = list(everything())
    monkeypatch.setattr("monai_attention.registration.parts.PART_VOXELS", part)
    for one, whole in zip(everything(), at_once, strict=True):
        torch.testing.assert_close(one, whole) if isinstance(one, torch.Tensor) else np.testing.assert_allclose(
            one, whole, rtol=1e-5, atol=1e-5
        )


def test_figures_of_a_jacobian_are_numpys():
    jacobian = np.random.default_rng(0).normal(1, 0.5, (8, 9, 10)).astype(np.float32)
    assert percent_folded(jacobian) == pytest.approx(100 * (jacobian <= 0).mean())
    assert sd_of_log(jacobian) == pytest.approx(np.log(jacobian[jacobian > 0] / 3.0).std(), rel=1e-5)


def test_part_of_a_scan_lies_where_it_lay():
    scan = a_grid()
    for box in ((slice(3, 4), slice(0, 18), slice(0, 22)), (slice(1, 20, 3), slice(None, None, 4), slice(2, 9))):
        part = part_of(scan, box)
        assert torch.equal(part.values, scan.values[(..., *box)])
        torch.testing.assert_close(part.points(), scan.points()[(..., *box)])


def test_what_an_inverse_is_off_is_told_in_the_millimetres_of_the_other_scan():
    plain = a_transformation(3.0)
    larger = Transformation(
        torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64)) @ plain.matrix, plain.ddf, plain.grid
    )
    assert inverse(larger).residual_mm == pytest.approx(2 * inverse(plain).residual_mm, rel=1e-5)
