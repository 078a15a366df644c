"""Spacing and intensities planned for a cohort, from closed forms."""

import nibabel
import numpy as np
import pytest

from monai_attention.finetune.dataset import find_labelled
from monai_attention.finetune.preflight import preflight
from monai_attention.finetune.preprocessing import planned_preprocessing
from tests.finetune import make_dataset as make

SHAPE = (60, 20, 12)


def cohort(root, low, high, channel, axcodes="RAS", mm=(1.0, 1.5, 4.0)):
    """Two cases, spacings given along R, A, S: background is `low`, the labelled box runs from 0 to `high`."""
    turned = nibabel.orientations.axcodes2ornt(axcodes)
    for name in ("a", "b"):
        image = np.full(SHAPE, low, np.float32)
        image[0, 0, :8] = np.arange(8) + (3.0 if name == "a" else 5.0)  # no two images are equal
        labels = np.zeros(SHAPE, np.uint8)
        labels[10:30, 5:15, 3:9] = 1
        image[labels > 0] = np.linspace(0, high, 20 * 10 * 6)
        upright = [nibabel.Nifti1Image(array, np.diag([*mm, 1.0])) for array in (image, labels)]
        for kind, one in zip(("images", "labels"), upright, strict=True):
            stored = one.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(one.affine), turned))
            make.put(root / f"{kind}Tr" / f"{name}.nii.gz", np.asarray(stored.dataobj), stored.affine)
    items = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("a", "b")]
    make.describe(root, {"modality": {"0": channel}, "labels": {"0": "background", "1": "liver"}, "training": items})
    return preflight(find_labelled([root]))


@pytest.mark.parametrize("axcodes", ["RAS", "SLP"])
def test_spacing_is_the_cohorts_unless_a_window_would_see_too_little(tmp_path, axcodes):
    spacing, made = planned_preprocessing(cohort(tmp_path, 0, 100, "MR", axcodes), (10, 16, 16))
    assert spacing == [2.0, 1.5, 4.0]  # a third of 60 mm in 10 voxels; the others as they are
    assert made["transforms"][-1]["_target_"] == "ScaleIntensityRangePercentilesd"


@pytest.mark.parametrize(("low", "channel"), [(0, "CT"), (-1000, "image")])
def test_ct_is_known_by_name_or_air_and_scaled_alike_for_all(tmp_path, low, channel):
    (*_, scaling) = planned_preprocessing(cohort(tmp_path, low, 200, channel), (16, 16, 16))[1]["transforms"]
    assert scaling["_target_"] == "ScaleIntensityRanged"
    assert scaling["a_min"] == pytest.approx(1.0, abs=0.01)  # percentiles 0.5 and 99.5 of 0 to 200
    assert scaling["a_max"] == pytest.approx(199.0, abs=0.01)


def test_what_no_one_calls_ct_is_scaled_by_itself(tmp_path):
    (*_, scaling) = planned_preprocessing(cohort(tmp_path, -400, 200, "image"), (16, 16, 16))[1]["transforms"]
    assert scaling["_target_"] == "ScaleIntensityRangePercentilesd"
