"""Convolutions in the memory layout of tokens, channels last, which the CPU's kernels take without copies.

Convolutions keep the layout they are given, but torch's instance normalisation does not, and so costs a copy before and
after; the one here does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channels_last(module: nn.Module) -> None:
    """Lay the weights of all convolutions out with channels last, and let instance normalisation keep that layout.

    Numbers, and names of parameters, stay as they are.
    """
    for child in module.modules():
        for name, layer in list(child.named_children()):
            if isinstance(layer, (nn.InstanceNorm2d, nn.InstanceNorm3d)) and not layer.track_running_stats:
                setattr(child, name, InstanceNorm(layer))
    for parameter in module.parameters():
        if layout := _LAYOUTS.get(parameter.ndim):
            parameter.data = parameter.data.contiguous(memory_format=layout)


_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


class InstanceNorm(nn.Module):
    """Instance normalisation (Ulyanov et al. 2016, arXiv:1607.08022) that keeps the layout of its input.

    Args:
        original: whose parameters it takes over.

    Shape: (B, C, *S) -> (B, C, *S).
    """

    def __init__(self, original: nn.InstanceNorm2d | nn.InstanceNorm3d) -> None:
        super().__init__()
        self.eps = original.eps
        self.weight = original.weight
        self.bias = original.bias

    def forward(self, x: Tensor) -> Tensor:
        """Mean 0 and variance 1 in each sample and channel, then scaled and shifted if there are parameters."""
        if self.training and x[0, 0].numel() == 1:
            raise ValueError(f"expected more than one voxel a channel in training, got shape {tuple(x.shape)}")
        # Of a single sample, batch normalisation is the same, and torch's keeps the layout.
        samples = [
            torch.batch_norm(sample, self.weight, self.bias, None, None, True, 0.0, self.eps, False)
            for sample in x.split(1)
        ]
        return samples[0] if len(samples) == 1 else torch.cat(samples)
