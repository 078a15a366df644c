"""MONAI's way to call a registration model: one stacked image in, a ddf out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor


class PairInferer(Inferer):
    """Calls a model of two images with an image of two halves, for engines that know one input only.

    Example: an image (B, 2 C, *S), the moving image's channels first -> `network(moving, fixed)`, a ddf (B, n, *S).
    """

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the model gives.

        Raises:
            ValueError: the channels are no two halves.
        """
        if inputs.shape[1] % 2:
            raise ValueError(f"expected the channels of a moving and a fixed image; got {inputs.shape[1]}")
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs  # a field is no image of that file
        moving, fixed = plain.chunk(2, dim=1)
        return network(moving, fixed, *args, **kwargs)
