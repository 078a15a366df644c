import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_attention.inference import labels as module
from monai_attention.inference.labels import LabelsOnGrid, aligned
from monai_attention.inference.resample import labels_on_grid, map_on_grid
from monai_attention.inference.sliding_window import stream
from monai_attention.inference.uncertainty import entropy
from monai_attention.inference.windows import Layout, WindowSettings


def on_grid(logits, affine, target_affine, target_shape, roi=4, sum_bytes=0.0, further=None):
    """`LabelsOnGrid` of logits that come in pieces, and with a further map its and the entropy's."""
    choices = WindowSettings(roi, overlap=0.5, sum_bytes=sum_bytes)
    shape = logits.shape[1:]
    order = Layout(shape, roi, 0.5).order
    maps = [] if further is None else ["entropy", "further"]
    labels = LabelsOnGrid(order, shape, affine, target_affine, target_shape, maps=maps)
    image = logits if further is None else torch.cat([logits, further])
    outputs = [len(logits)] if further is None else [len(logits), 1]
    for pieces in stream(image, lambda windows, _: windows.split(outputs, dim=1), choices):
        labels.add(*pieces)
    return labels


def streamed(*args, **kwargs):
    """Labels from pieces of logits."""
    return on_grid(*args, **kwargs).labels


@st.composite
def grids(draw):
    """An aligned grid: axes permuted, flipped, scaled and moved."""
    matrix = np.zeros((4, 4))
    axes = draw(st.permutations(range(3)))
    for target, source in enumerate(axes):
        scale = draw(st.sampled_from([1.0, -1.0, 0.5, -0.7, 1.3, 3.0]))
        matrix[source, target] = scale
        matrix[source, 3] = draw(st.floats(-2, 12))
    matrix[3, 3] = 1
    return matrix, draw(st.tuples(*[st.integers(1, 12)] * 3))


@settings(max_examples=60, deadline=None)
@given(grids(), st.tuples(*[st.integers(1, 11)] * 3), st.sampled_from([0.0, 1e9]))
def test_pieces_give_the_labels_of_the_whole(grid, shape, sum_bytes):
    to_source, target_shape = grid
    logits = 3 * torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 1, 8], [0, 0, 0, 1]])
    got = streamed(logits, affine, affine @ to_source, target_shape, sum_bytes=sum_bytes)
    expected = labels_on_grid(logits.clone(), affine, affine @ to_source, target_shape)
    assert (got != expected).mean() <= 0.02  # ties, and coordinates on the edge, to rounding


@settings(max_examples=40, deadline=None)
@given(grids(), st.tuples(*[st.integers(1, 11)] * 3), st.sampled_from([0.0, 1e9]))
def test_maps_from_pieces_are_those_of_the_whole(grid, shape, sum_bytes):
    to_source, target_shape = grid
    generator = torch.Generator().manual_seed(0)
    logits, further = 3 * torch.randn(5, *shape, generator=generator), torch.rand(1, *shape, generator=generator)
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 1, 8], [0, 0, 0, 1]])
    place = (affine, affine @ to_source, target_shape)
    got = on_grid(logits, *place, sum_bytes=sum_bytes, further=further)
    expected = map_on_grid(torch.cat([entropy(logits.softmax(dim=0), 0)[None], further]), *place)
    for mine, theirs in zip(got.maps.values(), expected, strict=True):
        on_the_edge = (mine == 0) | (theirs == 0)  # outside or just inside, to rounding
        np.testing.assert_allclose(np.where(on_the_edge, 0, mine), np.where(on_the_edge, 0, theirs), atol=1e-5)
        assert ((mine == 0) != (theirs == 0)).mean() <= 0.02
    assert np.array_equal(got.labels, streamed(logits, *place, sum_bytes=sum_bytes))


def test_a_class_that_is_never_first_at_a_voxel_may_win_between_two():
    logits = torch.zeros(3, 2, 1, 1)
    logits[0, 0], logits[1, 1] = 4.0, 4.0
    logits[2] = 3.5
    halfway = np.eye(4)
    halfway[0, 3] = 0.5
    assert streamed(logits, np.eye(4), halfway, (1, 1, 1)) == 2


def test_outside_of_the_networks_grid_is_background():
    logits = torch.zeros(2, 4, 4, 4)
    logits[1] = 1.0
    target = np.eye(4)
    target[:3, 3] = -3
    labels = streamed(logits, np.eye(4), target, (10, 10, 10))
    assert labels.sum() == 6**3  # the grid and one voxel around it
    assert labels[2:8, 2:8, 2:8].all()


def test_equal_probabilities_go_to_the_first_class():
    assert not streamed(torch.zeros(7, 4, 4, 4), np.eye(4), np.eye(4), (4, 4, 4)).any()


@pytest.mark.parametrize("name", ["PART_VOXELS", "PART_BYTES"])
@pytest.mark.parametrize("size", [1, 3000, 10**9])
def test_the_size_of_parts_does_not_matter(monkeypatch, name, size):
    logits = torch.randn(4, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    target = np.diag([-0.6, 0.7, 1.2, 1])
    target[0, 3] = 8
    expected = streamed(logits, np.eye(4), target, (13, 10, 5))
    monkeypatch.setattr(module, name, size)
    assert np.array_equal(streamed(logits, np.eye(4), target, (13, 10, 5)), expected)


def test_aligned_grids_are_told_from_others():
    turned = np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    assert aligned(turned, np.diag([2.0, 3, 4, 1]), (100, 100, 100))
    tilted = np.eye(4)
    tilted[0, 1] = 0.001
    assert aligned(np.eye(4), tilted, (10, 10, 10))
    assert not aligned(np.eye(4), tilted, (10, 100, 10))
    diagonal = np.eye(4)
    diagonal[:2, :2] = [[1, -1], [1, 1]]
    assert not aligned(np.eye(4), diagonal, (10, 10, 10))
