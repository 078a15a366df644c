"""Images from label maps: any contrast, any resolution, no scans.

Billot et al., "SynthSeg: Segmentation of brain MRI scans of any contrast and resolution without retraining", Medical
Image Analysis 86 (2023) 102789, doi:10.1016/j.media.2023.102789.

Differences from the paper: labels are looked up on a grid finer than the image and averaged, so boundary voxels hold a
true mixture of tissues; the scalp and skull are sometimes removed, as brain extraction would; the deformation is a
spline displacement instead of an integrated velocity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class ImageGenerator:
    """Draws an image and its target from a label map; the same random generator state gives the same pair.

    All ranges are symmetric around "no change", and a range of 0 switches that effect off.

    Args:
        roi_size: voxels of the image along each axis.
        spacing: voxel spacing of the image in mm, isotropic.
        supersampling: the label map is looked up on a grid this many times finer along each axis.
        rotation_deg: largest rotation about each axis, degrees.
        scaling: largest relative change of size along each axis.
        shear: largest shear of each axis along each other axis, mm per mm.
        elastic_mm: largest standard deviation of the elastic displacement, mm; its control points lie 32 mm apart.
        bias_std: largest standard deviation of the logarithm of the multiplicative bias field.
        noise_std: largest standard deviation of the noise, as a part of the intensity range.
        gamma_std: standard deviation of the logarithm of the gamma exponent.
        max_spacing_mm: coarsest spacing that the image is degraded to, along one axis (slices) or along all.
        contrasts: brightness of each tissue in well-known kinds of scans (T1- or T2-weighted, say), black 0 to white 1.
        contrast_probability: how often an image resembles one of `contrasts`; otherwise each class has any brightness.
        strip_probability: how often everything in `strip_labels` is set to black.
        strip_labels: values of the label map outside the brain.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        *,
        spacing: float = 2.0,
        supersampling: int = 2,
        rotation_deg: float = 20.0,
        scaling: float = 0.2,
        shear: float = 0.1,
        elastic_mm: float = 4.0,
        bias_std: float = 0.5,
        noise_std: float = 0.1,
        gamma_std: float = 0.4,
        max_spacing_mm: float = 7.0,
        contrasts: Sequence[Sequence[float]] = (),
        contrast_probability: float = 0.0,
        strip_probability: float = 0.25,
        strip_labels: Sequence[int] = (),
    ) -> None:
        self.roi_size = tuple(roi_size)
        self.spacing = spacing
        self.supersampling = supersampling
        self.rotation_deg = rotation_deg
        self.scaling = scaling
        self.shear = shear
        self.elastic_mm = elastic_mm
        self.bias_std = bias_std
        self.noise_std = noise_std
        self.gamma_std = gamma_std
        self.max_spacing_mm = max_spacing_mm
        self.contrasts = contrasts
        self.contrast_probability = contrast_probability
        self.strip_probability = strip_probability
        self.strip_labels = tuple(strip_labels)

    def __call__(
        self,
        labels: Tensor,
        spacing: Sequence[float],
        *,
        centre: Sequence[float],
        intensity_class: Tensor,
        tissue: Tensor | None = None,
        mirrored: Tensor | None = None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Draw an image.

        Args:
            labels: integer label map (X, Y, Z); values are indices into `intensity_class`.
            spacing: its voxel spacing in mm.
            centre: the voxel of the label map that lands in the middle of the image.
            intensity_class: for each label value, the class that it shares its intensity with (left and right alike).
            tissue: for each intensity class, the position of its tissue in `contrasts`' rows, -1 if it is of none.
            mirrored: for each label value, the same structure's on the other side; None if sides have no values.
            generator: source of all randomness; lives on the device of `labels`.

        Returns:
            image (1, *roi_size) in [0, 1] and the deformed label map (*roi_size), same values as `labels`.
        """
        draw = _Draw(generator)
        matrix = self._affine(draw) / draw.tensor(spacing)[:, None]  # mm of the image -> voxels of the label map
        elastic = self._elastic(draw) / draw.tensor(spacing)[:, None, None, None]
        mirror = draw.uniform(0, 1) < 0.5
        if mirror:
            matrix[0], elastic[0] = -matrix[0], -elastic[0]
        fine, coarse = (
            look_up(labels, self._sampling_grid(n, matrix, elastic, centre)) for n in (self.supersampling, 1)
        )
        image = self._render(fine, intensity_class, tissue, draw)[None]
        return image, mirrored[coarse.long()] if mirror and mirrored is not None else coarse

    def _affine(self, draw: _Draw) -> Tensor:
        angles = [math.radians(draw.uniform(-self.rotation_deg, self.rotation_deg)) for _ in range(3)]
        scale = torch.diag(draw.tensor([1 + draw.uniform(-self.scaling, self.scaling) for _ in range(3)]))
        shear = torch.eye(3, device=draw.device) + self.shear * (2 * draw.rand(3, 3) - 1) * (
            1 - torch.eye(3, device=draw.device)
        )
        return _rotation(angles, draw.device) @ shear @ scale

    def _elastic(self, draw: _Draw) -> Tensor:
        """Displacement in mm, (3, *coarse grid), to be stretched over the image."""
        nodes = [max(2, round(n * self.spacing / 32)) + 1 for n in self.roi_size]
        return draw.uniform(0, self.elastic_mm) * smooth_field(3, nodes, [4 * n for n in nodes], draw.generator)

    def _sampling_grid(self, fineness: int, matrix: Tensor, elastic: Tensor, centre: Sequence[float]) -> list[Tensor]:
        """Where each voxel of a grid `fineness` times finer than the image comes from: three coordinates, (*S) each."""
        size = [n * fineness for n in self.roi_size]
        x, y, z = ((torch.arange(n, device=matrix.device) - (n - 1) / 2) * self.spacing / fineness for n in size)
        stretched = F.interpolate(elastic[None], size=size, mode="trilinear")[0]
        return [
            field.add_((row[0] * x + start)[:, None, None]).add_((row[1] * y)[:, None] + row[2] * z)
            for field, row, start in zip(stretched, matrix, centre, strict=True)
        ]

    def _render(self, fine: Tensor, intensity_class: Tensor, tissue: Tensor | None, draw: _Draw) -> Tensor:
        """Intensities for a fine label map, averaged and degraded to the image's grid, (*roi_size) in [0, 1]."""
        classes = intensity_class[fine.long()]
        count = int(intensity_class.max()) + 1
        means, stds = draw.rand(count), 0.1 * draw.rand(count)
        known = tissue is not None and len(self.contrasts) > 0 and draw.uniform(0, 1) < self.contrast_probability
        if tissue is not None and known:
            contrast = draw.tensor(self.contrasts[int(draw.uniform(0, len(self.contrasts)))])
            contrast = contrast + 0.08 * draw.randn(len(contrast))
            alike = (contrast[tissue] + 0.04 * draw.randn(count)).clamp(0, 1)
            means = torch.where(tissue >= 0, alike, means)
        if known or draw.uniform(0, 1) < 0.5:  # air is black, or in half of the other images anything
            means[0] = stds[0] = 0.0
        image = means[classes] + stds[classes] * draw.randn(*fine.shape)
        if self.strip_labels and draw.uniform(0, 1) < self.strip_probability:
            image[torch.isin(fine, fine.new_tensor(self.strip_labels))] = 0.0
        image = F.avg_pool3d(image[None, None], self.supersampling)
        image = (
            image * (draw.uniform(0, self.bias_std) * smooth_field(1, [4, 4, 4], self.roi_size, draw.generator)).exp()
        )
        image = self._degrade(image, draw)
        image = rescale(image + draw.uniform(0, self.noise_std) * image.std() * 3 * draw.randn(*image.shape))
        return (image ** math.exp(self.gamma_std * draw.normal()))[0, 0]

    def _degrade(self, image: Tensor, draw: _Draw) -> Tensor:
        """Blur, sample down to a random resolution, sample up again."""
        coarse = [self.spacing] * 3
        kind = draw.uniform(0, 1)
        if kind < 0.4:  # slices
            axis = int(draw.uniform(0, 3))
            coarse[axis] = draw.uniform(self.spacing, self.max_spacing_mm)
        elif kind < 0.7:  # isotropic
            coarse = [draw.uniform(self.spacing, max(self.spacing, self.max_spacing_mm / 2))] * 3
        extra = draw.uniform(0, 0.5)
        sigmas = [extra + 0.4 * (c / self.spacing - 1) for c in coarse]
        size = [max(2, round(n * self.spacing / c)) for n, c in zip(self.roi_size, coarse, strict=True)]
        image = gaussian_blur(image, sigmas)
        if tuple(size) == self.roi_size:
            return image
        return F.interpolate(F.interpolate(image, size=size, mode="trilinear"), size=self.roi_size, mode="trilinear")


class _Draw:
    """Random numbers of one generator, on its device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.device = generator.device

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rand(1))

    def normal(self) -> float:
        return float(self.randn(1))

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def _rotation(angles: Sequence[float], device: torch.device) -> Tensor:
    """Rotation by angles (radians) about x, then y, then z."""
    result = torch.eye(3, device=device)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3, device=device)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        result = turn @ result
    return result


def look_up(labels: Tensor, coordinates: Sequence[Tensor]) -> Tensor:
    """Labels (X, Y, Z) at the voxels nearest to three fractional coordinates (overwritten); 0 outside."""
    padded = F.pad(labels, (1,) * 6)  # coordinates outside are moved to this border
    flat = torch.zeros_like(coordinates[0], dtype=torch.int64)
    for coordinate, n in zip(coordinates, labels.shape, strict=True):
        flat.mul_(n + 2).add_(coordinate.round_().clamp_(-1, n).add_(1).int())
    return padded.reshape(-1)[flat]


def smooth_field(channels: int, nodes: Sequence[int], size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Gaussian noise of unit variance at control points, spread smoothly over a grid, (channels, *size)."""
    noise = torch.randn(1, channels, *nodes, generator=generator, device=generator.device)
    half = [max(2, n // 2) for n in size]
    field = F.interpolate(noise, size=half, mode="trilinear", align_corners=True)
    field = gaussian_blur(field, [0.35 * h / n for h, n in zip(half, nodes, strict=True)])
    return F.interpolate(field, size=tuple(size), mode="trilinear", align_corners=True)[0]


def gaussian_blur(x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Separable Gaussian blur of (B, C, X, Y, Z), sigmas in voxels; edges are repeated."""
    for axis, sigma in enumerate(sigmas):
        if sigma <= 0.05:  # the kernel is a delta to float32 precision
            continue
        radius = math.ceil(3 * sigma)
        offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
        kernel = (-0.5 * (offsets / sigma) ** 2).exp()
        shape, pads = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = 2 * radius + 1
        pads[2 * (2 - axis)] = pads[2 * (2 - axis) + 1] = radius
        weight = (kernel / kernel.sum()).view(shape).expand(x.shape[1], *shape[1:])
        x = F.conv3d(F.pad(x, pads, mode="replicate"), weight, groups=x.shape[1])
    return x


def rescale(image: Tensor, lower: float = 0.5, upper: float = 99.5) -> Tensor:
    """Map the given percentiles to 0 and 1 and clip; a constant image becomes 0."""
    ordered = image.flatten().sort().values
    low, high = (ordered[round(p / 100 * (ordered.numel() - 1))] for p in (lower, upper))
    return ((image - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
