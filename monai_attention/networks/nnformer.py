"""nnFormer: window attention in encoder and decoder, convolutions between scales, attention from skips.

Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE Transactions on Image
Processing 32 (2023), doi:10.1109/TIP.2023.3293771, arXiv:2109.03201.

Differences from the paper and from the authors' code:
- any input size: the image is zero-padded at its end to whole patches (and to one token at the coarsest scale), the
  grid of tokens to whole windows, and an odd grid is halved downwards; the original takes its crop size only;
- every relative position has a bias of its own; in the original's table different positions share rows;
- heads for deep supervision are always there; the code for tumours, organs and hearts is one, in 2-D and 3-D;
- at the start of training what comes from coarser stages is as strong as the skips, see `_even`: it learns faster;
- windows of 128 tokens and more keep no score matrix for the backward pass, and shifted windows need no mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.drop_path import DropPath
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_attention.blocks.attention import Mlp, check_heads
from monai_attention.blocks.convolution import thin_in_float32
from monai_attention.blocks.patches import Unpatch, crop_to, pad_to_multiple
from monai_attention.blocks.recompute import run
from monai_attention.blocks.swin import RelativePosition, rising_rates, swin_blocks
from monai_attention.blocks.window_attention import received_attention, window_attention
from monai_attention.blocks.windows import crop_grid, pad_grid


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, *G) -> (B, *G, C)."""
    return x.movedim(1, -1)


def to_channels(x: Tensor) -> Tensor:
    """(B, *G, C) -> (B, C, *G)."""
    return x.movedim(-1, 1)


class ConvEmbedding(nn.Module):
    """Tokens from overlapping convolutions, in two steps that share the patch's stride.

    Shape: (B, in_channels, *S) -> (B, *S / patch_size, hidden_size).
    """

    def __init__(self, in_channels: int, hidden_size: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        conv, half = Conv["conv", len(patch_size)], hidden_size // 2
        first = tuple(min(p, 2) for p in patch_size)
        second = tuple(p // f for p, f in zip(patch_size, first, strict=True))
        self.convs = nn.ModuleList(
            conv(m, n, kernel_size=3, stride=stride, padding=1)
            for m, n, stride in (
                (in_channels, half, first),
                (half, half, 1),
                (half, hidden_size, second),
                (hidden_size, hidden_size, 1),
            )
        )
        self.norms = nn.ModuleList(nn.LayerNorm(n) for n in (half, half, hidden_size, hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, GELU and normalise three times; the fourth time without GELU."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = to_tokens(conv(x))
            x = norm(F.gelu(x) if i < 3 else x)
            x = to_channels(x)
        return to_tokens(x)


class Halving(nn.Module):
    """GELU, normalisation, and a convolution that halves the axes of stride 2, downwards, and doubles the channels.

    Shape: (B, *G, C) -> (B, *floor(G / stride), 2 C).
    """

    def __init__(self, hidden_size: int, stride: Sequence[int]) -> None:
        super().__init__()
        kernel = [3 if s == 2 else 1 for s in stride]
        self.norm = nn.LayerNorm(hidden_size)
        self.conv = Conv["conv", len(stride)](hidden_size, 2 * hidden_size, kernel_size=kernel, stride=tuple(stride))

    def forward(self, x: Tensor) -> Tensor:
        """Halve the grid."""
        x = to_channels(self.norm(F.gelu(x)))
        pads = [int(s == 2 and n % 2 == 0) for n, s in zip(x.shape[2:], self.conv.stride, strict=True)]
        return to_tokens(self.conv(F.pad(x, [p for pad in reversed(pads) for p in (pad, pad)])))


class EncoderStage(nn.Module):
    """Blocks of window attention, and what leaves them: the skip, normalised, and the halved grid."""

    def __init__(
        self, hidden_size: int, blocks: nn.ModuleList, halving: Halving | None, use_checkpoint: bool | str
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = nn.LayerNorm(hidden_size)
        self.halving = halving
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Halved grid (the same as the skip if there is nothing coarser), and skip."""
        for block in self.blocks:
            x = run(block, x, checkpoint=self.use_checkpoint)
        skip = self.norm(x)
        return (run(self.halving, x, checkpoint=self.use_checkpoint) if self.halving else skip), skip


class SkipBlock(nn.Module):
    """Transformer block whose queries are the decoder's tokens themselves, and whose keys and values the skip's.

    Shape: decoder's tokens (B, *G, C), skip (B, *G, C) -> (B, *G, C).
    """

    def __init__(
        self, hidden_size: int, num_heads: int, *, window: Sequence[int], drop_path_rate: float, backend: str
    ) -> None:
        super().__init__()
        check_heads(hidden_size, num_heads, backend)
        self.num_heads = num_heads
        self.window = tuple(window)
        self.backend = backend
        self.norm1 = nn.LayerNorm(hidden_size)
        self.position = RelativePosition(window, num_heads)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = Mlp(hidden_size, 4 * hidden_size)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Look up in the skip what belongs to each token, then transform each."""
        x = x + skip + self.drop_path(self._attend(self.norm1(x), self.norm1(skip)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attention_map(self, x: Tensor, skip: Tensor) -> Tensor:
        """How much attention each token of the skip gets, (B, h, *G); see `attention.attention_maps`."""
        return self._within_windows(self.norm1(x), self.norm1(skip), received_attention).movedim(-1, 1)

    def _attend(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.proj(self._within_windows(x, skip, functools.partial(window_attention, backend=self.backend)))

    def _within_windows(self, x: Tensor, skip: Tensor, function: Callable[..., Tensor]) -> Tensor:
        """`function` of queries, keys, values and bias on whole windows, cropped again."""
        grid = x.shape[1:-1]
        k, v = self.kv(pad_grid(skip, self.window)).chunk(2, dim=-1)
        q = pad_grid(x, self.window).to(k.dtype)
        bias, unshifted = self.position(math.prod(self.window)), [0] * len(grid)
        y = function(q, k, v, bias, num_heads=self.num_heads, window=self.window, shift=unshifted)
        return crop_grid(y, grid)


class DecoderStage(nn.Module):
    """Twice the resolution, attention to the skip, then blocks of shifted window attention.

    Shape: (B, *G / stride, 2 C) and the skip (B, *G, C) -> (B, *G, C).
    """

    def __init__(
        self, hidden_size: int, stride: Sequence[int], mix: SkipBlock, blocks: nn.ModuleList, use_checkpoint: bool | str
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * hidden_size)
        self.up = _even(Conv["convtrans", len(stride)](2 * hidden_size, hidden_size, kernel_size=stride, stride=stride))
        self.mix = mix
        self.blocks = blocks
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Tokens at the resolution of the skip."""
        x = to_tokens(self.up(to_channels(self.norm(x)), output_size=list(skip.shape[1:-1])))
        x = run(self.mix, x, skip, checkpoint=self.use_checkpoint)
        for block in self.blocks:
            x = run(block, x, checkpoint=self.use_checkpoint)
        return x


def _even(conv: nn.Module) -> nn.Module:
    """Let a transposed convolution whose kernels do not overlap begin with outputs as large as its inputs.

    Each output is a sum over the input channels alone; PyTorch's own start takes it for one over the output channels
    times the kernel, and makes it 3.5 times smaller in 3-D with half as many channels out.
    """
    nn.init.normal_(conv.weight, std=conv.weight.shape[0] ** -0.5)  # type: ignore[arg-type, index]
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class NNFormer(nn.Module):
    """nnFormer for any input size.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits.
        roi_size: crop the windows are planned for, in voxels; its length is the number of spatial axes (2 or 3).
        patch_size: voxels of a token along each axis, powers of two. An axis of patch size 1 (thick slices) is not
            halved between the first two stages.
        feature_size: channels at the finest stage, even; doubled at each coarser one.
        depths: blocks at each stage of the encoder, finest first; the decoder's stages are as deep.
        num_heads: heads at each stage of the encoder.
        decoder_heads: heads at each stage of the decoder, finest first, one fewer; None: as in the encoder. (Published
            weights for tumours have twice as many.)
        window: tokens of a window at each stage. A number is a cube, which shrinks to the shortest axis of the stage's
            grid for `roi_size`; such windows, and those as large as the grid, are not shifted.
        wrap: let shifted windows attend across the border of the image, as published weights for hearts expect.
        deep_supervision: in training, return logits of all decoder stages.
        drop_path_rate: of the last block in encoder and decoder each, rising from 0; in training only.
        use_checkpoint: recompute blocks and heads in the backward pass; see `blocks.recompute.run`.
        attention_backend: see `monai_attention.blocks.window_attention.window_attention`.

    Shape: (B, in_channels, *S) -> (B, out_channels, *S), any S; with deep supervision in training a tuple, finest
        first, of (B, out_channels, *ceil(S / 2**k)) (an axis that is not halved keeps its size).

    Parameters: 37.62 M with 4 -> 3 channels and the defaults.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        roi_size: Sequence[int] = (128, 128, 128),
        patch_size: Sequence[int] = (4, 4, 4),
        feature_size: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        decoder_heads: Sequence[int] | None = None,
        window: Sequence[int | Sequence[int]] = (4, 4, 8, 4),
        wrap: bool = False,
        deep_supervision: bool = False,
        drop_path_rate: float = 0.2,
        use_checkpoint: bool | str = False,
        attention_backend: str = "auto",
    ) -> None:
        super().__init__()
        stages = len(depths)
        _check(roi_size, patch_size, depths, num_heads, decoder_heads, window)
        self.patch_size = tuple(patch_size)
        self.strides = [[1 if i == 0 and p == 1 else 2 for p in patch_size] for i in range(stages - 1)]
        self.deep_supervision = deep_supervision
        self.use_checkpoint = use_checkpoint
        decoder_heads = decoder_heads or num_heads[:-1]
        grid, windows = [n // p for n, p in zip(roi_size, patch_size, strict=True)], []
        for i in range(stages):
            windows.append(_plan(grid, window[i]))
            if i < stages - 1:
                grid = [max(1, n // s) for n, s in zip(grid, self.strides[i], strict=True)]
        widths = [feature_size * 2**i for i in range(stages)]
        options = {"wrap": wrap, "backend": attention_backend}
        self.embedding = ConvEmbedding(in_channels, feature_size, patch_size)
        rates = rising_rates(drop_path_rate, depths)
        self.encoder = nn.ModuleList(
            EncoderStage(
                widths[i],
                swin_blocks(
                    widths[i],
                    num_heads[i],
                    window=windows[i][0],
                    shift=windows[i][1],
                    drop_path_rates=rates[i],
                    **options,  # type: ignore[arg-type]
                ),
                Halving(widths[i], self.strides[i]) if i < stages - 1 else None,
                use_checkpoint,
            )
            for i in range(stages)
        )
        rates = rising_rates(drop_path_rate, depths[-2::-1])[::-1]
        self.decoder = nn.ModuleList(  # coarsest first
            DecoderStage(
                widths[i],
                self.strides[i],
                SkipBlock(
                    widths[i],
                    decoder_heads[i],
                    window=windows[i][0],
                    drop_path_rate=rates[i][0],
                    backend=attention_backend,
                ),
                swin_blocks(
                    widths[i],
                    decoder_heads[i],
                    window=windows[i][0],
                    shift=windows[i][1],
                    all_shifted=True,
                    drop_path_rates=rates[i][1:],
                    **options,  # type: ignore[arg-type]
                ),
                use_checkpoint,
            )
            for i in reversed(range(stages - 1))
        )
        self.heads = nn.ModuleList(Unpatch(w, out_channels, self.patch_size) for w in widths[:-1])  # finest first
        thin_in_float32(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        size = x.shape[2:]
        x = run(self.embedding, self._pad(x), checkpoint=self.use_checkpoint)
        skips = []
        for stage in self.encoder:
            x, skip = stage(x)
            skips.append(skip)
        skips.pop()
        decoded = []
        for stage in self.decoder:
            x = stage(x, skips.pop())
            decoded.append(x)
        logits = []
        for i in range(len(self.heads) if self.deep_supervision and self.training else 1):
            y = run(self.heads[i], to_channels(decoded[-1 - i]), checkpoint=self.use_checkpoint)
            logits.append(crop_to(y, size))
            size = torch.Size(-(-n // s) for n, s in zip(size, self.strides[i], strict=True))
        return tuple(logits) if self.deep_supervision and self.training else logits[0]

    def _pad(self, x: Tensor) -> Tensor:
        """Zero-pad the image at its end to whole patches, and so that one token is left at the coarsest stage.

        Where coarser logits are wanted, also so that no grid which gives them was halved downwards.
        """
        if self.deep_supervision and self.training:
            x = pad_to_multiple(
                x, [p * math.prod(s) for p, *s in zip(self.patch_size, *self.strides[:-1], strict=True)]
            )
        least = [p * math.prod(stride) for p, *stride in zip(self.patch_size, *self.strides, strict=True)]
        short = [p for n, m in zip(reversed(x.shape[2:]), reversed(least), strict=True) for p in (0, max(0, m - n))]
        return pad_to_multiple(F.pad(x, short) if any(short) else x, self.patch_size)


def _plan(grid: Sequence[int], window: int | Sequence[int]) -> tuple[list[int], list[int]]:
    """Window and shift at a stage."""
    dims = len(grid)
    if isinstance(window, int):
        size = [min(window, *grid)] * dims
        fits = min(grid) > window
    else:
        size = list(window)
        fits = list(grid) != size
    shift = [w // 2 for w in size]
    return size, shift if fits and min(shift) > 0 else [0] * dims


def _check(
    roi_size: Sequence[int],
    patch_size: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    decoder_heads: Sequence[int] | None,
    window: Sequence[int | Sequence[int]],
) -> None:
    """Raise ValueError unless the arguments fit each other."""
    if len(roi_size) not in (2, 3) or len(patch_size) != len(roi_size):
        raise ValueError(f"roi_size and patch_size must have 2 or 3 elements each; got {roi_size=}, {patch_size=}")
    if any(p.bit_count() != 1 for p in patch_size) or any(n % p for n, p in zip(roi_size, patch_size, strict=True)):
        raise ValueError(f"patch_size must be powers of two that divide roi_size; got {patch_size=}, {roi_size=}")
    stages = len(depths)
    if stages < 2 or len(num_heads) != stages or len(window) != stages:
        raise ValueError(
            f"depths, num_heads and window must have an element a stage; got {depths}, {num_heads}, {window}"
        )
    if decoder_heads is not None and len(decoder_heads) != stages - 1:
        raise ValueError(
            f"decoder_heads must have {stages - 1} elements, one a stage but the coarsest; got {decoder_heads}"
        )
