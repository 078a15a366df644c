"""Registration by recognised structures: what the demons push, and what rounds of a network make of it."""

import torch
import torch.nn.functional as F
from torch import nn

from monai_attention.registration.fields import warp
from monai_attention.registration.model import RegistrationModel
from monai_attention.registration.structures import StructureNetwork, forces


class ByBrightness(nn.Module):
    """An anatomy that knows three classes by how bright they are: about 0, 1 and 2."""

    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(20.0))

    def forward(self, image):
        assert not self.training
        return -self.sharpness * torch.cat([(image - level) ** 2 for level in range(3)], dim=1)


class Demons(nn.Module):
    """Pushes as the demons would, evenly over some voxels."""

    def forward(self, seen):
        return F.avg_pool3d(F.avg_pool3d(seen[:, -3:], 5, 1, 2), 5, 1, 2)


def ball(shift, size=(24, 26, 28)):
    """A ball of 1 with a core of 2, `shift` voxels along the second axis from the middle."""
    axes = (torch.arange(n) - (n - 1) / 2 - by for n, by in zip(size, (0, shift, 0), strict=True))
    distance = sum(a**2 for a in torch.meshgrid(*axes, indexing="ij")) ** 0.5
    return (1.0 * (distance < 8) + (distance < 4))[None, None]


def structures(network, **options):
    return StructureNetwork(ByBrightness(), network, roi_size=(16, 16, 16), **options)


def test_on_a_ramp_forces_point_to_where_the_moving_image_comes_from():
    x = 0.3 * torch.arange(10.0)[:, None, None].expand(10, 4, 4)
    fixed = torch.stack([x, torch.ones_like(x)])[None]
    moving = fixed - torch.tensor([0.3 * 2, 0.0]).view(1, 2, 1, 1, 1)  # what is at x there comes from x + 2
    found = forces(moving, fixed)
    assert found.shape == (1, 3, 10, 4, 4)
    expected = torch.tensor([0.3 * 0.6 / (0.3**2 + 0.6**2 + 0.01), 0, 0]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(found, expected.expand_as(found))


def test_forces_of_channels_weigh_as_they_are_steep():
    x = torch.arange(8.0).view(8, 1, 1).expand(8, 8, 8)
    y = x.movedim(0, 1)
    fixed = torch.stack([0.2 * x, 0.1 * y])[None]
    off = torch.tensor([0.2, -0.1])
    found = forces(fixed - off.view(1, 2, 1, 1, 1), fixed)[0, :, 4, 4, 4]
    steepness = 2 * (0.2**2 + 0.1**2) + 0.01
    torch.testing.assert_close(found, torch.tensor([0.2**2, -(0.1**2), 0]) / steepness)


def test_rounds_bring_structures_onto_each_other_and_more_rounds_nearer():
    moving, fixed = ball(3), ball(0)
    left = []
    for rounds in (0, 1, 4, 16):
        model = RegistrationModel(structures(Demons(), rounds=rounds), integration_steps=5)
        left.append(float((warp(moving, model(moving, fixed)) - fixed).abs().mean()))
    assert left[0] > left[1] > left[2] > left[3]
    assert left[3] < 0.4 * left[0]


def test_each_round_is_shown_what_is_still_wrong_and_adds_to_the_velocity():
    seen = []

    class Still(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.full_like(x[:, :3], 0.25)

    network = structures(Still(), rounds=2)
    velocity = network(torch.cat([ball(2), ball(0)], dim=1))
    assert velocity.shape == (1, 3, 12, 13, 14)
    assert torch.equal(velocity, torch.full_like(velocity, 0.5))
    moving, fixed = network.recognise(torch.cat([ball(2), ball(0)], dim=1)).unbind(1)
    first, second = seen
    torch.testing.assert_close(first[:, :2], moving)
    torch.testing.assert_close(second[:, :2], warp(moving, torch.full_like(velocity, 0.25), padding="border"))
    for x, before in ((first, 0.0), (second, 0.25)):
        torch.testing.assert_close(x[:, 2:4], fixed)
        torch.testing.assert_close(x[:, 4:7], torch.full_like(velocity, before))
        torch.testing.assert_close(x[:, 7:], forces(x[:, :2], x[:, 2:4]))


def test_structures_are_those_of_the_anatomy_averaged_whatever_the_window():
    image = ball(1, size=(25, 26, 31))
    found = structures(Demons()).recognise(image)
    assert found.shape == (1, 1, 2, 13, 13, 16)
    whole = torch.softmax(ByBrightness().eval()(image), dim=1)[:, 1:]
    padded = F.pad(whole, (0, 1, 0, 0, 0, 1), mode="replicate")
    torch.testing.assert_close(found[:, 0], F.avg_pool3d(padded, 2))


def test_only_the_network_is_trained():
    network = structures(nn.Conv3d(10, 3, 1), rounds=2).train()
    assert network.network.training
    assert not network.anatomy.training
    network(torch.cat([ball(2), ball(0)], dim=1)).square().sum().backward()
    assert network.network.weight.grad.abs().sum() > 0
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["network.weight", "network.bias"]
    assert "anatomy.sharpness" in network.state_dict()
