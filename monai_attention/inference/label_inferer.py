"""Labels on the image's own grid from sliding windows, for validation: classes times voxels are never held."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai import inferers
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from monai_attention.inference.predict import STREAMED
from monai_attention.inference.sliding_window import settings_of, stream


class LabelInferer(inferers.Inferer):
    """What the largest logit says, by the windows of another inferer; nothing is interpolated.

    Args:
        inferer: whose windows are taken. MONAI's `SlidingWindowInferer` and ours are streamed: finished parts of the
            logits become labels while windows are still running. Any other one is called as it is, and gives logits
            whole.
    """

    def __init__(self, inferer: inferers.Inferer) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Labels of images.

        Args:
            inputs: shape (B, C, *S).
            network: (b, C, *window) -> logits (b, classes, *window), of at most 256 classes.
            args: further ones of the network's.
            kwargs: further ones of the network's.

        Returns:
            uint8, shape (B, 1, *S), on the device of the images.
        """
        if type(self.inferer) not in STREAMED:
            logits: Tensor = self.inferer(inputs, network, *args, **kwargs)
            return logits.argmax(dim=1, keepdim=True).byte()
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        device = torch.device(getattr(self.inferer, "sw_device", None) or images.device)
        bfloat16 = getattr(self.inferer, "bfloat16", False)

        def predict(windows: Tensor, _: Sequence[tuple[slice, ...]]) -> list[Tensor]:
            with torch.autocast(device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext():
                return [network(windows.to(device), *args, **kwargs)]

        labels = images.new_empty((len(images), 1, *images.shape[2:]), dtype=torch.uint8)
        for image, own in zip(images, labels, strict=True):
            for (piece,) in stream(image, predict, settings_of(self.inferer)):
                own[0][piece.box] = piece.values.argmax(dim=0).to(own)
        return labels
