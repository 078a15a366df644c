"""UNETR: a vision transformer as encoder, a convolutional decoder that taps it at several depths.

Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", WACV 2022,
doi:10.1109/WACV51458.2022.00181, arXiv:2103.10504.

Differences from the paper and from MONAI's `UNETR`:
- any input size: the input is zero-padded at the end of each axis to a multiple of the patch, the output cropped,
  and the learned position table is interpolated to the token grid (at the native grid it is used as it is);
- any power of two as patch size (the paper: 16): a patch of 2**L gives L decoder stages, tapped evenly in depth;
- optionally a convolutional stem makes the tokens, and its feature maps join the skips of their resolution: the paper's
  skips see the image at full resolution or through tokens only, which takes many more steps to train;
- attention through torch's fused kernel, activation checkpointing, no unused parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetResBlock
from monai.networks.blocks.unetr_block import UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from monai_attention.blocks.attention import TransformerBlock
from monai_attention.blocks.convolution import channels_last
from monai_attention.blocks.patches import PatchEmbedding, crop_to, pad_to_multiple
from monai_attention.blocks.recompute import run


class TokenEncoder(nn.Module):
    """Vision transformer that also returns the grids of tokens between its blocks.

    Args:
        patch_embedding: module that turns an image into a grid of tokens.
        blocks: transformer blocks.
        hidden_size: channels of a token.
        taps: indices of the blocks whose output is returned besides the last one's, increasing.
        use_checkpoint: recompute each block in the backward pass; see `blocks.recompute.run`.

    Shape: (B, C_in, *S) -> feature maps of the stem, finest first (none without stem), and len(taps) + 1 grids of
        tokens (B, hidden_size, *S / patch).
    """

    def __init__(
        self,
        patch_embedding: nn.Module,
        blocks: Sequence[nn.Module],
        *,
        hidden_size: int,
        taps: Sequence[int],
        use_checkpoint: bool | str,
    ) -> None:
        super().__init__()
        self.patch_embedding = patch_embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden_size)
        self.taps = tuple(taps)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The stem's feature maps; tokens at the taps, shallowest first, and the last block's output, normalised."""
        *details, grid = run(self.patch_embedding, x, checkpoint=self.use_checkpoint)
        tokens = grid.flatten(2).transpose(1, 2)
        tapped = []
        for i, block in enumerate(self.blocks):
            tokens = run(block, tokens, checkpoint=self.use_checkpoint)
            if i in self.taps:
                tapped.append(tokens)
        return details, [t.transpose(1, 2).unflatten(2, grid.shape[2:]) for t in (*tapped, self.norm(tokens))]


class FlexUNETR(nn.Module):
    """UNETR for any input size.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits.
        roi_size: crop the position table is learned for, in voxels; its length is the number of spatial axes (2 or 3).
            Every element must be a multiple of `patch_size`.
        patch_size: edge of a ViT patch in voxels, a power of two, at least 4.
        feature_size: channels of the decoder at full resolution; doubled at each coarser stage.
        hidden_size: ViT width, a multiple of `num_heads`.
        mlp_size: width inside the transformer's MLP.
        num_heads: attention heads.
        depth: transformer blocks, at least log2(patch_size).
        stem: make tokens by strided residual blocks, and let the skips see these, instead of one linear projection.
        qkv_bias: bias in the projections to queries, keys, values.
        dropout_rate: in [0, 1), transformer only, in training only.
        use_checkpoint: recompute blocks and decoder stages in the backward pass; see `blocks.recompute.run`.
        attention_backend: see `monai_attention.blocks.attention.attend`.

    Shape: (B, in_channels, *S) -> (B, out_channels, *S), any S. Computing cost is that of S rounded up to a multiple of
    `patch_size` on every axis, and attention grows with the square of the number of patches.

    Parameters: 92.78 M with 1 -> 14 channels and the defaults.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        roi_size: Sequence[int] = (96, 96, 96),
        patch_size: int = 16,
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_size: int = 3072,
        num_heads: int = 12,
        depth: int = 12,
        stem: bool = False,
        qkv_bias: bool = False,
        dropout_rate: float = 0.0,
        use_checkpoint: bool | str = False,
        attention_backend: str = "auto",
    ) -> None:
        super().__init__()
        dims, levels = len(roi_size), patch_size.bit_length() - 1
        if patch_size < 4 or patch_size != 2**levels:
            raise ValueError(f"patch_size must be a power of two, at least 4; got {patch_size}")
        if dims not in (2, 3) or any(n < patch_size or n % patch_size for n in roi_size):
            raise ValueError(f"roi_size must be 2 or 3 positive multiples of {patch_size=}; got {tuple(roi_size)}")
        if depth < levels:
            raise ValueError(f"depth must be at least log2(patch_size) = {levels}; got {depth}")
        self.patch_size = patch_size
        self.use_checkpoint = use_checkpoint
        block = {"qkv_bias": qkv_bias, "dropout_rate": dropout_rate, "backend": attention_backend}
        conv = {"spatial_dims": dims, "kernel_size": 3, "norm_name": "instance"}
        widths = [feature_size * 2**k for k in range(levels)] + [hidden_size]  # at stride 2**k
        self.encoder = TokenEncoder(
            PatchEmbedding(
                in_channels,
                hidden_size,
                roi_size=roi_size,
                patch_size=patch_size,
                stem_widths=widths[1:-1] if stem else (),
                dropout_rate=dropout_rate,
            ),
            [TransformerBlock(hidden_size, mlp_size, num_heads, **block) for _ in range(depth)],  # type: ignore[arg-type]
            hidden_size=hidden_size,
            taps=[k * depth // levels for k in range(1, levels)],
            use_checkpoint=use_checkpoint,
        )
        self.input_skip = UnetResBlock(in_channels=in_channels, out_channels=feature_size, stride=1, **conv)
        self.skips = nn.ModuleList(  # skips[k - 1] brings tokens of tap k to stride 2**k
            UnetrPrUpBlock(
                in_channels=hidden_size,
                out_channels=widths[k],
                num_layer=levels - 1 - k,
                stride=1,
                upsample_kernel_size=2,
                conv_block=True,
                res_block=True,
                **conv,
            )
            for k in range(1, levels)
        )
        self.decoder = nn.ModuleList(  # coarsest first; decoder[i] doubles the resolution and takes in a skip
            UnetrUpBlock(
                in_channels=widths[k + 1], out_channels=widths[k], upsample_kernel_size=2, res_block=True, **conv
            )
            for k in reversed(range(levels))
        )
        self.head = UnetOutBlock(spatial_dims=dims, in_channels=feature_size, out_channels=out_channels)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        size = x.shape[2:]
        x = pad_to_multiple(x, self.patch_size)
        details, (*tapped, y) = self.encoder(x)
        skips = [run(skip, t, checkpoint=self.use_checkpoint) for skip, t in zip(self.skips, tapped, strict=True)]
        if details:
            skips = [skip + detail for skip, detail in zip(skips, details, strict=True)]
        skips = [run(self.input_skip, x, checkpoint=self.use_checkpoint), *skips]
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            y = run(stage, y, skip, checkpoint=self.use_checkpoint)
        return crop_to(self.head(y), size)
