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

from monai_attention.synthesis.randomness import Draw, gaussian_blur, smooth_field, stretched
from monai_attention.synthesis.tumours import Soil, Tumour, draw_tumour


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
        elastic_mm: largest standard deviation of the elastic displacement at its control points, mm, which lie 32 mm
            apart; over the image it is some 0.4 of that, for between them displacements are averaged.
        bias_std: largest standard deviation of the logarithm of the multiplicative bias field, at control points too.
        noise_std: largest standard deviation of the noise, as a part of the intensity range.
        gamma_std: standard deviation of the logarithm of the gamma exponent.
        max_spacing_mm: coarsest spacing that the image is degraded to along one axis (slices), or half of it along all;
            nothing is blurred if that is no coarser than `spacing`.
        contrasts: brightness of each tissue in well-known kinds of scans (T1- or T2-weighted, say), black 0 to white 1.
        contrast_probability: how often an image resembles one of `contrasts`; otherwise each class has any brightness.
        channels: images of one head, each with a contrast, bias, noise and resolution of its own; if several, they
            resemble the first, second, ... of `contrasts`.
        strip_probability: how often everything in `strip_labels` is set to black.
        strip_labels: values of the label map outside the brain.
        tumour_probability: how often a tumour grows in the image, where there is soil for it.
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
        channels: int = 1,
        strip_probability: float = 0.25,
        strip_labels: Sequence[int] = (),
        tumour_probability: float = 1.0,
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
        self.channels = channels
        self.strip_probability = strip_probability
        self.strip_labels = tuple(strip_labels)
        self.tumour_probability = tumour_probability

    def __call__(
        self,
        labels: Tensor,
        spacing: Sequence[float],
        *,
        centre: Sequence[float],
        intensity_class: Tensor,
        tissue: Tensor | None = None,
        mirrored: Tensor | None = None,
        soil: Soil | None = None,
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
            soil: where tumours grow; None, nowhere.
            generator: source of all randomness; lives on the device of `labels`.

        Returns:
            image (channels, *roi_size) in [0, 1] and the deformed label map (*roi_size), same values as `labels`.
        """
        draw = Draw(generator)
        matrix = self._affine(draw) / draw.tensor(spacing)[:, None]  # mm of the image -> voxels of the label map
        elastic = self._elastic(draw) / draw.tensor(spacing)[:, None, None, None]
        mirror = draw.uniform(0, 1) < 0.5
        if mirror:
            matrix[0], elastic[0] = -matrix[0], -elastic[0]
        tumour = None
        if soil is not None and draw.uniform(0, 1) < self.tumour_probability:
            plain = look_up(labels, self._sampling_grid(1, matrix, elastic, centre))
            tumour = draw_tumour(plain, self._axes(1, draw.device), soil, draw)
        maps = []
        for n in (self.supersampling, 1):
            seen = look_up(labels, self._sampling_grid(n, matrix, elastic, centre, tumour))
            maps.append(tumour.grown(seen, self._axes(n, draw.device), soil) if tumour and soil else seen)
        fine, coarse = maps
        image = self._render(fine, intensity_class, tissue, draw)
        return image, mirrored[coarse.long()] if mirror and mirrored is not None else coarse

    def _affine(self, draw: Draw) -> Tensor:
        angles = [math.radians(draw.uniform(-self.rotation_deg, self.rotation_deg)) for _ in range(3)]
        scale = torch.diag(draw.tensor([1 + draw.uniform(-self.scaling, self.scaling) for _ in range(3)]))
        shear = torch.eye(3, device=draw.device) + self.shear * (2 * draw.rand(3, 3) - 1) * (
            1 - torch.eye(3, device=draw.device)
        )
        return _rotation(angles, draw.device) @ shear @ scale

    def _elastic(self, draw: Draw) -> Tensor:
        """Displacement in mm, (3, *coarse grid), to be stretched over the image."""
        nodes = [max(2, round(n * self.spacing / 32)) + 1 for n in self.roi_size]
        return draw.uniform(0, self.elastic_mm) * smooth_field(3, nodes, [4 * n for n in nodes], draw.generator)

    def _axes(self, fineness: int, device: torch.device) -> list[Tensor]:
        """Positions along each axis, in mm from the image's middle, of a grid `fineness` times finer than the image."""
        size = [n * fineness for n in self.roi_size]
        return [(torch.arange(n, device=device) - (n - 1) / 2) * self.spacing / fineness for n in size]

    def _sampling_grid(
        self, fineness: int, matrix: Tensor, elastic: Tensor, centre: Sequence[float], tumour: Tumour | None = None
    ) -> list[Tensor]:
        """Where each voxel of a grid `fineness` times finer than the image comes from: three coordinates, (*S) each."""
        x, y, z = axes = self._axes(fineness, matrix.device)
        moved = stretched(elastic[None], [len(a) for a in axes])[0]
        if tumour:
            moved = moved + torch.einsum("ij,j...->i...", matrix, tumour.pushed(axes))
        return [
            field.add_((row[0] * x + start)[:, None, None]).add_((row[1] * y)[:, None] + row[2] * z)
            for field, row, start in zip(moved, matrix, centre, strict=True)
        ]

    def _render(self, fine: Tensor, intensity_class: Tensor, tissue: Tensor | None, draw: Draw) -> Tensor:
        """Intensities for a fine label map, averaged and degraded to the image's grid, (channels, *roi_size)."""
        fine, images = fine.int(), []
        strips = bool(self.strip_labels) and draw.uniform(0, 1) < self.strip_probability  # from all images or from none
        for channel in range(self.channels):
            means, stds = (each[intensity_class] for each in self._looks(intensity_class, tissue, channel, draw))
            if strips:
                means[list(self.strip_labels)] = stds[list(self.strip_labels)] = 0.0
            images.append(self._acquire(means[fine] + stds[fine] * draw.randn(*fine.shape), draw))
        return torch.stack(images)

    def _looks(self, intensity_class: Tensor, tissue: Tensor | None, channel: int, draw: Draw) -> tuple[Tensor, Tensor]:
        """Brightness of each intensity class, and how much it varies from voxel to voxel."""
        count = int(intensity_class.max()) + 1
        means, stds = draw.rand(count), 0.1 * draw.rand(count)
        known = tissue is not None and len(self.contrasts) > 0 and draw.uniform(0, 1) < self.contrast_probability
        if tissue is not None and known:
            which = channel if self.channels > 1 else int(draw.uniform(0, len(self.contrasts)))
            contrast = draw.tensor(self.contrasts[which])
            contrast = contrast + 0.08 * draw.randn(len(contrast))
            alike = (contrast[tissue] + 0.04 * draw.randn(count)).clamp(0, 1)
            means = torch.where(tissue >= 0, alike, means)
        if known or draw.uniform(0, 1) < 0.5:  # air is black, or in half of the other images anything
            means[0] = stds[0] = 0.0
        return means, stds

    def _acquire(self, image: Tensor, draw: Draw) -> Tensor:
        """A fine image as a scanner would show it, (*roi_size) in [0, 1]: averaged, with bias, blur and noise."""
        image = F.avg_pool3d(image[None, None], self.supersampling)
        image = (
            image * (draw.uniform(0, self.bias_std) * smooth_field(1, [4, 4, 4], self.roi_size, draw.generator)).exp()
        )
        image = self._degrade(image, draw)
        image = rescale(image + draw.uniform(0, self.noise_std) * image.std() * 3 * draw.randn(*image.shape))
        return (image ** math.exp(self.gamma_std * draw.normal()))[0, 0]

    def _degrade(self, image: Tensor, draw: Draw) -> Tensor:
        """Blur, sample down to a random resolution, sample up again."""
        if self.max_spacing_mm <= self.spacing:
            return image
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
        return stretched(stretched(image, size), self.roi_size)


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


def rescale(image: Tensor, lower: float = 0.5, upper: float = 99.5) -> Tensor:
    """Map the given percentiles to 0 and 1 and clip; a constant image becomes 0."""
    flat = image.flatten()
    low, high = _ranked(flat, [round(p / 100 * (flat.numel() - 1)) for p in (lower, upper)])
    return ((image - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)


def _ranked(numbers: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """The numbers (N,) of these ranks, from the least, 0. A GPU sorts all of them sooner than it selects one."""
    if numbers.is_cuda:
        ordered = numbers.sort().values
        return [ordered[rank] for rank in ranks]
    return [numbers.kthvalue(1 + rank).values for rank in ranks]
