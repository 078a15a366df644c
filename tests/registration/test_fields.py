import math

import pytest
import torch
from monai.networks.blocks import DVF2DDF, Warp

from monai_attention.registration.fields import (
    affine_to_ddf,
    compose,
    ddf_to_affine,
    identity,
    integrate,
    invert,
    jacobian_determinant,
    resize_ddf,
    warp,
)

SIZES = [(24,), (16, 18), (12, 14, 13)]


def smooth(size, amplitude, *, batch=1, seed=0, dtype=torch.double):
    """A smooth field that vanishes at the border, up to `amplitude` voxels."""
    generator = torch.Generator().manual_seed(seed)
    grid = identity(size, like=torch.empty(0, dtype=dtype))
    window = torch.ones(size, dtype=dtype)
    for x, n in zip(grid, size, strict=True):
        window = window * torch.sin(math.pi * x / (n - 1)) ** 2
    phases = torch.rand(batch, len(size), len(size), generator=generator, dtype=dtype) * 6
    waves = [
        torch.stack([sum(torch.sin(x * 4 / n + p) for x, n, p in zip(grid, size, row, strict=True)) for row in one])
        for one in phases
    ]
    field = torch.stack(waves) * window
    return amplitude * field / field.abs().amax()


def inside(x, margin=2):
    """Without the voxels next to the border."""
    return x[(..., *[slice(margin, -margin)] * (x.ndim - 2))]


@pytest.mark.parametrize("size", SIZES)
def test_convention_a_ddf_pulls_back_in_voxels_along_array_axes(size):
    image = torch.rand(1, 1, *size)
    for axis in range(len(size)):
        ddf = torch.zeros(1, len(size), *size)
        ddf[:, axis] = 3
        rolled = torch.roll(image, -3, dims=2 + axis)  # warped(x) = moving(x + 3)
        n = size[axis] - 3
        torch.testing.assert_close(warp(image, ddf).narrow(2 + axis, 0, n), rolled.narrow(2 + axis, 0, n))
        assert not warp(image, ddf).narrow(2 + axis, n, 3).any()


@pytest.mark.parametrize("size", SIZES)
def test_any_field_of_a_linear_image_is_exact(size):
    grid = identity(size, like=torch.empty(0, dtype=torch.double))
    slope = torch.tensor([0.3, -0.7, 1.1], dtype=torch.double)[: len(size)]
    ddf = smooth(size, 2.0)
    image = torch.einsum("i,i...->...", slope, grid)[None, None]
    expected = torch.einsum("i,bi...->b...", slope, grid + ddf)[:, None]
    torch.testing.assert_close(warp(image, ddf), expected)


def test_warp_is_monais_where_that_is_right():
    image, ddf = torch.rand(2, 3, 12, 14, 13), smooth((12, 14, 13), 4, batch=2, dtype=torch.float32)
    for mode, theirs in (("linear", "bilinear"), ("nearest", "nearest")):
        expected = Warp(theirs, "zeros")(image, ddf)
        torch.testing.assert_close(warp(image, ddf, mode=mode), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_moves_what_it_should():
    """MONAI's grid is of the field's dtype: at voxel 180 bfloat16 counts in steps of 1, and the move vanishes."""
    ddf = torch.full((1, 2, 192, 4), 0.25, dtype=torch.bfloat16)
    ddf[:, 1] = 0
    image = torch.arange(192.0)[None, None, :, None].expand(1, 1, 192, 4)
    assert (warp(image, ddf)[0, 0, :190] - image[0, 0, :190] - 0.25).abs().max() < 1e-3
    assert integrate(ddf, 3).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert (warp(image, ddf.float())[0, 0, :190] - image[0, 0, :190] - 0.25).abs().max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_composition_is_one_warp_for_two(size):
    a, b = smooth(size, 1.5, seed=1), smooth(size, 1.5, seed=2)
    grid = identity(size, like=a)[None]
    there = warp(warp(grid, a, padding="border"), b, padding="border")
    torch.testing.assert_close(there, grid + compose(a, b), rtol=0, atol=0.02)
    matrices = torch.eye(len(size) + 1, dtype=torch.double).repeat(2, 1, 1)
    matrices[:, :-1] += 0.02 * torch.randn(matrices[:, :-1].shape, generator=torch.Generator().manual_seed(0))
    first, second = (affine_to_ddf(m[None], size) for m in matrices)
    both = affine_to_ddf((matrices[0] @ matrices[1])[None], size)
    torch.testing.assert_close(inside(compose(first, second)), inside(both))


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_velocity_is_a_translation(size):
    velocity = torch.ones(1, len(size), *size) * torch.tensor([2.0, -1.5, 0.5])[: len(size)].view(
        1, -1, *[1] * len(size)
    )
    torch.testing.assert_close(integrate(velocity), velocity)


def test_integration_is_the_matrix_exponential():
    size = (21, 21)
    generator = torch.tensor([[0.0, -0.2, 0], [0.15, 0.0, 0], [0, 0, 0]], dtype=torch.double)
    centre = torch.tensor([[1.0, 0, -10], [0, 1, -10], [0, 0, 1]], dtype=torch.double)
    about = torch.linalg.inv(centre) @ generator @ centre
    velocity = affine_to_ddf(torch.eye(3, dtype=torch.double)[None] + about, size)
    expected = affine_to_ddf(torch.linalg.matrix_exp(about)[None], size)
    found = integrate(velocity, 10)
    torch.testing.assert_close(inside(found, 5), inside(expected, 5), rtol=0, atol=2e-3)


@pytest.mark.parametrize("size", SIZES)
def test_the_flow_back_is_the_inverse(size):
    velocity = smooth(size, 1.0)
    there_and_back = compose(integrate(velocity, 10), integrate(-velocity, 10))
    assert there_and_back.abs().max() < 0.06
    wrong = compose(integrate(velocity, 10), -integrate(velocity, 10))  # minus the field is not its inverse
    assert wrong.abs().max() > 2.5 * there_and_back.abs().max()
    assert jacobian_determinant(integrate(velocity)).min() > 0


def test_integration_is_monais_where_nothing_leaves_the_grid():
    velocity = smooth((12, 14, 13), 2.0, dtype=torch.float32)
    expected = DVF2DDF(num_steps=7, mode="bilinear", padding_mode="zeros")(velocity)
    torch.testing.assert_close(integrate(velocity, padding="zeros"), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_undoes_and_its_residual_is_true(size):
    ddf = smooth(size, 1.2)
    inverse, residual = invert(ddf, tolerance=1e-6)
    assert residual.max() < 1e-5
    torch.testing.assert_close(compose(ddf, inverse).norm(dim=1, keepdim=True), residual)
    grid = identity(size, like=ddf)[None]
    torch.testing.assert_close(warp(grid + ddf, inverse, padding="border"), grid, rtol=0, atol=1e-4)


def test_row_59_a_fold_has_one_way_back_and_a_negative_jacobian():
    x = torch.linspace(0, 2 * math.pi, 40, dtype=torch.double)
    ddf = (12 * torch.sin(x))[None, None]
    assert jacobian_determinant(ddf).min() < 0
    inverse, residual = invert(ddf)
    assert residual.max() < 0.01  # from everywhere it finds a place that goes there ...
    assert compose(inverse, ddf).abs().max() > 5  # ... but not the one that we came from


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_field_on_another_grid_moves_the_same_way(dims, factor):
    size = (8, 10, 6)[:dims]
    fine = [factor * n for n in size]
    matrix = torch.eye(dims + 1, dtype=torch.double)[None]
    matrix[:, :-1] += 0.1 * torch.randn(1, dims, dims + 1, generator=torch.Generator().manual_seed(0))
    coarse_ddf, edge = affine_to_ddf(matrix, size), torch.eye(dims + 1, dtype=torch.double)
    edge[:dims, :dims] /= factor
    edge[:dims, dims] = 0.5 / factor - 0.5  # the grids share their edges, not their first centres
    fine_ddf = affine_to_ddf(torch.linalg.inv(edge) @ matrix @ edge, fine)
    torch.testing.assert_close(inside(resize_ddf(coarse_ddf, fine), factor), inside(fine_ddf, factor))
    torch.testing.assert_close(resize_ddf(fine_ddf, size), coarse_ddf)


def test_half_resolution_keeps_a_smooth_field():
    """MONAI's `VoxelMorph(half_res=True)` scales the wrong way and is half a voxel off."""
    ddf = smooth((32, 32), 3.0)
    there_and_back = resize_ddf(resize_ddf(ddf, (16, 16)), (32, 32))
    assert (there_and_back - ddf).abs().max() < 0.2


@pytest.mark.parametrize("size", SIZES)
def test_an_affine_field_has_its_determinant_everywhere(size):
    n = len(size)
    matrix = torch.eye(n + 1, dtype=torch.double)[None]
    matrix[:, :n] += 0.2 * torch.randn(1, n, n + 1, generator=torch.Generator().manual_seed(1))
    ddf = affine_to_ddf(matrix, size)
    expected = torch.linalg.det(matrix[0, :n, :n])
    torch.testing.assert_close(jacobian_determinant(ddf), expected.expand(1, 1, *size))
    torch.testing.assert_close(ddf_to_affine(ddf), matrix)


def test_a_mirrored_field_folds_everywhere():
    ddf = affine_to_ddf(torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None], (6, 6))
    assert (jacobian_determinant(ddf) < 0).all()


@pytest.mark.parametrize("size", [(5,), (4, 5), (3, 4, 3)])
def test_gradients_go_through(size):
    # Never at a voxel, where linear interpolation has a kink.
    velocity = 0.1 + 0.2 * torch.rand(1, len(size), *size, generator=torch.Generator().manual_seed(0)).double()
    assert torch.autograd.gradcheck(lambda v: jacobian_determinant(integrate(v, 2)), velocity.requires_grad_())


def test_nothing_is_written_to():
    ddf = smooth((12, 14), 1.0)
    kept = ddf.clone()
    for function in (integrate, invert, jacobian_determinant, ddf_to_affine, lambda x: compose(x, x)):
        function(ddf)
    resize_ddf(ddf, (24, 28))
    assert torch.equal(ddf, kept)


def test_what_is_no_field_is_refused():
    with pytest.raises(ValueError, match="with n axes in S"):
        integrate(torch.zeros(1, 3, 5, 5))
    with pytest.raises(ValueError, match="axis of 1 voxel"):
        jacobian_determinant(torch.zeros(1, 2, 5, 1))
