"""Numbers that published networks gave, and whether ours give them too.

A fixture is `<name>.json` and `<name>.npz`. The json holds the original's configuration, its state dict's keys and
shapes, and the L2 norms of its gradients (loss: sum over the outputs of their mean square); the npz holds its outputs,
every k-th voxel of each axis (`output_stride`), and the inputs that are not drawn. Weights and other inputs are drawn
from a generator whose stream numpy guarantees, seeded by the CRC-32 of their names.

The original's weights go through our conversion with gradients, so that gradients are compared key by key in the
original's own terms, whatever the conversion does.
"""

import functools
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
from monai_attention.networks.flex_swin_unetr import FlexSwinUNETR
from monai_attention.networks.flex_unetr import FlexUNETR
from monai_attention.networks.nnformer import NNFormer, SkipBlock
from monai_attention.networks.transmorph import ScrambledTransMorph, SplineTransMorph, TransMorph
from monai_attention.registration.bspline import bspline
from monai_attention.registration.fields import warp
from monai_attention.registration.model import RegistrationModel
from monai_attention.registration.published import TransMorphDiff, TransMorphOasis, TransMorphSpline, off_place

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
        return self.outputs <= 1 and self.gradients <= 1


def names(folder=FOLDER):
    """Fixtures in a folder that are for networks we have."""
    return sorted(path.stem for path in Path(folder).glob("*.json") if _maker(path.stem))


def compare(name, folder=FOLDER):
    """Run our network on a fixture."""
    spec, arrays = fixture(name, folder)
    outputs, loss, gradients = run(spec, inputs(spec, arrays))
    worst = 0.0
    for key, output in zip(spec["outputs"], outputs, strict=True):
        expected = torch.from_numpy(arrays[f"out_{key}"]).double()
        allowed = OUTPUT_TOLERANCE["atol"] + OUTPUT_TOLERANCE["rtol"] * expected.abs()
        far = ((_thinned(output, spec["output_stride"]) - expected).abs() / allowed).max().item()
        worst = float(np.maximum(worst, far))  # NaN stays NaN, and is not within
    errors = [abs(loss / spec["backward"]["loss"] - 1)]
    norms = {key: norm or 0.0 for key, norm in spec["backward"]["grad_l2"].items()}  # null: never used
    errors += [abs(gradients[key] - norm) / (norm + 1e-4 * max(norms.values())) for key, norm in norms.items()]
    return Difference(worst, float(np.max(errors)) / GRADIENT_TOLERANCE[spec["backward"].get("dtype", "float32")])


def run(spec, given):
    """Outputs of our network with the original's weights in float64, the loss, and its gradients' norms by key."""
    ours, layout = network(spec)
    ours.double()
    state = weights(spec)
    leaves = {key: x.double().requires_grad_() for key, x in state.items() if x.is_floating_point()}
    converted = _convert({**state, **leaves}, layout, ours)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.state_dict().items()}
    # For logits at all scales; at rates of 0 nothing else differs in training.
    ours.train(spec["config"].get("deep_supervision", False))
    outputs = functional_call(ours, converted, tuple(x.double() for x in given))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum(output.square().mean() for output in outputs)
    loss.backward()
    norms = {key: 0.0 if leaf.grad is None else leaf.grad.norm().item() for key, leaf in leaves.items()}
    return [output.detach() for output in outputs], loss.item(), norms


def _thinned(x, stride):
    """Every k-th voxel of each axis."""
    return x[(slice(None), slice(None)) + (slice(None, None, stride or 1),) * (x.ndim - 2)]


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
    """Row of the bias table for each pair of tokens, as nnFormer numbers them; its windows are (a, b, b)."""
    if "nnFormer" not in source:
        return torch.zeros(tokens, tokens, dtype=torch.int64)  # others number as we do, and we do not read it
    a, b = next(
        (tokens // b**2, b)
        for b in range(1, tokens + 1)
        if tokens % b**2 == 0 and (2 * (tokens // b**2) - 1) * (2 * b - 1) ** 2 == rows
    )
    place = np.array(list(np.ndindex(a, b, b)))
    offset = place[:, None] - place[None] + [a - 1, b - 1, b - 1]
    return torch.from_numpy((offset * (3 * b - 1, 2 * b - 1, 1)).sum(-1))


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
    if isinstance(network, _Registration):
        whole = convert(state, layout, network.model.network).state
        return {f"model.network.{key}": x for key, x in whole.items()}
    if not isinstance(network, _SkipBlock):
        return convert(state, layout, network).state
    whole = {key.replace("blk.", "decoder.layers.0.blocks.0."): x for key, x in state.items()}
    stub = nn.ModuleDict({"decoder": nn.ModuleList([nn.ModuleDict({"mix": network.block})])})
    named = LAYOUTS[layout].convert(whole, stub).state
    return {key.replace("decoder.0.mix.", "block."): x for key, x in named.items()}


class _Registration(nn.Module):
    """TransMorph as the original has it: the moving image, warped, and fields in the original's units."""

    def __init__(self, model, fields):
        super().__init__()
        self.model, self.fields = model, fields

    def forward(self, *images):
        moving, fixed = images[0].chunk(2, dim=1) if len(images) == 1 else images
        ddf = self.model(moving, fixed)
        return warp(moving, ddf), *self.fields(self.model, ddf, moving, fixed)


def _ends(ddf):
    """Last voxel of each axis, a number for each component."""
    return torch.tensor([n - 1 for n in ddf.shape[2:]], dtype=ddf.dtype).view(1, 3, 1, 1, 1)


def _displacement(model, ddf, moving, fixed):
    return (ddf,)


def _displacement_between_centres(model, ddf, moving, fixed):
    """In voxels of centres that are spread to the image's edges."""
    return ((ddf - off_place(ddf.shape[2:], like=ddf)) * _ends(ddf) / (_ends(ddf) + 1),)


def _from_minus_1_to_1(model, ddf, moving, fixed):
    """Places, and displacements, where the image's centres reach from -1 to 1."""
    displacement = 2 * ddf / _ends(ddf)
    axes = [torch.linspace(-1, 1, n, dtype=ddf.dtype) for n in ddf.shape[2:]]
    return displacement + torch.stack(torch.meshgrid(*axes, indexing="ij")), displacement


def _velocity_and_displacement(model, ddf, moving, fixed):
    size = ddf.shape[2:]
    return bspline(model.predict(moving, fixed)[0], model.control_spacing, size), ddf - off_place(size, like=ddf)


def _transmorph(config, kind=TransMorph, model=RegistrationModel, fields=_displacement, layout="transmorph", **options):
    position = {(True, False): "learned", (False, True): "sinusoidal"}.get((config["ape"], config["spe"]), "relative")
    network = kind(
        config["in_chans"],
        window=config["window_size"][:3],
        feature_size=config["embed_dim"],
        depths=config["depths"],
        num_heads=config["num_heads"],
        position=position if config.get("rpe", True) else "none",
        conv_skips=config["if_convskip"],
        attention_skips=config["if_transskip"],
        drop_path_rate=0.0,
        **options,
    )
    return _Registration(model(network), fields), layout


_flow = functools.partial(RegistrationModel, integration_steps=7, padding="zeros")
_diff = functools.partial(_transmorph, fields=_from_minus_1_to_1, out_channels=6)
_oasis = functools.partial(_transmorph, model=TransMorphOasis, fields=_displacement_between_centres)
_spline = functools.partial(_transmorph, kind=SplineTransMorph, model=TransMorphSpline)


def _swin(config, *, merging="monai_1.5", layout="1.5", window=(7, 7, 7)):
    network = FlexSwinUNETR(
        config["in_channels"],
        config["out_channels"],
        window=config.get("window_size", window),
        feature_size=config["feature_size"],
        residual_stages=config.get("use_v2", False),
        merging=merging,
    )
    return network, f"monai_swinunetr_{layout}"


_MAKERS = {
    "monai14_swinunetr": lambda config: _swin(config, merging="monai_0.9", layout="0.9"),
    "monai_swinunetr_mergingv2": lambda config: _swin(config, merging="raster", layout="mergingv2"),
    "monai_swinunetr": _swin,
    "transmorph_diff_orgres": functools.partial(_diff, model=_flow),
    "transmorph_diff": functools.partial(_diff, model=TransMorphDiff, half_resolution=True),
    "transmorph_oasis": functools.partial(_oasis, half_resolution=True),
    "transmorph_bayes_ixi": functools.partial(_transmorph, layout="transmorph_bayes"),
    "transmorph_bayes_main": functools.partial(
        _transmorph, kind=ScrambledTransMorph, layout="transmorph_bayes_scrambled"
    ),
    "transmorph_bspl": functools.partial(_spline, fields=_velocity_and_displacement, layout="transmorph_bspl"),
    **{
        f"transmorph_{form}": _transmorph
        for form in ("small", "tiny", "lrn", "sin", "norpe", "noconvskip", "notransskip", "pad", "batch2")
    },
    "monai_unetr": _unetr,
    "nnformer_tumor": lambda config: _nnformer(config, decoder_heads=config["num_heads"][1:]),
    "nnformer_synapse": _nnformer,
    "nnformer_acdc": lambda config: _nnformer(config, wrap=True),
    "nnformer_block_kv": lambda config: (_SkipBlock(config), "nnformer"),
}


def _maker(name):
    return next((make for prefix, make in _MAKERS.items() if name.startswith(prefix)), None)


def keep(name, source, target):
    """Write a copy of a fixture that is small enough for the repository.

    Inputs that cannot be drawn again are too large for that: then ours, which must agree with the fixture, gives the
    outputs and gradients for inputs that can.
    """
    assert compare(name, source).within
    spec, arrays = fixture(name, source)
    kept = {key: spec[key] for key in ("name", "source", "config", "overrides", "tied", "state_dict")}
    kept["inputs"] = {key: one | {"kind": "normal"} for key, one in spec["inputs"].items()}
    if kept["inputs"] == spec["inputs"]:
        backward = spec["backward"]
        outputs = {key: torch.from_numpy(arrays[f"out_{key}"]) for key in spec["outputs"]}
        stride = spec["output_stride"] or 1
    else:
        made, loss, norms = run(kept | {"outputs": spec["outputs"]}, inputs(kept, {}))
        backward = {"dtype": "float64", "loss": loss, "grad_l2": norms}
        outputs, stride = dict(zip(spec["outputs"], made, strict=True)), 1
        kept["source"] += "; these numbers are ours for other inputs"
    step = max(1, math.ceil((sum(x.numel() for x in outputs.values()) / 2000) ** (1 / 3)))
    kept["output_stride"] = stride * step
    kept["outputs"] = spec["outputs"]
    norms = {key: value and float(f"{value:.8g}") for key, value in backward["grad_l2"].items()}
    kept["backward"] = backward | {"grad_l2": norms}
    Path(target).mkdir(parents=True, exist_ok=True)
    (Path(target) / f"{name}.json").write_text(json.dumps(kept, separators=(",", ":")))
    small = {f"out_{key}": _thinned(x, step).float().numpy() for key, x in outputs.items()}
    np.savez_compressed(Path(target) / f"{name}.npz", **small)
