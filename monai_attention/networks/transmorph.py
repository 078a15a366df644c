"""TransMorph: a Swin transformer looks at two images, a convolutional decoder says where each voxel goes.

Chen et al., "TransMorph: Transformer for unsupervised medical image registration", Medical Image Analysis 82 (2022)
102615, doi:10.1016/j.media.2022.102615, arXiv:2111.10480.

Differences from the paper and from the authors' code:
- it is the network only, from two images to a displacement (or velocity) in voxels: warping, integration and losses are
  `monai_attention.registration`'s;
- any input size: the image is zero-padded at its end to a multiple of 4 x 2**(stages - 1), the output cropped; the
  original wants multiples of 32;
- windows of 128 tokens and more keep no score matrix for the backward pass, and shifted windows need no mask;
- the paper's variants are options: with learned or sinusoidal positions, without skips, at half resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from monai.networks.layers.factories import Conv, Dropout, Norm, Pool
from torch import Tensor, nn

from monai_attention.blocks.convolution import channels_last
from monai_attention.blocks.patches import crop_to, double, interpolate_grid, pad_to_multiple
from monai_attention.blocks.recompute import run
from monai_attention.blocks.swin import PatchMerging, rising_rates, swin_blocks

POSITIONS = ("none", "relative", "learned", "sinusoidal")
_HEAD_CHANNELS = 16


class Tokens(nn.Module):
    """Patches of 4 voxels an edge, projected and normalised, with a position if asked for.

    Shape: (B, in_channels, *S) -> (B, *S / 4, hidden_size).
    """

    def __init__(self, in_channels: int, hidden_size: int, dims: int, position: str, dropout_rate: float) -> None:
        super().__init__()
        self.proj = Conv["conv", dims](in_channels, hidden_size, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(hidden_size)
        self.table = None
        if position == "learned":  # for the tokens of 224 voxels an edge, as in the authors' code
            self.table = nn.Parameter(torch.empty(1, hidden_size, *[56] * dims))
            nn.init.trunc_normal_(self.table, std=0.02)
        self.sinusoidal = position == "sinusoidal"
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens that may know where they are."""
        x = self.norm(self.proj(x).movedim(1, -1))
        if self.table is not None:
            x = x + interpolate_grid(self.table, x.shape[1:-1]).movedim(1, -1)
        if self.sinusoidal:
            x = x + sinusoids(x.shape[1:-1], x.shape[-1], like=x)
        return self.dropout(x)


def sinusoids(grid: Sequence[int], channels: int, *, like: Tensor) -> Tensor:
    """Sine and cosine of each coordinate at several wavelengths, (*grid, channels), axis by axis; no parameters."""
    share = 2 * -(-channels // (2 * len(grid)))  # channels of an axis, even
    frequency = 10000.0 ** -(torch.arange(0, share, 2, device=like.device) / share)
    parts = []
    for axis, n in enumerate(grid):
        angle = torch.arange(n, device=like.device)[:, None] * frequency
        shape = [n if i == axis else 1 for i in range(len(grid))]
        parts.append(torch.cat([angle.sin(), angle.cos()], dim=-1).view(*shape, share).expand(*grid, share))
    return torch.cat(parts, dim=-1)[..., :channels].to(like.dtype)


class EncoderStage(nn.Module):
    """Blocks of window attention; the skip is their result, normalised, and the rest goes on merged.

    Shape: (B, *G, C) -> (B, *G / 2, 2 C), or the same shape at the last stage, and the skip (B, C, *G).
    """

    def __init__(
        self, hidden_size: int, blocks: nn.ModuleList, merging: PatchMerging | None, checkpoint: bool | str
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = nn.LayerNorm(hidden_size)
        self.merging = merging
        self.use_checkpoint = checkpoint

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Merged grid, and skip."""
        for block in self.blocks:
            x = run(block, x, checkpoint=self.use_checkpoint)
        skip = self.norm(x).movedim(-1, 1)
        return (run(self.merging, x, checkpoint=self.use_checkpoint) if self.merging else x), skip


class ImageSkip(nn.Module):
    """A convolution of the image, halved `halvings` times: (B, in_channels, *S) -> (B, channels, *S / 2**halvings)."""

    def __init__(self, in_channels: int, channels: int, dims: int, halvings: int, dropout_rate: float) -> None:
        super().__init__()
        pools = (Pool["avg", dims](kernel_size=3, stride=2, padding=1) for _ in range(halvings))
        self.pool = nn.Sequential(*pools)
        self.conv = Conv["conv", dims](in_channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = Norm["instance", dims](channels)
        self.dropout = Dropout["dropout", dims](dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the image that no token has seen."""
        return self.dropout(F.leaky_relu_(self.norm(self.conv(self.pool(x))), 0.01))


class DecoderStage(nn.Module):
    """Twice the resolution by interpolation, then two convolutions over it and the skip.

    Shape: (B, in_channels, *S / 2) and what `skip` makes (B, skip_channels, *S) of, or None -> (B, out_channels, *S).
    """

    def __init__(
        self, in_channels: int, out_channels: int, dims: int, *, skip_channels: int, skip: nn.Module | None
    ) -> None:
        super().__init__()
        self.skip = skip
        self.convs = UnetBasicBlock(
            dims, in_channels + (skip_channels if skip else 0), out_channels, 3, stride=1, norm_name="instance"
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Features at the skip's resolution."""
        x = double(x)
        return self.convs(x if self.skip is None else torch.cat([x, self.skip(skip)], dim=1))


class TransMorph(nn.Module):
    """TransMorph for any input size.

    Args:
        in_channels: channels of the moving and the fixed image together, moving first.
        out_channels: components of the displacement, as many as there are axes; or twice that, mean and logarithm of
            the variance, for the probabilistic form.
        window: tokens of a window along each axis; its length is the number of spatial axes (2 or 3).
        feature_size: channels at the finest stage, even; doubled at each coarser one.
        depths: blocks at each stage, finest first.
        num_heads: attention heads at each stage.
        position: what tokens know of where they are: `none`, `relative` (a bias within windows), or that and a
            `learned` or `sinusoidal` position in the image.
        conv_skips: give the last two stages of the decoder convolutions of the image.
        attention_skips: give the others the encoder's feature maps.
        half_resolution: decode up to half the resolution, and interpolate the result.
        dropout_rate: everywhere, in training only.
        drop_path_rate: of the last block, rising from 0; in training only.
        use_checkpoint: recompute blocks and decoder stages in the backward pass; see `blocks.recompute.run`.
        attention_backend: see `monai_attention.blocks.window_attention.window_attention`.

    The last layer starts near zero: an untrained network moves nothing.

    Shape: (B, in_channels, *S) -> (B, out_channels, *S), any S: displacement in voxels, component i along array axis i.

    Parameters: 46.77 M with 2 -> 3 channels and the defaults.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 3,
        *,
        window: Sequence[int] = (5, 6, 7),
        feature_size: int = 96,
        depths: Sequence[int] = (2, 2, 4, 2),
        num_heads: Sequence[int] = (4, 4, 8, 8),
        position: str = "relative",
        conv_skips: bool = True,
        attention_skips: bool = True,
        half_resolution: bool = False,
        dropout_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        use_checkpoint: bool | str = False,
        attention_backend: str = "auto",
    ) -> None:
        super().__init__()
        dims, stages = len(window), len(depths)
        if dims not in (2, 3):
            raise ValueError(f"window must have 2 or 3 elements; got {tuple(window)}")
        if position not in POSITIONS:
            raise ValueError(f"position must be one of {POSITIONS}; got {position!r}")
        if len(num_heads) != stages:
            raise ValueError(f"depths and num_heads must have an element a stage; got {depths}, {num_heads}")
        self.multiple = 4 * 2 ** (stages - 1)
        self.half_resolution = half_resolution
        self.use_checkpoint = use_checkpoint
        widths = [feature_size * 2**i for i in range(stages)]
        rates = rising_rates(drop_path_rate, depths)
        self.tokens = Tokens(in_channels, feature_size, dims, position, dropout_rate)
        self.encoder = nn.ModuleList(
            EncoderStage(
                widths[i],
                swin_blocks(
                    widths[i],
                    num_heads[i],
                    window=window,
                    # A window of one token along some axis is not shifted at all.
                    shift=[w // 2 if min(window) > 1 else 0 for w in window],
                    drop_path_rates=rates[i],
                    dropout_rate=dropout_rate,
                    qkv_bias=False,
                    relative_bias=position != "none",
                    backend=attention_backend,
                ),
                PatchMerging(widths[i], dims=dims, order="transmorph") if i < stages - 1 else None,
                use_checkpoint,
            )
            for i in range(stages)
        )
        self.decoder = nn.ModuleList(  # coarsest first
            DecoderStage(
                widths[i + 1], widths[i], dims, skip_channels=widths[i], skip=nn.Identity() if attention_skips else None
            )
            for i in reversed(range(stages - 1))
        )
        half = feature_size // 2
        last = [(feature_size, _HEAD_CHANNELS)] if half_resolution else [(feature_size, half), (half, _HEAD_CHANNELS)]
        for (m, n), made, halvings in zip(last, (half, _HEAD_CHANNELS), (1, 0), strict=False):
            skip = ImageSkip(in_channels, made, dims, halvings, dropout_rate) if conv_skips else None
            self.decoder.append(DecoderStage(m, n, dims, skip_channels=made, skip=skip))
        self.head = Conv["conv", dims](_HEAD_CHANNELS, out_channels, kernel_size=3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-5)
        nn.init.zeros_(self.head.bias)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Displacement (B, out_channels, *S) for images (B, in_channels, *S)."""
        size = x.shape[2:]
        y = self.head(self.features(pad_to_multiple(x, self.multiple)))
        if self.half_resolution:
            y = double(y)
        return crop_to(y, size)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, at full or half resolution, of images (B, in_channels, *S), S multiples of `multiple`."""
        skips: list[Tensor] = [x, x]
        y = run(self.tokens, x, checkpoint=self.use_checkpoint)
        for stage in self.encoder:
            y, skip = stage(y)
            skips.append(skip)
        y = skips.pop()
        for stage in self.decoder:
            y = run(stage, y, skips.pop(), checkpoint=self.use_checkpoint)
        return y
