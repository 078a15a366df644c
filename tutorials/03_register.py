# %% [markdown]
# # Register two scans, and use the field elsewhere
#
# This tutorial makes a phantom head and the same head turned, bent and in another contrast, registers them, and does
# with the field what one does with fields: warp labels, go back, look where volume changed, hand it to ITK. It runs on
# two CPU cores in about a minute. Put your own scans in place of the phantom's: any formats, grids, contrasts.

# %%
import os
import tempfile
from pathlib import Path

import itk
import nibabel
import numpy as np
from scipy.ndimage import map_coordinates

import monai_attention
from monai_attention.registration import apply
from monai_attention.synthesis.phantom import T1, head_image

work = Path(os.environ.get("TUTORIAL_OUTPUT") or tempfile.mkdtemp(prefix="register-"))


def save(name: str, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write a NIfTI."""
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), affine), work / name)
    return work / name


# %% [markdown]
# ## 1. Two scans
# The moving head is bent by a few mm, turned by 12 degrees, shifted by 15 mm, and looks like a T2-weighted scan.

# %%
t2 = {label: 1 - value if value > 0.1 else value for label, value in T1.items()}
image, labels, affine = head_image(4.0)
other, _, _ = head_image(4.0, brightness=t2, seed=1)
places = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in image.shape], indexing="ij"))
for axis in range(3):
    places[axis] += 1.0 * np.sin(places[axis - 1] / 6)  # voxels of 4 mm
angle = np.radians(12)
turned = np.eye(4)
turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
turned[0, 3] = 15
fixed = save("fixed.nii.gz", image, affine)
fixed_labels = save("fixed_labels.nii.gz", labels, affine)
moving = save("moving.nii.gz", map_coordinates(other, places, order=1), turned @ affine)
moving_labels = save("moving_labels.nii.gz", map_coordinates(labels, places, order=0), turned @ affine)

# %% [markdown]
# ## 2. Register
# Affine first, from centres of mass and several rotations; then a smooth velocity, whose flow hardly folds. No network
# is needed. On the command line:
#
#     monai-attention register fixed.nii.gz moving.nii.gz -o registered --inverse

# %%
(result,) = monai_attention.register(
    fixed, moving, work / "registered", labels=moving_labels, fixed_labels=fixed_labels, spacing=4.0, inverse=True
)
print(result.verdict, result.code)
for name, value in result.figures.items():
    print(f"  {name:28} {value}")
assert result.figures["Dice, registered"] > result.figures["Dice, affine"]
assert result.figures["folds, %"] == 0

# %% [markdown]
# `preview.png` shows the fixed scan, what lies on it before and after, and the bent grid; `report.html` has it on a
# page.

# %%
print("look at", work / "registered" / "report.html")

# %% [markdown]
# ## 3. The field is a file that other programs apply
# Five axes, intent 1007, LPS mm, on the fixed grid, affine part included: ITK, ANTs and Slicer read it as it is. With
# ANTs:
#
#     antsApplyTransforms -d 3 -i moving.nii.gz -r fixed.nii.gz -t field.nii.gz -o warped.nii.gz

# %%
stored = itk.imread(result.outputs["field"], itk.Vector[itk.F, 3])
field = itk.image_view_from_array(itk.array_from_image(stored).astype(float), ttype=itk.Image[itk.Vector[itk.D, 3], 3])
field.CopyInformation(stored)  # ITK's Python transforms want double
transform = itk.DisplacementFieldTransform[itk.D, 3].New()
transform.SetDisplacementField(field)
reference = itk.imread(fixed, itk.D)
theirs = itk.resample_image_filter(
    itk.imread(moving, itk.D), transform=transform, use_reference_image=True, reference_image=reference
)
ours = np.asarray(nibabel.load(result.outputs["warped"]).dataobj)
difference = np.abs(itk.array_from_image(theirs).T - ours)[3:-3, 3:-3, 3:-3]
print(f"ITK's warp and ours differ by at most {difference.max():.2g}, of {ours.max():.0f}")
assert difference.max() < 0.01 * ours.max()

# %% [markdown]
# ## 4. Warp something else, go back, look at volumes
# The same as the verbs `warp`, `invert` and `jacobian`. Where a field folds at more than 0.1 % of voxels, there
# is no inverse, and it is refused.

# %%
file = result.outputs["field"]
apply.warp(moving_labels, file, work / "again.nii.gz", mode="nearest")
worst = apply.invert(file, work / "back.nii.gz", grid=moving)
print(f"there and back is off by at most {worst:.3f} mm")
print("volume changes by factors", apply.jacobian(file, work / "jacobian.nii.gz"))
