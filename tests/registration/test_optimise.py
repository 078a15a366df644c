import pytest
import torch

from monai_attention.registration import parts
from monai_attention.registration.fields import integrate, jacobian_determinant, resize_ddf, warp
from monai_attention.registration.local_correlation import LocalCorrelation
from monai_attention.registration.optimise import FlowSettings, folded, optimise, unfolded, whole_ddf
from tests.registration.test_fields import smooth

SIZE = (20, 24, 22)


def pair(amplitude=2.0):
    """A smooth image, the same seen through a known field, and that field."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 6, 7, 6, generator=generator)
    moving = torch.nn.functional.interpolate(coarse, SIZE, mode="trilinear")
    ddf = integrate(smooth(SIZE, amplitude, dtype=torch.float32))
    return moving, warp(moving, ddf, padding="border"), ddf


def settings(**changes):
    return FlowSettings(
        **{"similarity": LocalCorrelation(5), "weight": 0.05, "factors": (2, 1), "steps": (30, 30), **changes}
    )


@pytest.mark.parametrize("integration_steps", [0, 5])
def test_the_warped_image_comes_to_look_like_the_fixed_one(integration_steps):
    moving, fixed, truth = pair()
    found = optimise(moving, fixed, settings(integration_steps=integration_steps))
    before, after = (moving - fixed).abs().mean(), (warp(moving, found.ddf, padding="border") - fixed).abs().mean()
    assert after < before / 4
    assert (found.ddf - truth).norm(dim=1).mean() < truth.norm(dim=1).mean() / 2
    assert jacobian_determinant(found.ddf).min() > 0
    assert [len(level) for level in found.losses] == [30, 30]


@pytest.mark.parametrize("size", [(20, 24), SIZE])
def test_a_velocity_is_smoothed_where_its_flow_folds_and_nowhere_else(size):
    velocity = torch.zeros(1, len(size), *size)
    steep = (0, slice(None), *(slice(8, 13) for _ in size))
    velocity[steep] = 3 * torch.randn(velocity[steep].shape, generator=torch.Generator().manual_seed(0))
    fine = [2 * n for n in size]

    def lowest(v):
        return float(jacobian_determinant(resize_ddf(whole_ddf(v, size, 6), fine)).min())

    found = unfolded(velocity, size, 6)
    assert lowest(velocity) <= 0 < lowest(found)
    assert torch.equal(found[..., :2], velocity[..., :2])
    assert found.norm() > 0.2 * velocity.norm()
    assert torch.equal(unfolded(found, size, 6), found)


def test_folds_are_found_by_parts_as_by_the_whole(monkeypatch):
    ddf = 2 * torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    ddf[:, :, 4:15] *= 0.1
    whole = folded(ddf)
    assert 0.1 < whole.float().mean() < 0.9
    monkeypatch.setattr(parts, "PART_VOXELS", 1500)
    assert torch.equal(folded(ddf), whole)


def test_it_corrects_a_field_that_is_nearly_right():
    moving, fixed, truth = pair()
    few = settings(factors=(1,), steps=(8,), rate=0.03)
    alone = optimise(moving, fixed, few)
    helped = optimise(moving, fixed, few, initial=0.9 * truth)
    assert (helped.ddf - truth).norm(dim=1).mean() < 0.5 * (alone.ddf - truth).norm(dim=1).mean()


def test_what_the_mask_hides_does_not_matter():
    moving, fixed, _ = pair()
    mask = torch.ones(1, 1, *SIZE)
    mask[:, :, :6] = 0
    spoilt = torch.where(mask > 0, fixed, 5 * torch.rand(fixed.shape, generator=torch.Generator().manual_seed(1)))
    few = settings(steps=(5, 5))
    found = [optimise(moving, image, few, mask=mask).ddf for image in (fixed, spoilt)]
    plain = [optimise(moving, image, few).ddf for image in (fixed, spoilt)]
    # Of the coarser level's voxels on the mask's edge a part is spoilt.
    assert (found[0] - found[1]).abs().mean() < 0.1 * (plain[0] - plain[1]).abs().mean()


def test_it_counts_its_steps():
    moving, fixed, _ = pair()
    seen = []
    optimise(moving, fixed, settings(steps=(2, 3)), on_step=lambda stage, total: seen.append((stage, total)))
    assert seen == [("deformation", 5)] * 5
    with pytest.raises(ValueError, match="one shape"):
        optimise(moving, fixed[..., 1:], settings())
