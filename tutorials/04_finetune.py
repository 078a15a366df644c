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
# Heads at 3 mm; what is to be found is the fluid and the cerebellum. Paired folders say no names, so that the bundle
# calls them `class_1` and `class_2`; a `dataset.json` would name them, and what is named like a class of the source
# keeps its weights.

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
# ## With several GPUs
# One fold a GPU is the better use of them where the cohort is small: nothing is exchanged. Plan once, train each fold
# by itself, and let the last command train on all cases and judge. With SLURM, given a plan made by
# `monai-attention finetune data/ -o my_bundle --folds 5 --plan-only`:
#
#     #!/bin/bash
#     #SBATCH --array=0-4 --gpus=1 --cpus-per-task=8
#     monai-attention finetune data/ -o my_bundle --resume --fold $SLURM_ARRAY_TASK_ID -q
#
# and after it, as a job with `--dependency=afterok:ID`, `monai-attention finetune data/ -o my_bundle --resume -q`.
#
# One training, planned without `--folds`, takes several GPUs by torchrun, on one computer or, with a shared file
# system, on several:
#
#     #!/bin/bash
#     #SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32
#     srun torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-id=$SLURM_JOB_ID \
#         --rdzv-endpoint=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -1):29500 \
#         -m monai_attention finetune data/ -o my_bundle --resume -q
#
# Each process takes its share of the crops of a step: those that one process would take, so the training is the same. A
# batch that cannot be divided grows until it can: with more processes than `batch_size` each has one crop. Then plan
# with torchrun as well (or edit `train.json`), for the learning rate may want to be larger. `--resume` may go on with
# another number of processes. The same holds for `torchrun ... -m monai.bundle run --config_file
# my_bundle/configs/train.json --bundle_root my_bundle`.
#
# ## Watch it
# `runs/*/epochs.csv` grows by a row an epoch. With the extra, `pip install '.[tracking]'`, there is more:
# `tensorboard --logdir my_bundle/runs` draws what is logged wherever TensorBoard is installed, unless `train.json` says
# `"tensorboard": false`; with `"mlflow": "sqlite:///mlruns.db"`, or a server's address, MONAI's handler logs to MLflow.

# %% [markdown]
# ## Use it
# It is a bundle like any other; `python -m monai.bundle run` trains and runs it as well.

# %%
print(bundles.info(result.bundle).classes)
(one,) = segment(folder / "data/images/head0.nii.gz", folder / "out", bundle=result.bundle)
print(one.verdict, one.code, {name: round(ml) for name, ml in one.volumes_ml.items()})
assert one.verdict != "refused"
