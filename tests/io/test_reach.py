"""Where structures lie, from their own middle."""

import numpy as np
import pytest

from monai_attention.io.reach import far_ml, reach_mm


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_far_is_measured_in_mm_along_each_axis_from_the_median(axis):
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[:3, :3, :3] = 5
    along = [1, 1, 1]
    along[axis] = 9
    labels[tuple(along)] = 5
    labels[11, 11, 11] = 6
    spacing = [1.0, 2.0, 3.0]
    affine = np.diag([*spacing, 1.0])
    reach = 8 * spacing[axis]
    assert far_ml(labels, affine, {5: reach}) == {5: 0}
    assert far_ml(labels, affine, {5: reach - 0.5, 7: 1.0}) == {5: pytest.approx(0.006), 7: 0}


@pytest.mark.parametrize(("loose", "reach"), [(12, 26.0), (13, 72.0)])
def test_a_tenth_of_a_millilitre_may_lie_farther_than_a_structure_reaches(loose, reach):
    """Voxels of 8 microlitres: twelve are less than that, thirteen more."""
    labels = np.zeros((60, 9, 9), np.uint8)
    labels[10:35, 3:6, 3:6] = 3
    labels[59].flat[:loose] = 3
    affine = np.diag([2.0, -2.0, 2.0, 1.0])
    assert reach_mm(labels, affine, (3, 4)) == {3: reach, 4: 0.0}
    assert far_ml(labels, affine, {3: reach})[3] <= 0.1 < far_ml(labels, affine, {3: reach - 1})[3]
