# %% [markdown]
# # Networks: published weights, less memory, and a look at attention
#
# This tutorial loads weights of somebody else's network into ours and gets the same numbers, trains a step in less
# memory, puts an existing MONAI network on our attention, and looks at where a trained network looks. It downloads
# nothing and runs on two CPU cores in about a minute.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import UNETR, SwinUNETR
from PIL import Image

import monai_attention
from monai_attention import bundles
from monai_attention.blocks.attention import attention_maps
from monai_attention.checkpoints import load_weights
from monai_attention.errors import Refusal
from monai_attention.synthesis.phantom import head_image

work = Path(os.environ.get("TUTORIAL_OUTPUT") or tempfile.mkdtemp(prefix="networks-"))
torch.manual_seed(0)

# %% [markdown]
# ## 1. Somebody else's weights, the same numbers
# MONAI's `UNETR` stands for a checkpoint from the model zoo. `load_weights` knows the layout by its keys, loads every
# tensor or none, and reports what it left out: MONAI's network carries norms that it never uses.

# %%
theirs = UNETR(1, 2, img_size=(32, 32, 32), feature_size=8, hidden_size=48, mlp_dim=96, num_heads=4).eval()
torch.save({"state_dict": theirs.state_dict(), "epoch": 100}, work / "unetr.pt")

ours = monai_attention.FlexUNETR(
    1, 2, roi_size=(32, 32, 32), feature_size=8, hidden_size=48, mlp_size=96, num_heads=4
).eval()
report = load_weights(ours, work / "unetr.pt")
print("layout:", report.layout, "| never used:", report.dropped[0], "and", len(report.dropped) - 1, "more")

image = torch.randn(1, 1, 32, 32, 32)
with torch.no_grad():
    print("largest difference:", float((ours(image) - theirs(image)).abs().max()))
    print("a size the original refuses:", tuple(ours(torch.randn(1, 1, 41, 32, 56)).shape))

# %% [markdown]
# Some files do not say what they mean. SwinUNETR's weights from before MONAI 1.5 have the same keys as later ones, and
# merge patches in another order. Then you are asked.

# %%
torch.save(SwinUNETR(1, 2, feature_size=12).state_dict(), work / "swin.pt")
network = monai_attention.FlexSwinUNETR(1, 2, feature_size=12, merging="monai_0.9")
try:
    load_weights(network, work / "swin.pt")
except Refusal as refusal:
    print(refusal.code, "-", refusal.message)
print("loaded as", load_weights(network, work / "swin.pt", layout="monai_swinunetr_0.9").layout)

# %% [markdown]
# ## 2. The same training step in less memory
# What a network keeps for the backward pass is counted by hooks: the number is the same on every machine.
# `use_checkpoint` keeps the borders of stages only and computes the rest again.

# %%


def kept_megabytes(network, x):
    """Bytes of the tensors that autograd keeps, each storage once, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(x).square().mean()
    loss.backward()
    return sum(size for pointer, size in kept.items() if pointer not in own) / 2**20


x = torch.randn(1, 1, 64, 64, 32)
original = SwinUNETR(1, 2, feature_size=12)
plain = monai_attention.FlexSwinUNETR(1, 2, feature_size=12)
lean = monai_attention.FlexSwinUNETR(1, 2, feature_size=12, use_checkpoint=True)
for name, one in {"MONAI": original, "ours": plain, "ours, use_checkpoint": lean}.items():
    print(f"{name:24} {kept_megabytes(one.train(), x):7.1f} MB")

# %% [markdown]
# ## 3. An existing network on our attention
# `accelerate` copies a MONAI network with the same state dict and the same numbers. In a bundle it is one override:
#
#     --network '{"_target_": "monai_attention.accelerate", "network": "$@network_def.to(@device)"}'

# %%
fast = monai_attention.accelerate(original)
assert list(fast.state_dict()) == list(original.state_dict())
with torch.no_grad():
    print("largest difference:", float((fast.eval()(x) - original.eval()(x)).abs().max()))

# %% [markdown]
# ## 4. Where does it look?
# The packaged brain bundle on a phantom head: how much attention each patch gets from all others in the last block,
# averaged over heads; 1 is its fair share. Attention tells what is mixed, not why a voxel got its label.

# %%
trained = bundles.load("brain_mri_tissue_flexunetr").network
head = torch.from_numpy(head_image(2.0)[0].astype(np.float32))
head = (head / head.max()).clamp(0, 1)
centre = [slice(n // 2 - 32, n // 2 + 32) for n in head.shape]
crop = head[tuple(centre)][None, None]
with attention_maps(trained) as maps, torch.no_grad():
    trained(crop)
layer, last = list(maps.items())[-1]
grid = last.mean(dim=1).view(8, 8, 8)  # patches of 8 voxels in a window of 64
print(layer, "| attention a patch gets: from", round(float(grid.min()), 2), "to", round(float(grid.max()), 2))

# Attention gathers in few patches, so the picture shows its logarithm: the head, and in red where attention goes.
share = torch.nn.functional.interpolate(grid.log()[None, None], size=(64, 64, 64), mode="trilinear")[0, 0]
share = (share - share.min()) / (share.max() - share.min())
grey, red = crop[0, 0, :, :, 32], share[:, :, 32]
plain = torch.stack([grey, grey, grey], dim=-1)
shown = torch.stack([grey / 2 + red / 2, grey / 2, grey / 2], dim=-1)
picture = np.rot90((255 * torch.cat([plain, shown])).byte().numpy())
Image.fromarray(picture).resize((1024, 512)).save(work / "attention.png")
print("look at", work / "attention.png")
