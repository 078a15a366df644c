import torch
from torch import nn

from monai_attention.networks.transmorph import TransMorph
from monai_attention.registration.fields import warp
from monai_attention.registration.local_correlation import LocalCorrelation
from monai_attention.registration.model import RegistrationModel
from monai_attention.registration.training import LabelOverlap, Likeness


def squares(shift, size=24):
    """Class numbers (1, 1, size, size): two squares, moved by `shift` voxels."""
    labels = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    labels[..., 4 + shift : 12 + shift, 4:12] = 1
    labels[..., 4 + shift : 12 + shift, 14:20] = 2
    return labels


def test_overlap_is_perfect_where_the_field_is_right():
    moving, fixed = squares(3), squares(0)
    right = torch.zeros(1, 2, 24, 24)
    right[:, 0] = 3
    loss = LabelOverlap(classes=4, weight=0.0)
    labels = torch.cat([moving, fixed], dim=1)
    assert float(loss(right, labels)) < 1e-6
    assert 0.3 < float(loss(torch.zeros_like(right), labels)) < 0.5  # 5 of 8 rows overlap
    bent = right + torch.linspace(0, 1, 24)
    assert float(LabelOverlap(4, weight=1.0)(bent, labels) - loss(bent, labels)) > 0


def test_a_coarser_grid_says_about_the_same():
    moving, fixed = squares(4), squares(0)  # squares that whole coarse voxels make up
    labels = torch.cat([moving, fixed], dim=1)
    for shift in (0.0, 2.0, 4.0):
        ddf = torch.zeros(1, 2, 24, 24)
        ddf[:, 0] = shift
        fine, coarse = (float(LabelOverlap(3, weight=0.0, coarseness=n)(ddf, labels)) for n in (1, 2))
        assert abs(fine - coarse) < 0.03


def test_likeness_is_of_the_warped_image():
    image = torch.rand(1, 1, 24, 24)
    shift = torch.zeros(1, 2, 24, 24)
    shift[:, 0] = 2
    pair = torch.cat([image.roll(2, dims=2), image], dim=1)
    loss = Likeness(LocalCorrelation(5), weight=0.0)
    assert float(loss(shift, pair)) < float(loss(torch.zeros_like(shift), pair)) - 0.3


def test_a_network_learns_to_move_labels():
    """A few steps on one pair: the loss falls and labels come to lie on each other."""
    torch.manual_seed(0)
    network = TransMorph(2, 2, window=(3, 3), feature_size=12, depths=(1, 1), num_heads=(2, 2), half_resolution=True)
    model = RegistrationModel(network, integration_steps=4)
    labels = torch.cat([squares(3), squares(0)], dim=1)
    images = nn.functional.avg_pool2d(labels.float(), 3, 1, 1)
    loss, optimiser = LabelOverlap(classes=3, weight=0.05), torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        value = loss(model(images[:, :1], images[:, 1:]), labels)
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        moved = warp(labels[:, :1], model.eval()(images[:, :1], images[:, 1:]), mode="nearest")

    def agree(found):
        return float(((found == labels[:, 1:]) & (found > 0)).sum() / (labels[:, 1:] > 0).sum())

    assert agree(moved) > agree(labels[:, :1]) + 0.15
