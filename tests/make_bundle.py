"""A bundle whose right answer is known: it labels every voxel brighter than a threshold."""

import hashlib
import json

import torch

THRESHOLD = 0.5


def threshold_bundle(folder, **options):
    """Write a bundle with one 1x1x1 convolution into `folder`, see `write_bundle`, and return the folder.

    Labels: 1 (`bright`) where the intensity, from 0 (darkest) to 1 (brightest voxel), is above `THRESHOLD`, else 0.
    """
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    slope = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1, 1)
    return write_bundle(folder, network, {"weight": 30 * slope, "bias": -30 * THRESHOLD * slope.flatten()}, **options)


def write_bundle(
    folder,
    network,
    weights,
    *,
    spacing=2.0,
    modality="MR",
    gate=None,
    plausible_ml=None,
    within_mm=None,
    channels=(1, 2),
):
    """Write a bundle for two classes: `network` is its `network_def`, `weights` the state dict."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "docs").mkdir()
    (folder / "LICENSE").write_text("Apache-2.0\n")
    (folder / "docs/README.md").write_text("A threshold, for tests.\n")
    torch.save(weights, folder / "models/model.pt")
    content = (folder / "models/model.pt").read_bytes()
    tensor = {"type": "image", "format": "magnitude", "spatial_shape": ["*", "*", "*"], "dtype": "float32"}
    metadata = {
        "schema": "meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": "made by a test"},
        "monai_version": "1.6.1",
        "pytorch_version": "2.13.0",
        "numpy_version": "2.0.0",
        "required_packages_version": {},
        "task": "threshold",
        "description": "labels what is bright",
        "authors": "a test",
        "copyright": "none",
        "network_data_format": {
            "inputs": {"image": {**tensor, "num_channels": channels[0], "value_range": [0, 1], "modality": modality}},
            "outputs": {
                "pred": {
                    **tensor,
                    "num_channels": channels[1],
                    "value_range": [0, 1],
                    "channel_def": {"0": "background", "1": "bright", "2": "none"}
                    if channels[1] == 3
                    else {"0": "background", "1": "bright"},
                }
            },
        },
        "gate": {"modalities": [modality], "channels": 1, "spacing_mm": [0.2, 20.0], **(gate or {})},
        "plausible_ml": plausible_ml or {},
        "within_mm": within_mm or {},
        "weights": {"models/model.pt": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}},
    }
    inference = {
        "network_def": network,
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [spacing] * 3},
                {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 1.0},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0.25},
    }
    (folder / "configs/metadata.json").write_text(json.dumps(metadata))
    (folder / "configs/inference.json").write_text(json.dumps(inference))
    return folder
