"""TransMorph: a Swin transformer looks at two images, a convolutional decoder says where each voxel goes.

Chen et al., "TransMorph: Transformer for unsupervised medical image registration", Medical Image Analysis 82 (2022)
102615, doi:10.1016/j.media.2022.102615, arXiv:2111.10480.

Differences from the paper and from the authors' code:
- it is the network only, from two images to a displacement (or velocity) in voxels: warping, integration and losses are
  `monai_attention.registration`'s;
- any input size: the image is zero-padded at its end to a multiple of 4 x 2**(stages - 1), the output cropped; the
  original wants multiples of 32;
- windows of 128 tokens and more keep no score matrix for the backward pass, and shifted windows need no mask;
- the paper's variants are options: with learned or sinusoidal positions, without skips, at half resolution (for OASIS,
  diff), with dropout (Bayes), with twice the channels for mean and variance (diff); bspl is `SplineTransMorph`;
- where the authors' forms interpolate what was decoded at half resolution, it is given as it is;
- dropout also acts on the image's tokens; in the authors' Bayes only within blocks and on convolutions of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from monai.networks.layers.factories import Conv, Dropout, Norm, Pool
from torch import Tensor, nn

from monai_attention.blocks.convolution import channels_last
from monai_attention.blocks.patches import crop_to, double, interpolate_grid, pad_to_multiple
from monai_attention.blocks.recompute import run
from monai_attention.blocks.swin import PatchMerging, WindowAttention, rising_rates, swin_blocks
from monai_attention.blocks.windows import crop_grid, pad_grid

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
        half_resolution: decode up to half the resolution only.
        dropout_rate: everywhere, in training only.
        drop_path_rate: of the last block, rising from 0; in training only.
        use_checkpoint: recompute blocks and decoder stages in the backward pass; see `blocks.recompute.run`.
        attention_backend: see `monai_attention.blocks.window_attention.window_attention`.

    The last layer starts near zero: an untrained network moves nothing. A logarithm of the variance starts at -10.

    Shape: (B, in_channels, *S) -> (B, out_channels, *S), any S: displacement in voxels, component i along array axis i.
    At half resolution (B, out_channels, *ceil(S / 2)), in voxels of that grid.

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
        if not attention_skips:
            for stage in self.encoder[:-1]:
                stage.norm.requires_grad_(False)  # of the skip that nobody takes
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
        if out_channels == 2 * dims:
            nn.init.constant_(self.head.bias[dims:], -10.0)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Displacement (B, out_channels, *S), or at half resolution, for images (B, in_channels, *S)."""
        size = [-(-n // 2) for n in x.shape[2:]] if self.half_resolution else x.shape[2:]
        return crop_to(self.head(self.features(x)), size)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, at full or half resolution, of images padded to multiples of `multiple`."""
        x = pad_to_multiple(x, self.multiple)
        skips: list[Tensor] = [x, x]
        y = run(self.tokens, x, checkpoint=self.use_checkpoint)
        for stage in self.encoder:
            y, skip = stage(y)
            skips.append(skip)
        y = skips.pop()
        for stage in self.decoder:
            y = run(stage, y, skips.pop(), checkpoint=self.use_checkpoint)
        return y


class SplineTransMorph(TransMorph):
    """TransMorph that gives the control points of a cubic B-spline ("bspl").

    What is decoded at half resolution is interpolated to the grid of control points, and convolved there, as by Qiu et
    al., "Learning diffeomorphic and modality-invariant registration using B-splines", MIDL 2021, PMLR 143.

    Args:
        in_channels: see `TransMorph`.
        out_channels: see `TransMorph`.
        control_spacing: voxels between control points along each axis.
        feature_size: see `TransMorph`.
        options: other arguments of `TransMorph`, but `half_resolution`.

    Shape: (B, in_channels, *S) -> (B, out_channels, *ceil((S - 1) / control_spacing) + 3), any S: velocity in voxels of
    the images; control point i of an axis lies at voxel (i - 1) * control_spacing.

    Parameters: 46.81 M with 2 -> 3 channels and the defaults.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 3,
        *,
        control_spacing: Sequence[int] = (3, 3, 3),
        feature_size: int = 96,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, feature_size=feature_size, half_resolution=True, **options)
        dims, half, width = self.head.weight.ndim - 2, feature_size // 2, 32
        if len(control_spacing) != dims:
            raise ValueError(f"control_spacing must have an element an axis of window, {dims}; got {control_spacing}")
        self.control_spacing = tuple(control_spacing)
        last = self.decoder[-1]
        assert isinstance(last, DecoderStage)
        self.decoder[-1] = DecoderStage(feature_size, half, dims, skip_channels=half, skip=last.skip)
        self.resize = {2: "bilinear", 3: "trilinear"}[dims]
        self.head = nn.Sequential(
            Conv["conv", dims](half, width, kernel_size=3, padding=1),
            nn.LeakyReLU(0.2),
            Conv["conv", dims](width, width, kernel_size=3, padding=1),
            nn.LeakyReLU(0.2),
            Conv["conv", dims](width, out_channels, kernel_size=3, padding=1),
        )
        nn.init.normal_(self.head[-1].weight, std=1e-5)
        nn.init.zeros_(self.head[-1].bias)
        if out_channels == 2 * dims:
            nn.init.constant_(self.head[-1].bias[dims:], -10.0)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Velocity of the control points for images (B, in_channels, *S)."""
        size = x.shape[2:]
        points = [-(-(n - 1) // gap) + 3 for n, gap in zip(size, self.control_spacing, strict=True)]
        y = crop_to(self.features(x), [-(-n // 2) for n in size])
        return self.head(F.interpolate(y, size=points, mode=self.resize))


class ScrambledAttention(WindowAttention):
    """Window attention that puts the tokens of its windows back in a wrong order. 3-D only."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens within each window, and displace them."""
        grid = x.shape[1:-1]
        y = super().forward(pad_grid(x, self.window)).roll([-s for s in self.shift], dims=(1, 2, 3))
        (a, i), (b, j), (c, k) = ((n // w, w) for n, w in zip(y.shape[1:-1], self.window, strict=True))
        y = y.view(-1, a, i, b, j, c, k, y.shape[-1])
        # The right order would be as it is; theirs is (window, window, token) in place of (token, window, window).
        y = y.permute(0, 1, 5, 4, 3, 2, 6, 7).reshape(-1, a * i, b * j, c * k, y.shape[-1])
        return crop_grid(y.roll(self.shift, dims=(1, 2, 3)), grid)


class ScrambledTransMorph(TransMorph):
    """TransMorph as the Bayesian form in the authors' folder `TransMorph/` computes it; that in `IXI/` is right.

    Their `window_reverse` is not the inverse of their `window_partition`. Only for weights that were trained so.

    Args:
        arguments: of `TransMorph`, for three axes.
        options: of `TransMorph`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for layer in self.modules():
            if isinstance(layer, WindowAttention):
                if len(layer.window) != 3:
                    raise ValueError(f"window must have 3 elements; got {layer.window}")
                layer.__class__ = ScrambledAttention  # the same parameters by the same names
