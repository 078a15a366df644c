"""Numbers that published networks gave, and whether ours give them too.

A fixture is `<name>.json` and `<name>.npz`. The json holds the original's configuration, its state dict's keys and
shapes, and the L2 norms of its gradients (loss: sum over the outputs of their mean square); the npz holds its outputs,
every k-th voxel of each axis (`output_stride`), and the inputs that are not drawn. Weights and other inputs are drawn
from a generator whose stream numpy guarantees, seeded by the CRC-32 of their names.

The original's weights go through our conversion with gradients, so that gradients are compared key by key in the
original's own terms, whatever the conversion does.
"""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from monai_attention.checkpoints import convert
from monai_attention.layouts import LAYOUTS
from monai_attention.networks.flex_unetr import FlexUNETR
from monai_attention.networks.nnformer import NNFormer, SkipBlock

FOLDER = Path(__file__).parent / "data/parity"
OUTPUT_TOLERANCE = {"rtol": 1e-4, "atol": 5e-5}
GRADIENT_TOLERANCE = {"float64": 1e-6, "float32": 1e-2}
"""Relative, by the precision of the original's run: in float32 its own are up to 1 % off its float64 ones."""


@dataclass
class Difference:
    """How far ours is from the original: largest over all outputs or gradients, 1 at the tolerance."""

    outputs: float
    gradients: float

    @property
    def within(self):
        return max(self.outputs, self.gradients) <= 1


def names(folder=FOLDER):
    """Fixtures in a folder that are for networks we have."""
    return sorted(path.stem for path in Path(folder).glob("*.json") if _maker(path.stem))


def compare(name, folder=FOLDER):
    """Run our network on a fixture."""
    spec, arrays = fixture(name, folder)
    ours, layout = network(spec)
    ours.double()
    state = weights(spec)
    leaves = {key: x.double().requires_grad_() for key, x in state.items() if x.is_floating_point()}
    converted = _convert({**state, **leaves}, layout, ours)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.state_dict().items()}
    ours.train(len(spec["outputs"]) > 1)  # for logits at all scales; at rates of 0 nothing else differs in training
    outputs = functional_call(ours, converted, tuple(x.double() for x in inputs(spec, arrays)))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    stride = spec["output_stride"] or 1
    worst = 0.0
    for key, output in zip(spec["outputs"], outputs, strict=True):
        expected = torch.from_numpy(arrays[f"out_{key}"]).double()
        shown = output.detach()[(slice(None), slice(None)) + (slice(None, None, stride),) * (output.ndim - 2)]
        allowed = OUTPUT_TOLERANCE["atol"] + OUTPUT_TOLERANCE["rtol"] * expected.abs()
        worst = max(worst, ((shown - expected).abs() / allowed).max().item())
    loss = sum(output.square().mean() for output in outputs)
    loss.backward()
    tolerance = GRADIENT_TOLERANCE[spec["backward"].get("dtype", "float32")]
    errors = [abs(loss.item() / spec["backward"]["loss"] - 1)]
    norms = {key: norm or 0.0 for key, norm in spec["backward"]["grad_l2"].items()}  # null: never used
    for key, norm in norms.items():
        got = leaves[key].grad.norm().item() if leaves[key].grad is not None else 0.0
        errors.append(abs(got - norm) / (norm + 1e-4 * max(norms.values())))
    return Difference(worst, max(errors) / tolerance)


def fixture(name, folder=FOLDER):
    """Description and arrays of a fixture."""
    return json.loads((Path(folder) / f"{name}.json").read_text()), np.load(Path(folder) / f"{name}.npz")


def network(spec):
    """Our network for the original's configuration, with weights of its own, and the layout to convert from."""
    return _maker(spec["name"])(spec["config"])


def inputs(spec, arrays):
    """The original's inputs, in order."""
    for key, one in spec["inputs"].items():
        stored = f"in_{key}" in arrays
        yield torch.from_numpy(arrays[f"in_{key}"] if stored else _normals(one["seed_name"], one["shape"]))


def weights(spec):
    """The original's state dict, filled again."""
    shapes = {key: shape for key, shape, _ in spec["state_dict"]}
    state = {}
    for key, shape, dtype in spec["state_dict"]:
        if key in spec["tied"]:
            state[key] = state[spec["tied"][key]]
        elif key.endswith("relative_position_index"):
            state[key] = _relative_index(shape[0], shapes[key.replace("index", "bias_table")][0], spec["source"])
        elif dtype != "float32" or key.endswith("grid"):
            state[key] = torch.zeros(shape, dtype=getattr(torch, dtype))
        else:
            state[key] = torch.from_numpy(_value(key, shape) * np.float32(spec["overrides"].get(key, 1.0)))
    return state


def _normals(key, shape):
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape)).astype(np.float32)


def _value(key, shape):
    n, last = _normals(key, shape), key.rpartition(".")[2]
    if key.endswith(".A.weight"):
        return (0.25 + 0.05 * n).astype(np.float32)
    if last == "weight":
        return (1 + 0.1 * n if len(shape) == 1 else n / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return ((0.5 if last == "relative_position_bias_table" else 0.1) * n).astype(np.float32)


def _relative_index(tokens, rows, source):
    """Row of the bias table for each pair of tokens, as the original numbers them; its windows are (a, b, b)."""
    a, b = next(
        (tokens // b**2, b)
        for b in range(1, tokens + 1)
        if tokens % b**2 == 0 and (2 * (tokens // b**2) - 1) * (2 * b - 1) ** 2 == rows
    )
    place = np.array(list(np.ndindex(a, b, b)))
    offset = place[:, None] - place[None] + [a - 1, b - 1, b - 1]
    digits = (3 * b - 1, 2 * b - 1, 1) if "nnFormer" in source else ((2 * b - 1) ** 2, 2 * b - 1, 1)
    return torch.from_numpy((offset * digits).sum(-1))


# Our networks for the original's configurations


def _unetr(config):
    network = FlexUNETR(
        config["in_channels"],
        config["out_channels"],
        roi_size=config["img_size"],
        feature_size=config["feature_size"],
        hidden_size=config["hidden_size"],
        mlp_size=config["mlp_dim"],
        num_heads=config["num_heads"],
        qkv_bias=config.get("qkv_bias", False),
    )
    return network, "monai_unetr"


def _nnformer(config, *, decoder_heads=None, wrap=False):
    network = NNFormer(
        config["input_channels"],
        config["num_classes"],
        roi_size=config["crop_size"],
        patch_size=config["patch_size"],
        feature_size=config["embedding_dim"],
        depths=config["depths"],
        num_heads=config["num_heads"],
        decoder_heads=decoder_heads,
        window=config["window_size"],
        wrap=wrap,
        deep_supervision=config["deep_supervision"],
        drop_path_rate=0.0,
    )
    return network, "nnformer"


class _SkipBlock(nn.Module):
    """nnFormer's block that looks into the skip; the sum of skip and decoder is given apart, as to the original."""

    def __init__(self, config):
        super().__init__()
        window = [min(config["window_size"], *config["input_resolution"])] * 3
        self.grid = config["input_resolution"]
        self.block = SkipBlock(config["dim"], config["num_heads"], window=window, drop_path_rate=0.0, backend="auto")

    def forward(self, x, skip, up):
        x, skip, up = (tokens.unflatten(1, self.grid) for tokens in (x, skip, up))
        x = x + self.block._attend(self.block.norm1(up), self.block.norm1(skip))
        return (x + self.block.mlp(self.block.norm2(x))).flatten(1, -2)


def _convert(state, layout, network):
    if not isinstance(network, _SkipBlock):
        return convert(state, layout, network).state
    whole = {key.replace("blk.", "decoder.layers.0.blocks.0."): x for key, x in state.items()}
    stub = nn.ModuleDict({"decoder": nn.ModuleList([nn.ModuleDict({"mix": network.block})])})
    named = LAYOUTS[layout].convert(whole, stub).state
    return {key.replace("decoder.0.mix.", "block."): x for key, x in named.items()}


_MAKERS = {
    "monai_unetr": _unetr,
    "nnformer_tumor": lambda config: _nnformer(config, decoder_heads=config["num_heads"][1:]),
    "nnformer_synapse": _nnformer,
    "nnformer_acdc": lambda config: _nnformer(config, wrap=True),
    "nnformer_block_kv": lambda config: (_SkipBlock(config), "nnformer"),
}


def _maker(name):
    return next((make for prefix, make in _MAKERS.items() if name.startswith(prefix)), None)


def keep(name, source, target):
    """Write a copy of a fixture that is small enough for the repository."""
    spec, arrays = fixture(name, source)
    sizes = [math.prod(one["shape"]) for one in spec["outputs"].values()]
    stride = (spec["output_stride"] or 1) * max(1, math.ceil((sum(sizes) / 4000) ** (1 / 3)))
    kept = {
        key: spec[key] for key in ("name", "source", "config", "inputs", "outputs", "overrides", "tied", "state_dict")
    }
    kept["output_stride"] = stride
    norms = {key: value and float(f"{value:.7g}") for key, value in spec["backward"]["grad_l2"].items()}
    kept["backward"] = {"loss": spec["backward"]["loss"], "grad_l2": norms}
    step = slice(None, None, stride // (spec["output_stride"] or 1))
    outputs = {f"out_{key}": arrays[f"out_{key}"] for key in spec["outputs"]}
    small = {key: x[(slice(None), slice(None)) + (step,) * (x.ndim - 2)] for key, x in outputs.items()}
    given = {
        key: arrays[key] for key in arrays if key.startswith("in_") and spec["inputs"][key[3:]]["kind"] != "normal"
    }
    Path(target).mkdir(parents=True, exist_ok=True)
    (Path(target) / f"{name}.json").write_text(json.dumps(kept, separators=(",", ":")))
    np.savez_compressed(Path(target) / f"{name}.npz", **small, **given)
