"""A bundle's registration model, called with scans: in the orientation and at the spacing that it was trained at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nibabel
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_attention.registration.fields import resize_ddf
from monai_attention.registration.model import RegistrationModel
from monai_attention.registration.pair import Network
from monai_attention.registration.recognised import Recognise
from monai_attention.registration.scan import Scan, normalised
from monai_attention.registration.structures import StructureNetwork

Model = Callable[[Tensor, Tensor], Tensor]
"""From moving and fixed image (1, C, *S) to a ddf (1, 3, *S)."""


def network_of(model: Model, spacing_mm: Sequence[float]) -> Network:
    """What `pair.Plan` calls: turns scans to RAS and to the model's spacing, and the ddf back.

    Args:
        model: trained on images in RAS.
        spacing_mm: of these, along x, y, z.
    """

    def network(moving: Scan, fixed: Scan) -> Tensor:
        axes, flipped = to_ras(fixed)
        worked = _size_at(fixed, axes, spacing_mm)
        pair = (_turned(scan.values, axes, flipped) for scan in (moving, fixed))
        ddf = resize_ddf(model(*(_resized(image, worked) for image in pair)), [fixed.shape[axis] for axis in axes])
        return turned_back(ddf, axes, flipped)

    return network


def recognise_of(model: Model, spacing_mm: Sequence[float]) -> Recognise | None:
    """What `pair.Plan` finds the pose with, and judges by: the structures that the model recognises in a scan.

    Args:
        model: trained on images in RAS.
        spacing_mm: of these, along x, y, z.

    Returns:
        None for a model that recognises none.
    """
    if not isinstance(model, RegistrationModel) or not isinstance(model.network, StructureNetwork):
        return None
    network = model.network

    def recognise(scan: Scan) -> Scan:
        axes, flipped = to_ras(scan)
        worked = _size_at(scan, axes, spacing_mm)
        found = network.recognise(_resized(_turned(normalised(scan).values, axes, flipped), worked))[:, 0]
        step = torch.zeros(4, 4, dtype=torch.float64)  # from a voxel of the structures to one of the scan
        step[3, 3] = 1
        for world, (axis, n) in enumerate(zip(axes, worked, strict=True)):
            length = scan.shape[axis] / n * network.coarseness
            first, sign = (length - 1) / 2, 1
            if world in flipped:
                first, sign = scan.shape[axis] - 1 - first, -1
            step[axis, world], step[axis, 3] = sign * length, first
        return Scan(found, scan.affine @ step)

    return recognise


def _size_at(scan: Scan, axes: Sequence[int], spacing_mm: Sequence[float]) -> list[int]:
    """Voxels of a scan, turned to RAS, along each axis at another spacing."""
    mm = [scan.shape[axis] * float(scan.spacing[axis]) for axis in axes]
    return [max(2, round(n / wanted)) for n, wanted in zip(mm, spacing_mm, strict=True)]


def to_ras(scan: Scan) -> tuple[list[int], list[int]]:
    """Axes of the array that run nearest to x, y, z, and those of x, y, z along which they then run backwards."""
    orientation = nibabel.io_orientation(scan.affine.numpy())
    axes = [int(axis) for axis in orientation[:, 0].argsort()]
    return axes, [world for world, axis in enumerate(axes) if orientation[axis, 1] < 0]


def turned_back(ddf: Tensor, axes: Sequence[int], flipped: Sequence[int]) -> Tensor:
    """A ddf (1, 3, *S) on the grid that `to_ras` leads to, on the grid it began from."""
    signs = ddf.new_tensor([-1.0 if axis in flipped else 1.0 for axis in range(3)]).view(1, 3, 1, 1, 1)
    ddf = (ddf * signs).flip([2 + axis for axis in flipped])
    back = torch.tensor(list(axes)).argsort().tolist()
    return ddf.permute(0, 1, *(2 + i for i in back))[:, back]


def _turned(image: Tensor, axes: Sequence[int], flipped: Sequence[int]) -> Tensor:
    return image.permute(0, 1, *(2 + axis for axis in axes)).flip([2 + axis for axis in flipped])


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """Means along axes that become coarser, interpolated along those that become finer."""
    coarser = [min(n, m) for n, m in zip(image.shape[2:], size, strict=True)]
    if tuple(coarser) != tuple(image.shape[2:]):
        image = F.interpolate(image, size=coarser, mode="area")
    return image if tuple(size) == tuple(coarser) else F.interpolate(image, size=tuple(size), mode="trilinear")
