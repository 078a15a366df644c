# %% [markdown]
# # Fine-tune a bundle on your own cases
#
# Five labelled cases here, heads made of formulas: no download, no patient. With real ones only the folder differs:
#
#     monai-attention check data/ --labels -o data.html
#     monai-attention finetune data/ -o my_bundle --time 4h
#     monai-attention evaluate my_bundle other_data/ -o evaluation
#
# The dataset may be paired folders, MSD or nnU-Net with a `dataset.json`, BIDS, or a CSV.

# %%
from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import nibabel
import numpy as np

from monai_attention import bundles, segment
from monai_attention.finetune.dataset import find_labelled
from monai_attention.finetune.preflight import preflight
from monai_attention.finetune.run import finetune
from monai_attention.synthesis.phantom import T1, head_image

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A cohort
# Heads at 3 mm; what is to be found is the fluid and the cerebellum, whatever the source bundle calls them.

# %%
FOUND = {"ventricles": (4, 43), "cerebellum": (7, 8, 46, 47)}
for name in ("images", "labels"):
    (folder / "data" / name).mkdir(parents=True)
for k in range(5):
    darker = {label: value * (0.8 + 0.1 * k) for label, value in T1.items()}
    image, labels, affine = head_image(3.0, brightness=darker, seed=k)
    target = sum(number * np.isin(labels, values) for number, values in enumerate(FOUND.values(), start=1))
    nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"data/images/head{k}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(target.astype(np.uint8), affine), folder / f"data/labels/head{k}.nii.gz")

# %% [markdown]
# ## Look before training
# Every case is read once and judged: grids, values, empty maps, one person in two splits.

# %%
found = preflight(find_labelled([folder / "data"]))
print([one.verdict.verdict for one in found.cases], found.volumes_ml())

# %% [markdown]
# ## Train
# The plan is made from the data and from what a step was measured to take; it stands in the new bundle's `train.json`.
# Half a minute is enough to see it work, not to be any good; to train the last layer alone is the cheapest.

# %%
result = finetune(folder / "data", folder / "head_mri_fluid_flexunetr", method="head", seconds=30)
print(json.dumps(result.story["plan"], indent=2))
print("\n".join(result.story["weights"]))
with (result.bundle / "runs/fold_0/epochs.csv").open() as table:
    for row in csv.DictReader(table):
        print(row)
print(f"Dice of the held-out head: {result.score:.2f}")

# %% [markdown]
# ## Use it
# It is a bundle like any other; `python -m monai.bundle run` trains and runs it as well.

# %%
print(bundles.info(result.bundle).classes)
(one,) = segment(folder / "data/images/head0.nii.gz", folder / "out", bundle=result.bundle)
print(one.verdict, one.code, {name: round(ml) for name, ml in one.volumes_ml.items()})
assert one.verdict != "refused"
