"""From two images to the displacement between them: what the output of a network stands for.

Balakrishnan et al., "VoxelMorph: A learning framework for deformable medical image registration", IEEE Transactions on
Medical Imaging 38 (2019), doi:10.1109/TMI.2019.2897538; Dalca et al., "Unsupervised learning of probabilistic
diffeomorphic registration for images and surfaces", Medical Image Analysis 57 (2019), doi:10.1016/j.media.2019.07.006.

Differences from VoxelMorph: any network; a field on a coarser grid is in voxels of that grid, and moves the same way on
the images'; beyond its grid a velocity is as at the border, not 0 (`padding`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from monai_attention.blocks.attention import Attention
from monai_attention.blocks.patches import crop_to
from monai_attention.blocks.swin import WindowAttention
from monai_attention.registration.bspline import bspline
from monai_attention.registration.fields import integrate, resize_ddf


class RegistrationModel(nn.Module):
    """A network that looks at two images and says where each voxel of the fixed one comes from.

    Args:
        network: (B, 2 C, *S) -> (B, n, *T), the moving image's channels first; n axes. Its output is in voxels of its
            own grid T, component i along array axis i. T is S, or coarser: a voxel of T is ceil(S / T) voxels of S
            along each axis, beginning at the first. Or (B, 2 n, *T), mean and logarithm of the variance of each
            component: then the field is the mean in evaluation, and drawn at random in training.
        integration_steps: 0, the output is a displacement; otherwise a stationary velocity, of which the flow is taken
            by so many squarings, on its own grid.
        padding: of the integration, see `fields.integrate`.
        control_spacing: the output is of control points of a B-spline, so many voxels of S apart, and in voxels of S;
            see `bspline.bspline`. None: of voxels.

    Shape: moving and fixed (B, C, *S) -> ddf (B, n, *S).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        integration_steps: int = 0,
        padding: str = "border",
        control_spacing: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if integration_steps < 0:
            raise ValueError(f"integration_steps must be 0 or more; got {integration_steps}")
        self.network = network
        self.integration_steps = integration_steps
        self.padding = padding
        self.control_spacing = control_spacing

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The ddf; see `fields`."""
        return self.displacement(self.draw(*self.predict(moving, fixed)), fixed.shape[2:])

    def both_ways(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """The ddf and its inverse, the flow of the same velocity back; of a displacement see `fields.invert`."""
        if not self.integration_steps:
            raise ValueError("only the flow of a velocity goes both ways; expected integration_steps > 0, got 0")
        velocity, size = self.draw(*self.predict(moving, fixed)), fixed.shape[2:]
        return self.displacement(velocity, size), self.displacement(-velocity, size)

    def predict(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean, and logarithm of the variance if the network gives one, (B, n, *T) each, of what the network gives."""
        n, size = fixed.ndim - 2, fixed.shape[2:]
        if moving.shape[2:] != size:
            raise ValueError(f"expected both images on one grid; got {tuple(moving.shape[2:])} and {tuple(size)}")
        output = self.network(torch.cat([moving, fixed], dim=1))
        if output.ndim != fixed.ndim or output.shape[1] not in (n, 2 * n):
            raise ValueError(f"expected {n} or {2 * n} channels on {n} axes of the network; got {tuple(output.shape)}")
        if not self.control_spacing and any(t > s for t, s in zip(output.shape[2:], size, strict=True)):
            raise ValueError(
                f"expected a grid no finer than the images', {tuple(size)}; the network gave {tuple(output.shape[2:])}"
            )
        return (output, None) if output.shape[1] == n else output.chunk(2, dim=1)

    def draw(self, mean: Tensor, log_variance: Tensor | None) -> Tensor:
        """A field of the distribution that `predict` gives: in evaluation the mean, in training at random."""
        if log_variance is None or not self.training:
            return mean
        exact = torch.promote_types(mean.dtype, torch.float32)
        return mean.to(exact) + torch.randn_like(mean, dtype=exact) * (0.5 * log_variance.to(exact)).exp()

    def displacement(self, field: Tensor, size: Sequence[int]) -> Tensor:
        """The ddf on the images' grid of `size` voxels that a field (B, n, *T) of the network stands for."""
        if self.control_spacing:
            field = bspline(field, self.control_spacing, size)
        return self._on_grid(self._flow(field) if self.integration_steps else field, size)

    def _flow(self, velocity: Tensor) -> Tensor:
        return integrate(velocity, self.integration_steps, padding=self.padding)

    def _on_grid(self, ddf: Tensor, size: Sequence[int]) -> Tensor:
        """From its own grid to the images'; the last coarse voxels may reach beyond it."""
        whole = [t * edge for t, edge in zip(ddf.shape[2:], coarseness(ddf, size), strict=True)]
        return crop_to(resize_ddf(ddf, whole), size)


def coarseness(field: Tensor, size: Sequence[int]) -> list[int]:
    """Voxels of a grid of `size` in a voxel of a field's grid, along each axis."""
    return [-(-n // t) for t, n in zip(field.shape[2:], size, strict=True)]


def monte_carlo(model: nn.Module, moving: Tensor, fixed: Tensor, *, samples: int = 25) -> tuple[Tensor, Tensor]:
    """Mean ddf and how unsure the model is of it, from many answers under dropout.

    Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016, arXiv:1506.02142; for registration Chen et al.
    2022 (TransMorph-Bayes), doi:10.1016/j.media.2022.102615. Only dropout is random, everything else is as in
    evaluation; the same seed (`torch.manual_seed`) gives the same answer. Without gradients.

    Args:
        model: (moving, fixed) -> ddf, with dropout at a rate above 0.
        moving: shape (B, C, *S).
        fixed: same shape.
        samples: answers, at least 2.

    Returns:
        Mean, and standard deviation of each component, (B, n, *S) both, in voxels. The norm of the latter over the
        components is the root mean square distance from the mean.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2; got {samples}")
    mean = squares = None
    with torch.no_grad(), _only_dropout(model):
        for count in range(1, samples + 1):
            ddf = model(moving, fixed)
            if mean is None:
                mean, squares = torch.zeros_like(ddf), torch.zeros_like(ddf)
            off = ddf - mean  # Welford 1962, doi:10.1080/00401706.1962.10490022
            mean += off / count
            squares += off * (ddf - mean)
    assert mean is not None
    assert squares is not None
    return mean, (squares / (samples - 1)).sqrt()


@contextmanager
def _only_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation but for dropout; afterwards every module is in the mode it was in."""
    dropouts = [layer for layer in model.modules() if _drops(layer)]
    if not dropouts:
        raise ValueError("expected a model with dropout at a rate above 0; it has none")
    before = {layer: layer.training for layer in model.modules()}
    try:
        model.eval()
        for layer in dropouts:
            layer.training = True
        yield
    finally:
        for layer, training in before.items():
            layer.training = training


def _drops(layer: nn.Module) -> bool:
    if isinstance(layer, (Attention, WindowAttention)):  # of attention weights and of the result
        return layer.dropout_rate > 0
    return isinstance(layer, _DropoutNd) and layer.p > 0
