"""Swin UNETR: a Swin transformer as encoder, a convolutional decoder that takes in each of its scales.

Hatamizadeh et al., "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images", BrainLes
2021, doi:10.1007/978-3-031-08999-2_22, arXiv:2201.01266; with `residual_stages` He et al., "SwinUNETR-V2: Stronger Swin
Transformers with Stagewise Convolutions for 3D Medical Image Segmentation", MICCAI 2023,
doi:10.1007/978-3-031-43901-8_40.

Differences from the paper and from MONAI's `SwinUNETR`:
- any input size: the image is zero-padded at its end to a multiple of 2 x 2**stages, the output cropped;
- windows of 128 tokens and more keep no score matrix for the backward pass, and shifted windows need no mask;
- the order in which merged patches are concatenated is stated: MONAI changed it, and weights belong to one order;
- activation checkpointing covers the convolutions at full resolution, which bound the memory once attention is lean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetResBlock
from monai.networks.blocks.unetr_block import UnetrUpBlock
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_attention.blocks.convolution import channels_last
from monai_attention.blocks.patches import crop_to, pad_to_multiple
from monai_attention.blocks.recompute import run
from monai_attention.blocks.swin import PatchMerging, rising_rates, swin_blocks


class EncoderStage(nn.Module):
    """Blocks of window attention, perhaps after a residual convolution, and the merging of patches.

    Shape: (B, C, *G) -> (B, 2 C, *ceil(G / 2)).
    """

    def __init__(
        self, blocks: nn.ModuleList, merging: PatchMerging, residual: nn.Module | None, checkpoint: bool | str
    ) -> None:
        super().__init__()
        self.residual = residual
        self.blocks = blocks
        self.merging = merging
        self.use_checkpoint = checkpoint

    def forward(self, x: Tensor) -> Tensor:
        """Half the resolution, twice the channels."""
        if self.residual is not None:
            x = run(self.residual, x, checkpoint=self.use_checkpoint)
        x = x.movedim(1, -1)
        for block in self.blocks:
            x = run(block, x, checkpoint=self.use_checkpoint)
        return run(self.merging, x, checkpoint=self.use_checkpoint).movedim(-1, 1)


class LastStage(nn.Module):
    """The decoder's stage at full resolution, with the image's own features and the logits.

    Shape: (B, C, *S / 2) and the image (B, in_channels, *S) -> (B, out_channels, *S).
    """

    def __init__(self, skip: nn.Module, up: UnetrUpBlock, head: nn.Module) -> None:
        super().__init__()
        self.skip = skip
        self.up = up
        self.head = head

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Logits; nothing at full resolution but these outlives this call when it is recomputed."""
        both = torch.cat([self.up.transp_conv(x), self.skip(image)], dim=1)  # and neither part is held any longer
        return self.head(self.up.conv_block(both))


class FlexSwinUNETR(nn.Module):
    """Swin UNETR for any input size.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits.
        window: tokens of a window along each axis; its length is the number of spatial axes (2 or 3). Windows shrink to
            grids that are not larger.
        feature_size: channels at half and at full resolution; doubled at each coarser stage.
        depths: blocks at each stage, finest first.
        num_heads: attention heads at each stage.
        merging: one of `monai_attention.blocks.swin.MERGING_ORDERS`.
        residual_stages: begin each stage with a residual convolution (SwinUNETR-V2).
        dropout_rate: everywhere in the transformer, in training only.
        drop_path_rate: of the last block, rising from 0; in training only.
        use_checkpoint: recompute blocks and decoder stages in the backward pass; see `blocks.recompute.run`.
        attention_backend: see `monai_attention.blocks.window_attention.window_attention`.

    Shape: (B, in_channels, *S) -> (B, out_channels, *S), any S; in training some axis must be longer than 32 (for four
    stages), so that the coarsest scale has voxels to normalise over. Computing cost is that of S rounded up to a
    multiple of 32 on every axis.

    Parameters: 15.70 M with 1 -> 14 channels and the defaults (62.19 M with `feature_size` 48).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        window: Sequence[int] = (7, 7, 7),
        feature_size: int = 24,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        merging: str = "monai_1.5",
        residual_stages: bool = False,
        dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        use_checkpoint: bool | str = False,
        attention_backend: str = "auto",
    ) -> None:
        super().__init__()
        dims, stages = len(window), len(depths)
        if dims not in (2, 3):
            raise ValueError(f"window must have 2 or 3 elements; got {tuple(window)}")
        if stages < 2 or len(num_heads) != stages:
            raise ValueError(f"depths and num_heads must have an element a stage; got {depths}, {num_heads}")
        conv = {"spatial_dims": dims, "kernel_size": 3, "norm_name": "instance"}
        self.merging = merging
        self.multiple = 2 * 2**stages
        self.use_checkpoint = use_checkpoint
        widths = [feature_size * 2**i for i in range(stages + 1)]  # at stride 2 * 2**i
        rates = rising_rates(drop_path_rate, depths)
        self.embedding = Conv["conv", dims](in_channels, feature_size, kernel_size=2, stride=2)
        self.dropout = nn.Dropout(dropout_rate)
        self.encoder = nn.ModuleList(
            EncoderStage(
                swin_blocks(
                    widths[i],
                    num_heads[i],
                    window=window,
                    shift=[w // 2 for w in window],
                    drop_path_rates=rates[i],
                    dropout_rate=dropout_rate,
                    shrink=True,
                    backend=attention_backend,
                ),
                PatchMerging(widths[i], dims=dims, order=merging),
                UnetResBlock(in_channels=widths[i], out_channels=widths[i], stride=1, **conv)
                if residual_stages
                else None,
                use_checkpoint,
            )
            for i in range(stages)
        )
        self.skips = nn.ModuleList(  # finest first; the last but one scale is taken as it is
            UnetResBlock(in_channels=width, out_channels=width, stride=1, **conv) for width in widths[:-2]
        )
        self.bottom = UnetResBlock(in_channels=widths[-1], out_channels=widths[-1], stride=1, **conv)
        self.decoder = nn.ModuleList(  # coarsest first
            UnetrUpBlock(
                in_channels=widths[i + 1], out_channels=widths[i], upsample_kernel_size=2, res_block=True, **conv
            )
            for i in reversed(range(stages))
        )
        self.last = LastStage(
            UnetResBlock(in_channels=in_channels, out_channels=feature_size, stride=1, **conv),
            UnetrUpBlock(
                in_channels=feature_size, out_channels=feature_size, upsample_kernel_size=2, res_block=True, **conv
            ),
            UnetOutBlock(spatial_dims=dims, in_channels=feature_size, out_channels=out_channels),
        )
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        size = x.shape[2:]
        image = pad_to_multiple(x, self.multiple)
        x = self.dropout(self.embedding(image))
        skips = [normalised(x)]
        for stage in self.encoder:
            x = stage(x)
            skips.append(normalised(x))
        y = run(self.bottom, skips.pop(), checkpoint=self.use_checkpoint)
        for i, stage in enumerate(self.decoder):
            skip = skips.pop()
            if i > 0:
                skip = run(self.skips[len(skips)], skip, checkpoint=self.use_checkpoint)
            y = run(stage, y, skip, checkpoint=self.use_checkpoint)
        return crop_to(run(self.last, y, image, checkpoint=self.use_checkpoint), size)


def normalised(x: Tensor) -> Tensor:
    """Layer normalisation over the channels of (B, C, *G), without parameters."""
    tokens = x.movedim(1, -1)
    return F.layer_norm(tokens, tokens.shape[-1:]).movedim(-1, 1)
