import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from monai_attention.registration.bspline import bspline, control_size


def test_it_is_the_cubic_b_spline():
    size, spacing = (10, 7), (3, 4)
    points = control_size(size, spacing)
    control = torch.randn(1, 1, *points, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    expected = control[0, 0].numpy()
    for axis, (n, gap, m) in enumerate(zip(size, spacing, points, strict=True)):
        knots = (np.arange(m + 4) - 3.0) * gap  # control point i has the middle one of its five knots at (i - 1) * gap
        expected = np.moveaxis(BSpline(knots, np.moveaxis(expected, axis, 0), 3)(np.arange(n)), 0, axis)
    np.testing.assert_allclose(bspline(control, spacing, size)[0, 0].numpy(), expected, atol=1e-12)


def test_control_points_on_a_plane_give_the_plane_also_in_low_precision():
    size, spacing = (9, 1, 11), (2, 3, 5)
    places = [(torch.arange(n) - 1.0) * gap for n, gap in zip(control_size(size, spacing), spacing, strict=True)]
    slope = torch.tensor([1.0, -2.0, 0.5])
    control = 3 + torch.einsum("i,i...->...", slope, torch.stack(torch.meshgrid(*places, indexing="ij")))
    voxels = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"))
    with torch.autocast("cpu", torch.bfloat16):
        field = bspline(control[None, None], spacing, size)
    torch.testing.assert_close(field[0, 0], 3 + torch.einsum("i,i...->...", slope, voxels))


def test_another_number_of_control_points_is_refused():
    with pytest.raises(ValueError, match=r"takes \(6, 5\) of them; got \(6, 6\)"):
        bspline(torch.zeros(1, 2, 6, 6), (3, 4), (10, 7))
