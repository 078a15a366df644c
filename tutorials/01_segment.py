# %% [markdown]
# # Segment a volume, and know whether to trust the result
#
# This tutorial makes a phantom head (formulas, no patient), segments it with the packaged brain bundle, and looks at
# everything that comes out. It runs on two CPU cores in about a minute. Put the path of your own head MRI in place of
# the phantom's to segment that: NIfTI, NRRD, MetaImage, a DICOM folder or a zip of one.

# %%
import json
import os
import tempfile
from pathlib import Path

import nibabel
import numpy as np

import monai_attention
from monai_attention import bundles
from monai_attention.inference.demo import make_phantom
from monai_attention.io.check import check, format_table

work = Path(os.environ.get("TUTORIAL_OUTPUT") or tempfile.mkdtemp(prefix="segment-"))

# %% [markdown]
# ## 1. What is there to segment with?
# A bundle is a folder of configuration, weights and a card. `info` reads it as data; nothing in it is run.

# %%
info = bundles.info("brain_mri_tissue_flexunetr")
print(info.task)
for label, name in info.classes.items():
    print(f"  {label}  {name}")
print("accepts:", info.requirements)

# %% [markdown]
# ## 2. Is the input fit for it?
# `check` judges a cohort in seconds, from the headers; with `headers_only=False` (`--full`) it reads the voxels, too.
# The broken file below is the first half of the good one, which its header does not tell: many readers would fill the
# rest with zeros and go on.

# %%
head = make_phantom(work / "in" / "head.nii.gz", spacing=2.0)
(work / "in" / "broken.nii.gz").write_bytes(head.read_bytes()[: head.stat().st_size // 2])
print(format_table(check([work / "in"], requirements=info.requirements, headers_only=False)))

# %% [markdown]
# ## 3. Segment
# One call does the cohort: one verdict a case, and a bad case never stops the rest. On the command line:
#
#     monai-attention segment in/ -o out

# %%
results = monai_attention.segment(work / "in", work / "out")
for result in results:
    print(result.case_id, result.verdict, result.code, result.remedy)
    for name, ml in result.volumes_ml.items():
        print(f"  {name:24} {ml:8.1f} mL")

# %% [markdown]
# ## 4. The labels lie on the grid of the input
# The network works at 2 mm in its own orientation; the labels come back by interpolating its probabilities on the
# voxels of the input, so that they can be laid over the scan in any viewer.

# %%
segmented = next(result for result in results if result.verdict != "refused")
labels, image = nibabel.load(segmented.outputs["labels"]), nibabel.load(head)
assert labels.shape == image.shape
assert np.allclose(labels.affine, image.affine)
print("classes found:", np.unique(np.asarray(labels.dataobj)))

# %% [markdown]
# ## 5. What a run leaves behind
# `run.json` says with which versions and weights the labels were made, how long each phase took and how much memory it
# needed. `preview.png` shows three planes; `report.html` shows all cases on one page. Nothing names the patient.

# %%
record = json.loads((work / "out" / segmented.case_id / "run.json").read_text())
print(json.dumps({key: record[key] for key in ("verdict", "geometry", "seconds", "bundle")}, indent=2))
print("look at", work / "out" / "report.html")

# %% [markdown]
# ## 6. Where is the network unsure?
# With `uncertainty=True` (`--uncertainty`) each case also gets `entropy.nii.gz`: 0 where one class has all of the
# probability, 1 where all classes have the same. It orders voxels by how much they deserve a look; of mistakes made
# with conviction it knows nothing.

# %%
(unsure,) = monai_attention.segment(head, work / "unsure", uncertainty=True)
entropy = nibabel.load(unsure.outputs["entropy"]).get_fdata()
border = np.abs(np.gradient(np.asarray(labels.dataobj, float))).max(axis=0) > 0
print(f"mean entropy at borders {entropy[border].mean():.2f}, elsewhere {entropy[~border].mean():.2f}")
assert entropy[border].mean() > entropy[~border].mean()

# %% [markdown]
# ## 7. Run it again
# Finished cases are kept; only the refused one is tried again. So an interrupted cohort goes on where it stopped.

# %%
again = monai_attention.segment(work / "in", work / "out")
print({result.case_id: "kept" if result.resumed else "tried again" for result in again})
assert [result.resumed for result in again] == [result.verdict != "refused" for result in again]
