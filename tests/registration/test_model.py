import pytest
import torch
from monai.networks.nets.voxelmorph import VoxelMorph, VoxelMorphUNet
from torch import nn

from monai_attention.networks.flex_unetr import FlexUNETR
from monai_attention.networks.transmorph import SplineTransMorph, TransMorph
from monai_attention.registration.fields import affine_to_ddf, compose, integrate, resize_ddf
from monai_attention.registration.model import RegistrationModel, monte_carlo
from monai_attention.registration.published import TransMorphDiff, TransMorphSpline

SMALL = {"window": (2, 2), "feature_size": 8, "depths": (1, 1), "num_heads": (2, 2)}


class Gives(nn.Module):
    """A network whose output does not depend on the images."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x):
        return self.output.expand(len(x), *self.output.shape[1:])


def images(*size):
    return torch.rand(2, 1, 1, *size, generator=torch.Generator().manual_seed(0)).unbind()


def shaken(network, std=0.1):
    """With a last layer that moves something."""
    torch.manual_seed(0)
    last = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Conv3d))][-1]
    nn.init.normal_(last.weight, std=std)
    return network


def wave(*size):
    """A smooth field, up to 1.5 voxels."""
    torch.manual_seed(0)
    field = resize_ddf(torch.randn(1, len(size), *[3] * len(size)), size)
    return 1.5 * field / field.abs().max()


def unetr(spatial):
    small = {"patch_size": 4, "feature_size": 4, "hidden_size": 24, "mlp_size": 32, "num_heads": 2, "depth": 4}
    return FlexUNETR(2, len(spatial), roi_size=(16,) * len(spatial), **small)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda size: TransMorph(2, 2, half_resolution=True, **SMALL), (19, 16)),
        (lambda size: TransMorph(2, 4, **SMALL), (19, 16)),
        (unetr, (16, 9, 12)),
    ],
    ids=["half resolution", "mean and variance", "another network"],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_any_network_learns_from_where_the_voxels_go(make, size, steps):
    model = RegistrationModel(shaken(make(size)), integration_steps=steps)
    ddf = model(*images(*size))
    assert ddf.shape == (1, len(size), *size)
    assert ddf.abs().max() > 0.01
    ddf.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_monais_voxelmorph_moves_the_same_way():
    network = VoxelMorphUNet(3, 2, 16, channels=(4, 8, 8, 8, 8, 8), final_conv_channels=(4, 4))
    network = shaken(network, std=1.0).eval()
    moving, fixed = images(16, 24, 16)
    _, expected = VoxelMorph(network, integration_steps=7, half_res=False)(moving, fixed)
    assert expected.abs().max() > 0.1
    ours = RegistrationModel(network, integration_steps=7, padding="zeros")(moving, fixed)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_convention_a_coarse_voxel_is_a_whole_number_of_voxels_from_the_first():
    """Also where the last of them reaches beyond the image: 13 voxels are 7 pairs."""
    coarse, fine = (7, 9), (13, 18)
    matrix = torch.eye(3)[None].double()
    matrix[:, :2] += 0.1 * torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    edge = torch.tensor([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]]).double()  # where voxels lie among coarse ones
    expected = affine_to_ddf(torch.linalg.inv(edge) @ matrix @ edge, fine)
    ddf = RegistrationModel(Gives(affine_to_ddf(matrix, coarse)))(*images(*fine))
    torch.testing.assert_close(ddf[..., 1:, 1:-1], expected[..., 1:, 1:-1])


def test_a_velocity_is_integrated_on_its_own_grid():
    velocity = wave(8, 10)
    ddf = RegistrationModel(Gives(velocity), integration_steps=5)(*images(16, 20))
    torch.testing.assert_close(ddf, resize_ddf(integrate(velocity, 5), (16, 20)))


def test_one_velocity_goes_both_ways_also_when_it_is_drawn():
    variances = torch.full((1, 2, 24, 24), -6.0)
    model = RegistrationModel(Gives(torch.cat([wave(24, 24), variances], dim=1)), integration_steps=7)
    (ddf, inverse), other = model.both_ways(*images(24, 24)), model(*images(24, 24))
    assert ddf.abs().max() > 0.5
    off, off_another = (compose(x, inverse)[..., 4:-4, 4:-4].abs().mean() for x in (ddf, other))
    assert off < 0.02
    assert off_another > 2 * off, "two draws are no pair"


def test_a_distribution_gives_its_mean_in_evaluation_and_draws_in_training():
    mean = wave(32, 32)
    model = RegistrationModel(Gives(torch.cat([mean, torch.full_like(mean, -2.0)], dim=1))).eval()
    torch.testing.assert_close(model(*images(32, 32)), mean)
    for given, expected in zip(model.predict(*images(32, 32)), (mean, torch.full_like(mean, -2.0)), strict=True):
        assert torch.equal(given, expected)
    model.train()
    torch.manual_seed(1)
    drawn = model(*images(32, 32))
    assert (drawn - mean).std().item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.05)
    torch.manual_seed(1)
    assert torch.equal(model(*images(32, 32)), drawn)


def test_control_points_make_a_field_of_the_images_size():
    network = SplineTransMorph(2, 2, control_spacing=(3, 4), **SMALL)
    network.head[-1].bias.data = torch.tensor([1.5, -2.0])
    model = RegistrationModel(network, integration_steps=4, control_spacing=(3, 4))
    ddf = model(*images(19, 14))
    torch.testing.assert_close(ddf, torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand(1, 2, 19, 14), rtol=0, atol=0.02)


def test_monte_carlo_is_the_mean_and_deviation_of_answers_under_dropout():
    model = RegistrationModel(nn.Sequential(Gives(wave(8, 8)), nn.Dropout(0.5)))
    torch.manual_seed(2)
    answers = torch.cat([model(*images(8, 8)) for _ in range(5)])
    torch.manual_seed(2)
    mean, deviation = monte_carlo(model.eval(), *images(8, 8), samples=5)
    torch.testing.assert_close(mean[0], answers.mean(dim=0))
    torch.testing.assert_close(deviation[0], answers.std(dim=0))


def test_monte_carlo_makes_nothing_random_but_dropout_and_leaves_no_trace():
    network = shaken(TransMorph(2, 4, dropout_rate=0.2, drop_path_rate=0.9, **SMALL))
    model = RegistrationModel(network)
    model.network.decoder.eval()
    before = [layer.training for layer in model.modules()]
    assert monte_carlo(model, *images(16, 16), samples=3)[1].max() > 0
    assert [layer.training for layer in model.modules()] == before
    layers = [layer for layer in model.modules() if hasattr(layer, "dropout_rate")]
    assert layers
    for layer in model.modules():
        if isinstance(layer, (nn.Dropout, nn.Dropout2d)):
            layer.p = 0.0
    assert monte_carlo(model, *images(16, 16), samples=3)[1].max() > 0, "attention has dropout of its own"
    for layer in layers[1:]:
        layer.dropout_rate = 0.0
    layers[0].dropout_rate = 1e-9  # random, but never drops
    assert monte_carlo(model, *images(16, 16), samples=3)[1].max() < 1e-6


def test_what_cannot_be_answered_is_refused():
    pair = images(8, 8)
    with pytest.raises(ValueError, match="integration_steps must be 0 or more; got -1"):
        RegistrationModel(nn.Identity(), integration_steps=-1)
    with pytest.raises(ValueError, match=r"one grid; got \(8, 8\) and \(8, 9\)"):
        RegistrationModel(nn.Identity())(pair[0], images(8, 9)[0])
    for output, message in [((1, 3, 8, 8), "2 or 4 channels"), ((1, 2, 8, 9), "no finer than the images'")]:
        with pytest.raises(ValueError, match=message):
            RegistrationModel(Gives(torch.zeros(output)))(*pair)
    with pytest.raises(ValueError, match="expected integration_steps > 0"):
        RegistrationModel(Gives(wave(8, 8))).both_ways(*pair)
    for kind in (TransMorphDiff, TransMorphSpline):
        with pytest.raises(ValueError, match="no exact inverse"):
            kind(Gives(wave(8, 8))).both_ways(*pair)
    with pytest.raises(ValueError, match="at least 2; got 1"):
        monte_carlo(nn.Dropout(), *pair, samples=1)
    with pytest.raises(ValueError, match="it has none"):
        monte_carlo(RegistrationModel(Gives(wave(8, 8))), *pair)
