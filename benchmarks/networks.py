"""The networks against the originals, and against networks that do the same job.

    python -m benchmarks.networks                                    # all
    python -m benchmarks.networks --only swin                        # those with "swin" in their title
    python -m benchmarks.networks --device cuda --bfloat16

Prints a table, and with `--save` writes it into README.md beside this file and the numbers into numbers.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.networks.blocks import DVF2DDF, Warp
from monai.networks.nets import UNETR, AttentionUnet, SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask
from monai.networks.nets.voxelmorph import VoxelMorph
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from benchmarks.side_by_side import FORWARD, TRAINING, Contestant, Machine, Measured, compare, machine, profile
from benchmarks.side_by_side import largest_difference as difference
from monai_attention import FlexSwinUNETR, FlexUNETR, MBANet, NNFormer, TransMorph, accelerate
from monai_attention.blocks.swin import SwinBlock, WindowAttention
from monai_attention.blocks.windows import cut
from monai_attention.checkpoints import convert
from monai_attention.registration.fields import integrate, warp

HERE = Path(__file__).parent
TOLERANCE, BFLOAT16_TOLERANCE = 1e-3, 5e-2


@dataclass(frozen=True)
class Case:
    """Contestants that do the same job; the first is the one the others are compared with.

    Args:
        title: what the table calls it.
        shape: of the input.
        contestants: see `Contestant`.
        same: whether they have the same weights, and so must give the same numbers.
        original_saved: bytes that the original saves, counted once with its authors' code, if it cannot be installed.
        rounds: timed calls at most.
    """

    title: str
    shape: tuple[int, ...]
    contestants: tuple[Contestant, ...]
    same: bool = True
    original_saved: float | None = None
    rounds: int = 100


def _with_weights(original: Callable[[], nn.Module], layout: str, ours: Callable[[], nn.Module]) -> nn.Module:
    state = original().state_dict()  # first, so that it draws the numbers that the original alone draws
    network = ours()
    network.load_state_dict(convert(state, layout, network).state)
    return network


def _accelerated(original: Callable[[], nn.Module]) -> nn.Module:
    return accelerate(original())


def _built(network: Callable[[], nn.Module]) -> nn.Module:
    return network()


def _ours(
    network: Callable[..., nn.Module], build: Callable[[Callable[[], nn.Module]], nn.Module] = _built
) -> tuple[Contestant, ...]:
    """Ours as it is, with cheap activations recomputed, and with all of them."""
    return (
        Contestant("ours", partial(build, network)),
        Contestant("ours, selective", partial(build, partial(network, use_checkpoint="selective")), (TRAINING,)),
        Contestant("ours, use_checkpoint", partial(build, partial(network, use_checkpoint=True)), (TRAINING,)),
    )


def _same(original: Callable[..., nn.Module], ours: Callable[..., nn.Module], layout: str) -> tuple[Contestant, ...]:
    """The original, and ours with its weights."""
    return Contestant("MONAI", original), *_ours(ours, partial(_with_weights, original, layout))


class _OriginalStage(nn.Module):
    """The attention of MONAI's two blocks of a stage, without and with shift, masks made beforehand."""

    def __init__(self, grid: int, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        window = (7, 7, 7)
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(hidden_size, num_heads, window, shift) for shift in ((0, 0, 0), (3, 3, 3))
        )
        for block in self.blocks:
            block.mlp = block.norm2 = nn.Identity()
        padded = [math.ceil(grid / w) * w for w in window]
        self.register_buffer("mask", compute_mask(padded, window, (3, 3, 3), "cpu"))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block.forward_part1(x, self.mask)
        return x


class _Stage(nn.Module):
    """The same on our core, with the same weights."""

    def __init__(self, grid: int, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        original = _OriginalStage(grid, hidden_size, num_heads)
        self.blocks = nn.ModuleList()
        for block in original.blocks:
            attention = WindowAttention(hidden_size, num_heads, window=(7, 7, 7), shift=block.shift_size, shrink=True)
            attention.qkv, attention.proj = block.attn.qkv, block.attn.proj
            attention.position.table = block.attn.relative_position_bias_table
            ours = SwinBlock(attention, hidden_size, hidden_size)
            ours.norm1, ours.norm2, ours.mlp = block.norm1, nn.Identity(), nn.Identity()
            self.blocks.append(ours)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block.attn(block.norm1(x))
        return x


def _voxelmorph() -> nn.Module:
    """The network from two images to a field; what MONAI puts around it is no part of TransMorph either."""
    return VoxelMorph().backbone


class _Fields(nn.Module):
    """Warping of an image, or integration of a velocity: the last three channels, times a parameter."""

    def __init__(self, ours: bool, integration: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.integration = integration
        if ours:
            self.integrate = partial(integrate, padding="zeros")
            self.warp = warp
        else:
            self.integrate = DVF2DDF(num_steps=7, mode="bilinear", padding_mode="zeros")
            self.warp = Warp("bilinear", "zeros")

    def forward(self, x: Tensor) -> Tensor:
        field = x[:, -3:] * self.scale
        return self.integrate(field) if self.integration else self.warp(x[:, :1], field)


def _fields(title: str, integration: bool) -> Case:
    contestants = (
        Contestant("MONAI", partial(_Fields, False, integration)),
        Contestant("ours", partial(_Fields, True, integration)),
    )
    return Case(title, (1, 4, 160, 192, 160), contestants)


def _attention_alone(edge: int) -> Case:
    grid = edge // 2
    return Case(
        f"window attention alone, stage 1 of SwinUNETR-48 at {edge}³",
        (1, grid, grid, grid, 48),
        (Contestant("MONAI", partial(_OriginalStage, grid, 48, 3)), Contestant("ours", partial(_Stage, grid, 48, 3))),
    )


_VOLUME = (1, 1, 96, 96, 96)
_UNETR = partial(UNETR, 1, 14, (96, 96, 96), feature_size=16, hidden_size=768)
_SWIN = partial(SwinUNETR, 1, 14, feature_size=48)
_SWIN_V2 = partial(SwinUNETR, 1, 14, feature_size=48, use_v2=True)
_OUR_SWIN = partial(FlexSwinUNETR, 1, 14, feature_size=48)
_ATTENTION_UNET = partial(AttentionUnet, 3, 4, 3, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2))
_SYNAPSE = partial(
    NNFormer,
    1,
    14,
    roi_size=(64, 128, 128),
    patch_size=(2, 4, 4),
    feature_size=192,
    num_heads=(6, 12, 24, 48),
)

CASES = (
    _fields("warping an image of 160×192×160", integration=False),
    _fields("integrating a velocity of 160×192×160", integration=True),
    _attention_alone(96),
    _attention_alone(128),
    Case("UNETR, 1 → 14 × 96³", _VOLUME, _same(_UNETR, partial(FlexUNETR, 1, 14), "monai_unetr")),
    Case(
        "SwinUNETR-48, 1 → 14 × 96³",
        _VOLUME,
        (
            *_same(_SWIN, _OUR_SWIN, "monai_swinunetr_1.5"),
            Contestant("MONAI, use_checkpoint", partial(_SWIN, use_checkpoint=True), (TRAINING,)),
            Contestant("MONAI, accelerate", partial(_accelerated, _SWIN)),
        ),
    ),
    Case(
        "SwinUNETR-48 v2, 1 → 14 × 96³",
        _VOLUME,
        _same(_SWIN_V2, partial(_OUR_SWIN, residual_stages=True), "monai_swinunetr_1.5"),
    ),
    Case(
        "MBANet against AttentionUnet, 4 → 3 × 96³",
        (1, 4, 96, 96, 96),
        (Contestant("MONAI AttentionUnet", _ATTENTION_UNET), *_ours(partial(MBANet, 4, 3))),
        same=False,
    ),
    Case(
        "TransMorph against VoxelMorph, 2 → 3 × 96×96×128",
        (1, 2, 96, 96, 128),
        (Contestant("MONAI VoxelMorph", _voxelmorph), *_ours(TransMorph)),
        same=False,
    ),
    Case("TransMorph, 2 → 3 × 160×192×224", (1, 2, 160, 192, 224), _ours(TransMorph), original_saved=9.38e9, rounds=1),
    Case(
        "NNFormer for organs, 1 → 14 × 64×128×128",
        (1, 1, 64, 128, 128),
        _ours(_SYNAPSE),
        original_saved=3.31e9,
        rounds=1,
    ),
)


@register_flop_formula(torch.ops.monai_attention.window_attention)
def _window_attention_flops(q, k, v, bias, num_heads, window, shift, keep, **_) -> int:  # type: ignore[no-untyped-def]
    """Two products of T x T x C for each box of T tokens."""
    batch, *grid, channels = q
    return sum(
        4 * batch * math.prod(boxes.number) * math.prod(boxes.size) ** 2 * channels
        for boxes in cut(grid, window, shift)
    )


def measure(case: Case, settings: Machine) -> dict[str, dict[str, Measured]]:
    """All contestants of a case, by mode and name.

    Raises:
        RuntimeError: contestants with the same weights gave different numbers.
    """
    results = {}
    for mode in (FORWARD, TRAINING):
        results[mode] = compare(case.contestants, case.shape, mode, settings)
        first, *others = results[mode].items()
        for name, measured in others:
            far = difference(first[1], measured)
            if case.same and far > (BFLOAT16_TOLERANCE if settings.bfloat16 else TOLERANCE):
                raise RuntimeError(f"{case.title}: {name} is {far:.1g} away from {first[0]}")
    return results


HEADER = """| contestant | parameters | GFLOP | forward | peak | training step | peak | saved for backward |
|---|---|---|---|---|---|---|---|"""


def table(case: Case, results: dict[str, dict[str, Measured]]) -> str:
    """Markdown: a line a contestant, absolute values and ratios to the first one's."""
    lines = [f"**{case.title}**", "", HEADER]
    first = next(iter(results[TRAINING]))
    for name, training in results[TRAINING].items():
        forward = results[FORWARD].get(name)
        saved_by_original = case.original_saved or results[TRAINING][first].saved_bytes
        cells = [name, f"{training.parameters / 1e6:.1f} M", f"{training.flops / 1e9:.0f}"]
        for measured, mode in ((forward, FORWARD), (training, TRAINING)):
            peer = results[mode][first]
            cells.append(_cell(measured and measured.median, peer.median, "s", 1))
            cells.append(_cell(measured and measured.peak_bytes, peer.peak_bytes, "GB", 1e9))
        cells.append(_cell(training.saved_bytes, saved_by_original, "GB", 1e9))
        lines.append("| " + " | ".join(cells) + " |")
    if case.original_saved:
        lines += ["", f"The original saves {case.original_saved / 1e9:.2f} GB, counted once with its authors' code."]
    return "\n".join(lines) + "\n"


def _cell(value: float | None, reference: float | None, unit: str, size: float) -> str:
    """A value, and how many times the reference it is."""
    if value is None:
        return ""
    ratio = f" ({value / reference:.2f}×)" if reference and reference != value else ""
    return f"{value / size:.3g} {unit}{ratio}"


def main() -> None:
    """Measure, print, and save if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose title has this in it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each contestant")
    parser.add_argument("--bfloat16", action="store_true", help="autocast")
    parser.add_argument("--profile", action="store_true", help="only print where the time of a forward goes")
    parser.add_argument("--save", action="store_true", help="into README.md and numbers.json beside this file")
    arguments = parser.parse_args()
    settings = Machine(arguments.device, arguments.threads, arguments.bfloat16, arguments.rounds)
    where = (
        f"{machine(settings)}, torch {torch.__version__}, MONAI {version('monai')}, Python {platform.python_version()}"
    )
    print(where, flush=True)
    for case in CASES:
        if arguments.only.lower() not in case.title.lower():
            continue
        if arguments.profile:
            for contestant in case.contestants:
                if FORWARD in contestant.modes:
                    print(case.title, profile(contestant, case.shape, settings), sep="\n", flush=True)
        else:
            limited = replace(settings, rounds=min(settings.rounds, case.rounds))
            results = measure(case, limited)
            text = f"{table(case, results)}\n{where}, timed calls: {limited.rounds}.\n"
            print("\n" + text, flush=True)
            if arguments.save:
                numbers = {mode: {name: asdict(m) for name, m in r.items()} for mode, r in results.items()}
                save(case.title, {"machine": where, "settings": asdict(limited), **numbers}, text)


def save(title: str, numbers: dict[str, Any], text: str, page: Path = HERE / "README.md") -> None:
    """Put the numbers of a case into numbers.json, and its table into a page between the marks with its title."""
    first, last = f"<!-- {title} -->\n", f"<!-- end of {title} -->\n"
    before, found, rest = page.read_text().partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise ValueError(f"expected the lines {first.strip()} and {last.strip()} in {page}, for the table between them")
    page.write_text(before + first + text + last + after)
    path = HERE / "numbers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, title: numbers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
