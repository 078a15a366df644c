"""Registration models for published TransMorph weights whose fields are not in the units they were computed in.

Chen et al., "TransMorph", Medical Image Analysis 82 (2022) 102615, doi:10.1016/j.media.2022.102615. Each gives the
displacement that the authors' code really applies, so `fields.warp` makes their warped image. Their other weights need
none of these: `RegistrationModel(TransMorph(...))` for the base form, its variants, Bayes; with `integration_steps` 7
and `padding` "zeros" for diff at full resolution ("Org-Res").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_attention.registration.fields import identity, warp
from monai_attention.registration.model import RegistrationModel, coarseness


class TransMorphDiff(RegistrationModel):
    """TransMorph-diff at half resolution: the flow on the coarse grid is applied as if in voxels of the images.

    Args:
        network: `TransMorph(2, 6, half_resolution=True)`.
    """

    def __init__(self, network: nn.Module, *, integration_steps: int = 7) -> None:
        super().__init__(network, integration_steps=integration_steps, padding="zeros")

    def both_ways(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Refused: what is applied is not the flow of any velocity."""
        raise ValueError(f"{type(self).__name__} has no exact inverse; use fields.invert on its ddf")

    def _on_grid(self, ddf: Tensor, size: Sequence[int]) -> Tensor:
        return super()._on_grid(ddf / _column(coarseness(ddf, size), like=ddf), size)


class TransMorphOasis(TransMorphDiff):
    """TransMorph for OASIS: a displacement on the coarse grid in the images' voxels; their code samples off the place.

    Args:
        network: `TransMorph(half_resolution=True)`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, integration_steps=0)

    def _on_grid(self, ddf: Tensor, size: Sequence[int]) -> Tensor:
        ddf = super()._on_grid(ddf, size)
        return ddf * _column([n / (n - 1) for n in size], like=ddf) + off_place(size, like=ddf)


class TransMorphSpline(RegistrationModel):
    """TransMorph-bspl: each squaring, and the warping at the end, samples off the place.

    Args:
        network: `SplineTransMorph()`.
        control_spacing: as in the network.
    """

    def __init__(self, network: nn.Module, *, control_spacing: Sequence[int] = (3, 3, 3)) -> None:
        super().__init__(network, integration_steps=7, control_spacing=control_spacing)

    both_ways = TransMorphDiff.both_ways

    def _flow(self, velocity: Tensor) -> Tensor:
        off = off_place(velocity.shape[2:], like=velocity)
        ddf = velocity / 2**self.integration_steps
        for _ in range(self.integration_steps):
            ddf = ddf + warp(ddf, ddf + off)
        return ddf + off


def off_place(size: Sequence[int], *, like: Tensor) -> Tensor:
    """How far off, in voxels, an image is sampled between its outer edges at places laid between its outer centres."""
    ends = _column([n - 1 for n in size], like=like)[0]
    return identity(size, like=like) / ends - 0.5


def _column(numbers: Sequence[float], *, like: Tensor) -> Tensor:
    """One number for each component of a field."""
    return torch.tensor(numbers, device=like.device, dtype=like.dtype).view(1, -1, *[1] * len(numbers))
