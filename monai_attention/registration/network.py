"""A bundle's registration model, called with scans: in the orientation and at the spacing that it was trained at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nibabel
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_attention.registration.fields import resize_ddf
from monai_attention.registration.model import RegistrationModel
from monai_attention.registration.pair import Network, Pose
from monai_attention.registration.scan import Scan, normalised
from monai_attention.registration.structures import StructureNetwork

Model = Callable[[Tensor, Tensor], Tensor]
"""From moving and fixed image (1, C, *S) to a ddf (1, 3, *S)."""

LEAST_STRUCTURES = 8
LEAST_MM3 = 300.0
FARTHEST_MM = 10.0
"""Of a pose by structures: so many of at least this volume, half of them no further from each other than this."""


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


def pose_of(model: Model, spacing_mm: Sequence[float]) -> Pose | None:
    """What `pair.Plan` takes for the affine registration: the map between structures that the model recognises.

    It is not refined by mutual information: on heads of two people in two contrasts that was seen to lead away from it.

    Args:
        model: trained on images in RAS.
        spacing_mm: of these, along x, y, z.

    Returns:
        None for a model that recognises none. The function gives None where fewer than `LEAST_STRUCTURES` are in both
        scans, or where they do not fit.
    """
    if not isinstance(model, RegistrationModel) or not isinstance(model.network, StructureNetwork):
        return None
    recognising = model.network

    def pose(moving: Scan, fixed: Scan) -> Tensor | None:
        (here, own), (there, other) = (_structures(scan, recognising, spacing_mm) for scan in (fixed, moving))
        both = torch.minimum(own, other) > LEAST_MM3
        return affine_between(here[both], there[both]) if int(both.sum()) >= LEAST_STRUCTURES else None

    return pose


def affine_between(here: Tensor, there: Tensor, *, nearest_mm: float = 2.0) -> Tensor | None:
    """The affine map under which points lie nearest to others, by the sum of distances: a few wrong ones hardly count.

    Args:
        here: shape (N, 3), mm.
        there: where each should come to lie.
        nearest_mm: distances below count as squares.

    Returns:
        Shape (4, 4), float64; None if it mirrors, or half of the points stay further away than `FARTHEST_MM`.
    """
    points, goals = F.pad(here.double(), (0, 1), value=1.0), there.double()
    weights = torch.ones_like(points[:, :1])
    for _ in range(20):  # least squares, weighted again and again
        columns = torch.linalg.lstsq(points * weights.sqrt(), goals * weights.sqrt()).solution
        off = (points @ columns - goals).norm(dim=1, keepdim=True)
        weights = 1 / off.clamp_min(nearest_mm)
    matrix = torch.cat([columns.T, points.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    return matrix if torch.linalg.det(matrix[:3, :3]) > 0 and float(off.median()) < FARTHEST_MM else None


def _structures(scan: Scan, network: StructureNetwork, spacing_mm: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Where structures lie in a scan, (n, 3) in RAS mm, and their volumes in mm³."""
    axes, flipped = to_ras(scan)
    worked = _size_at(scan, axes, spacing_mm)
    centres, size = network.centres(_resized(_turned(normalised(scan).values, axes, flipped), worked))
    turned = torch.tensor([scan.shape[axis] for axis in axes])
    steps = turned / torch.tensor(worked)
    voxels = (centres.double().cpu() + 0.5) * steps - 0.5
    voxels[:, flipped] = turned[flipped] - 1 - voxels[:, flipped]
    back = torch.empty_like(voxels)
    back[:, axes] = voxels
    mm3 = size.double().cpu() * steps.prod() * scan.spacing.prod()
    return back @ scan.affine[:3, :3].T + scan.affine[:3, 3], mm3


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
