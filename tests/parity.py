"""Numbers that published networks give, kept small: how to refill their weights and inputs without their code.

Each `tests/data/parity/<name>.json` holds the original's configuration, its state dict's keys and shapes, and the L2
norms of its gradients in float64 (loss: mean square of the output); `<name>.npz` holds every `stride`-th voxel of its
output. Weights and inputs are drawn from a generator whose stream numpy guarantees, seeded by the key's CRC-32.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "data/parity"


def fixture(name):
    """The description of a fixture and its stored output."""
    return json.loads((FOLDER / f"{name}.json").read_text()), torch.from_numpy(
        np.load(FOLDER / f"{name}.npz")["logits"]
    )


def normals(key, shape):
    """Standard normals that belong to a key."""
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)


def weights(spec):
    """The original's state dict, refilled."""
    return {key: torch.from_numpy(_value(key, shape)) for key, shape in spec["state_dict"]}


def _value(key, shape):
    n = normals(key, tuple(shape))
    if not key.endswith("weight"):
        return (0.1 * n).astype(np.float32)
    return (1 + 0.1 * n if len(shape) == 1 else n / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
