"""A network that registers what another one recognises: the same structures in both images, whatever their contrast.

Networks that look at two images learn slowly which edge belongs to which. Here a segmentation network, trained before,
says so; what remains to be learned is how probabilities of structures flow into each other. It is shown how the demons
would push them (Thirion, "Image matching as a diffusion process: an analogy with Maxwell's demons", Medical Image
Analysis 2 (1998), doi:10.1016/S1361-8415(98)80022-4), answers with a velocity, is shown what is still wrong, and adds
to its answer, some rounds. Structures for supervision: Hoffmann et al. 2022 (SynthMorph),
doi:10.1109/TMI.2021.3116879; rounds: Zhao et al. 2019 (recursive cascades), arXiv:1907.12353.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from monai_attention.registration.fields import integrate, warp


class StructureNetwork(nn.Module):
    """Velocity between two images by the structures that are recognised in them; for `model.RegistrationModel`.

    Args:
        anatomy: (B, 1, *S) -> logits (B, n + 1, *S) of background and n structures. It is not trained here: without
            gradients, in evaluation always.
        network: (B, 2 n + 6, *T) -> what is added to the velocity, (B, 3, *T). It sees the structures of the moving
            image as warped so far, those of the fixed one, the velocity so far, and `forces`.
        roi_size: windows of `anatomy`, a quarter overlapping where an image is larger.
        coarseness: voxels of S in one of T, along each axis.
        rounds: how often `network` is asked.
        integration_steps: of the flow between rounds.

    Shape: (B, 2, *S), the moving image first -> velocity (B, 3, *T), T = ceil(S / coarseness), in voxels of T.
    """

    def __init__(
        self,
        anatomy: nn.Module,
        network: nn.Module,
        *,
        roi_size: Sequence[int],
        coarseness: int = 2,
        rounds: int = 3,
        integration_steps: int = 5,
    ) -> None:
        super().__init__()
        self.anatomy = anatomy.requires_grad_(False)
        self.network = network
        self.roi_size = tuple(roi_size)
        self.coarseness = coarseness
        self.rounds = rounds
        self.integration_steps = integration_steps
        self.train(self.training)

    def train(self, mode: bool = True) -> StructureNetwork:
        """As every module's, but for `anatomy`."""
        super().train(mode)
        self.anatomy.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """The velocity."""
        moving, fixed = self.recognise(images).unbind(1)
        velocity = moving.new_zeros(len(images), moving.ndim - 2, *moving.shape[2:])
        for _ in range(self.rounds):
            with torch.no_grad():
                warped = warp(moving, integrate(velocity, self.integration_steps), padding="border")
                seen = torch.cat([warped, fixed, velocity, forces(warped, fixed)], dim=1)
            velocity = velocity + self.network(seen).float()
        return velocity

    @torch.no_grad()
    def recognise(self, images: Tensor) -> Tensor:
        """Probabilities of the structures in images (B, N, *S), (B, N, n, *T), float32."""
        size = images.shape[2:]
        each = images.flatten(0, 1)[:, None]
        if tuple(size) == self.roi_size:
            logits = torch.cat([self.anatomy(one) for one in each.split(1)])
        else:
            logits = sliding_window_inference(each, self.roi_size, 1, self.anatomy, overlap=0.25, mode="gaussian")
        assert isinstance(logits, Tensor)
        coarse = [-(-n // self.coarseness) for n in size]
        missing = [t * self.coarseness - n for t, n in zip(coarse, size, strict=True)]
        padded = logits.float()
        if any(missing):
            padded = F.pad(padded, [p for n in reversed(missing) for p in (0, n)], mode="replicate")
        found = F.avg_pool3d(padded.softmax(dim=1)[:, 1:], self.coarseness)
        return found.unflatten(0, images.shape[:2])


def forces(moving: Tensor, fixed: Tensor) -> Tensor:
    """How the demons would push: the least displacement that makes up for the difference, in voxels.

    Along the mean gradient of all channels, and at most half a voxel for each where both are steep (Thirion's
    denominator keeps it bounded where they are flat).

    Shape: (B, C, *T) both -> (B, n, *T).
    """
    off = fixed - moving
    slopes = torch.stack(torch.gradient((moving + fixed) / 2, dim=list(range(2, fixed.ndim))), dim=2)
    push = (off[:, :, None] * slopes).sum(dim=1)
    steepness = slopes.square().sum(dim=(1, 2)) + off.square().sum(dim=1)
    return push / (steepness + 0.01)[:, None]
