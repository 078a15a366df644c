import numpy as np
import pytest
import torch

from monai_attention.registration.affine import matrix, register_affine
from monai_attention.registration.scan import Scan
from monai_attention.registration.transformation import Transformation
from tests.registration.make_scans import T2, error_mm, head, moved, rigid


@pytest.mark.parametrize(
    ("degrees", "shift", "brightness"),
    [((30, 0, 0), (40, 0, 0), None), ((-10, 15, 25), (-20, 30, 10), T2)],
    ids=["30 degrees and 40 mm", "another contrast"],
)
def test_a_turned_and_shifted_head_is_found(degrees, shift, brightness):
    truth = rigid(degrees, shift)
    truth[:3, :3] *= 1.05
    fixed = head()
    moving = moved(head(brightness=brightness, seed=1), truth)
    found = register_affine(fixed, moving)
    assert error_mm(Transformation(found.matrix), Transformation(truth), fixed) < 2  # half a voxel
    assert not found.mirrored
    assert found.overlap > 0.9


def test_row_57_a_mirrored_scan_is_told():
    fixed = head()
    right = fixed.points()[:, :1] > 0
    fixed = Scan(torch.where(right, 0.3 * fixed.values, fixed.values), fixed.affine)
    moving = Scan(fixed.values.flip(2), fixed.affine)
    assert register_affine(fixed, moving).mirrored
    assert not register_affine(fixed, fixed).mirrored


def test_parameters_are_what_they_say():
    centres = torch.tensor([1.0, 2, 3]), torch.tensor([-4.0, 5, 6])
    parameters = torch.zeros(12)
    assert torch.equal(matrix(parameters, *centres)[:3, 3], centres[1] - centres[0])
    parameters[0] = 7
    moved_centre = matrix(parameters, *centres) @ torch.tensor([1.0, 2, 3, 1])
    torch.testing.assert_close(moved_centre, torch.tensor([3.0, 5, 6, 1]))
    parameters[3:6] = torch.tensor([0.0, 0, np.pi / 2 * 80])
    linear = matrix(parameters, *centres)[:3, :3]
    torch.testing.assert_close(linear @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)
    parameters[6] = np.log(2) * 80
    torch.testing.assert_close(torch.linalg.det(matrix(parameters, *centres)), torch.tensor(2.0))
    parameters[9:] = 30
    torch.testing.assert_close(torch.linalg.det(matrix(parameters, *centres)), torch.tensor(2.0))


def test_a_matrix_that_is_known_is_kept_and_judged():
    """Upside down: the search's own starts are turned by 25 degrees at most."""
    truth = rigid((0, 150, 0), (15, -10, 20))
    fixed = head()
    moving = moved(head(seed=1), truth)
    found, searched = register_affine(fixed, moving, known=truth), register_affine(fixed, moving)
    assert torch.equal(found.matrix, truth)
    assert found.overlap > 0.9
    assert found.information > 1.2 * searched.information
    assert not found.mirrored
    with pytest.raises(ValueError, match="does not mirror"):
        register_affine(fixed, moving, known=truth @ torch.diag(torch.tensor([-1.0, 1, 1, 1])).double())


def test_a_constant_scan_is_refused():
    scan = Scan(torch.ones(1, 1, 8, 8, 8), torch.diag(torch.tensor([10.0, 10, 10, 1])).double())
    with pytest.raises(ValueError, match="nothing to register"):
        register_affine(scan, scan)
    with pytest.raises(ValueError, match="at least 40 mm"):
        register_affine(scan, Scan(scan.values, torch.eye(4, dtype=torch.float64)))
