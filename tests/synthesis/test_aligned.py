import pytest
import torch

from monai_attention.synthesis.dataset import aligned, centroids


def boxes(size, places, edge=4):
    labels = torch.zeros(*size, dtype=torch.uint8)
    for value, (x, y, z) in enumerate(places, 1):
        labels[x : x + edge, y : y + edge, z : z + edge] = value
    return labels


PLACES = [(4, 4, 4), (20, 4, 4), (4, 20, 4), (4, 4, 20), (20, 20, 20)]


def test_centroids_are_mean_positions():
    labels = boxes((30, 30, 30), PLACES)
    found = centroids(labels, torch.tensor([1, 5, 9]))
    assert torch.equal(found[:2], torch.tensor([[5.5] * 3, [21.5] * 3]))
    assert found[2].isnan().all()


def test_people_of_other_pose_and_size_come_to_lie_on_each_other():
    """The same boxes, turned about z, shifted, on another grid and larger."""
    target = boxes((30, 30, 30), PLACES)
    other = (
        boxes((60, 60, 60), [(2 * x, 2 * y, 2 * z) for x, y, z in PLACES], edge=8)
        .rot90(1, (0, 1))
        .roll((3, -2), (0, 2))
    )
    found = aligned(other, (1.0, 1.0, 1.0), target, (1.0, 1.0, 1.0), torch.arange(1, 6))
    assert found.shape == target.shape
    assert ((found == target) | (target == 0)).float().mean() > 0.999
    assert (found > 0).sum() == pytest.approx(int((target > 0).sum()), rel=0.1)
    finer = aligned(other, (0.5, 0.5, 0.5), target, (2.0, 2.0, 2.0), torch.arange(1, 6))
    assert torch.equal(finer, found)  # mm cancel out


def test_too_few_labels_are_refused():
    labels = boxes((30, 30, 30), PLACES[:3])
    with pytest.raises(ValueError, match="at least 4"):
        aligned(labels.clone(), (1, 1, 1), labels, (1, 1, 1), torch.arange(1, 6))
