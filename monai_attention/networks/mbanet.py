"""MBANet: a U-Net of shuffle units with shuffle attention after each encoder stage and in the skips.

Cao et al., "MBANet: A 3D convolutional neural network with multi-branch attention for brain tumor segmentation from
MRI images", Biomedical Signal Processing and Control 80 (2023) 104296.

There is neither code nor weights of the authors, and we have worked from the paper's description: the basic unit splits
the channels, convolves one part in groups, fuses, and shuffles; shuffle attention (channel and spatial gates on groups
of channels) is the attention layer of the encoder and filters the skips.

What that leaves open, and what we chose: widths double with each halving, from 32; one, two, two, two units a stage;
8 groups of attention, 4 of convolution; instance normalisation and leaky rectifiers; units of stride 2 halve the
resolution, a 1-wide convolution, linear interpolation and a unit double it; skips are added; a 1-wide convolution makes
the logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_attention.blocks.convolution import channels_last
from monai_attention.blocks.patches import crop_to, double, pad_to_multiple
from monai_attention.blocks.recompute import run
from monai_attention.blocks.shuffle import ConvNorm, ShuffleAttention, ShuffleUnit


class DecoderStage(nn.Module):
    """Twice the resolution, the skip through attention, and a shuffle unit over their sum.

    Shape: (B, in_channels, *S / 2) and the skip (B, out_channels, *S) -> (B, out_channels, *S).
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, *, groups: int, conv_groups: int) -> None:
        super().__init__()
        self.attention = ShuffleAttention(dims, out_channels, groups=groups)
        self.narrow = ConvNorm(dims, in_channels, out_channels, kernel=1)  # before there are eight times the voxels
        self.unit = ShuffleUnit(dims, out_channels, out_channels, groups=conv_groups)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Features at the skip's resolution."""
        return self.unit(double(self.narrow(x)) + self.attention(skip))


class MBANet(nn.Module):
    """MBANet for any input size.

    Args:
        in_channels: channels of the image (BraTS: T1, T1 with contrast agent, T2, FLAIR).
        out_channels: channels of the logits.
        spatial_dims: 2 or 3.
        feature_size: channels at full resolution, a multiple of 2 x `groups` and 2 x `conv_groups`; doubled with each
            halving.
        depths: shuffle units at each stage, finest first, beside the one that halves.
        groups: groups of channels in attention.
        conv_groups: groups of channels in the units' 3-wide convolutions.
        dropout_rate: dropout of whole channels before the logits, in training only.
        use_checkpoint: recompute stages in the backward pass; see `blocks.recompute.run`.

    Shape: (B, in_channels, *S) -> (B, out_channels, *S), any S; zero-padded inside to a multiple of
        2**(len(depths) - 1). In training the coarsest scale must be left more than one voxel.

    Parameters: 0.69 M with 4 -> 3 channels and the defaults.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 3,
        feature_size: int = 32,
        depths: Sequence[int] = (1, 2, 2, 2),
        groups: int = 8,
        conv_groups: int = 4,
        dropout_rate: float = 0.0,
        use_checkpoint: bool | str = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3; got {spatial_dims}")
        if len(depths) < 2:
            raise ValueError(f"depths must have two elements at least; got {tuple(depths)}")
        dims, widths = spatial_dims, [feature_size * 2**i for i in range(len(depths))]
        self.multiple = 2 ** (len(depths) - 1)
        self.use_checkpoint = use_checkpoint
        self.stem = ConvNorm(dims, in_channels, feature_size, kernel=3)
        self.encoder = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            units = [ShuffleUnit(dims, width, width, groups=conv_groups) for _ in range(depth)]
            halving = [ShuffleUnit(dims, widths[i - 1], width, groups=conv_groups, stride=2)] if i else []
            self.encoder.append(nn.Sequential(*halving, *units, ShuffleAttention(dims, width, groups=groups)))
        self.decoder = nn.ModuleList(  # coarsest first
            DecoderStage(dims, widths[i + 1], widths[i], groups=groups, conv_groups=conv_groups)
            for i in reversed(range(len(depths) - 1))
        )
        self.dropout = (nn.Dropout2d, nn.Dropout3d)[dims - 2](dropout_rate)
        self.head = Conv["conv", dims](feature_size, out_channels, kernel_size=1)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        size = x.shape[2:]
        x = run(self.stem, pad_to_multiple(x, self.multiple), checkpoint=self.use_checkpoint)
        skips = []
        for stage in self.encoder:
            x = run(stage, x, checkpoint=self.use_checkpoint)
            skips.append(x)
        skips.pop()
        for stage in self.decoder:
            x = run(stage, x, skips.pop(), checkpoint=self.use_checkpoint)
        return crop_to(self.head(self.dropout(x)), size)
