"""A whole bundle, as MONAI's specification has it, around a small FlexUNETR with random weights.

Where the right labels must be known, take `tests/make_bundle.py` instead.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

NETWORK = {
    "_target_": "monai_attention.networks.flex_unetr.FlexUNETR",
    **{"in_channels": 1, "out_channels": 3, "roi_size": "@roi_size", "patch_size": 4, "feature_size": 4},
    **{"hidden_size": 16, "mlp_size": 16, "num_heads": 2, "depth": 2},
}
INFERENCE = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "dataset_dir": "images",
    "output_dir": "$@bundle_root + '/eval'",
    "files": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "roi_size": [16, 16, 16],
    "network_def": NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 2.0]},
            {"_target_": "monai.transforms.ScaleIntensityd", "keys": "image"},
            {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @files]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@roi_size", "overlap": 0.25},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}],
    },
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        **{"device": "@device", "val_data_loader": "@dataloader", "network": "@network", "inferer": "@inferer"},
        "val_handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    },
    "run": ["$@evaluator.run()"],
}
TENSOR = {"type": "image", "format": "magnitude", "spatial_shape": ["4*n", "4*n", "4*n"], "dtype": "float32"}
METADATA = {
    "schema": "https://project-monai.github.io/schema/meta_schema_20240725.json",
    **{"version": "0.1.0", "changelog": {"0.1.0": "first"}, "name": "Test"},
    **{"monai_version": "1.6.1", "pytorch_version": "2.10.0", "numpy_version": "2.0.0"},
    "required_packages_version": {"monai_attention": "0.1.0"},
    **{"task": "Nothing", "description": "Made by a test", "authors": "A", "copyright": "C"},
    "gate": {"modalities": ["MR"], "spacing_mm": [0.5, 6], "min_extent_mm": 60},
    "network_data_format": {
        "inputs": {"image": TENSOR | {"num_channels": 1, "modality": "CT", "value_range": [0, 1]}},
        "outputs": {
            "pred": TENSOR
            | {"num_channels": 3, "value_range": [0, 1], "channel_def": {"0": "background", "1": "a", "2": "b"}}
        },
    },
}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=4), encoding="utf-8")
    return path


def make_bundle(
    folder: Path,
    inference: dict[str, Any] = INFERENCE,
    metadata: dict[str, Any] = METADATA,
    out_channels: int = NETWORK["out_channels"],
    in_channels: int = NETWORK["in_channels"],
) -> Path:
    from monai_attention.networks.flex_unetr import FlexUNETR

    torch.manual_seed(0)
    settings_ = {key: value for key, value in NETWORK.items() if key != "_target_"}
    settings_ |= {"roi_size": [16, 16, 16], "out_channels": out_channels, "in_channels": in_channels}
    (folder / "models").mkdir(parents=True)
    weights = folder / "models/model.pt"
    torch.save(FlexUNETR(**settings_).state_dict(), weights)
    record = {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "bytes": weights.stat().st_size}
    write(folder / "configs/metadata.json", metadata | {"weights": {"models/model.pt": record}})
    write(folder / "configs/inference.json", inference)
    write(folder / "LICENSE", "Apache-2.0")
    write(folder / "docs/README.md", "# Card")
    return folder
