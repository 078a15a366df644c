"""Results that somebody should look at."""

import numpy as np
import pytest

from monai_attention.inference.segment import segment
from tests.inference.make_ball import ball
from tests.io.make_volumes import write_nifti
from tests.make_bundle import threshold_bundle


@pytest.mark.parametrize(("limits", "verdict"), [((2.5, 4), "ok"), ((4, 9), "flagged"), ((0.1, 2), "flagged")])
def test_a_volume_outside_the_bundles_limits_is_flagged(tmp_path, limits, verdict):
    bundle = threshold_bundle(tmp_path / "b", plausible_ml={"bright": limits})
    array, _ = ball((30, 30, 30), np.eye(4))
    (result,) = segment(write_nifti(tmp_path / "a.nii", array, np.eye(4)), tmp_path / "out", bundle=bundle)
    assert result.verdict == verdict
    if verdict == "flagged":
        assert result.code == "F-VOLUME"
        assert f"bright 3.02 mL, expected {limits[0]} to {limits[1]}" in result.message


@pytest.mark.parametrize(("within", "verdict"), [(40, "flagged"), (60, "ok")])
def test_what_is_found_far_from_the_middle_of_its_class_is_flagged(tmp_path, within, verdict):
    """Two balls 50 mm apart along the second axis, the one of 3 mL, the other of 1.8 mL."""
    bundle = threshold_bundle(tmp_path / "b", within_mm={"bright": within})
    affine = np.diag([1.0, 2.0, 1.0, 1.0])
    large, _ = ball((30, 45, 30), affine, np.array([15.0, 16, 15]))
    small, _ = ball((30, 45, 30), affine, np.array([15.0, 66, 15]), radius=7.5)
    (result,) = segment(write_nifti(tmp_path / "a.nii", large + small, affine), tmp_path / "out", bundle=bundle)
    assert result.verdict == verdict
    if verdict == "flagged":
        assert result.code == "F-SCATTERED"
        assert "1.6 mL of bright more than 40 mm from its middle" in result.message
