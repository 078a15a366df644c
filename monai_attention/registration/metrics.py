"""How good a registration is: of its field alone (folds, volume changes, there and back), by landmarks, by labels.

Functions first; then MONAI metrics of those that are one number a field, for evaluators and bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric, compute_hausdorff_distance
from torch import Tensor

from monai_attention.registration.fields import compose, jacobian_determinant, warp
from monai_attention.registration.parts import planes
from monai_attention.registration.sampling import sample
from monai_attention.registration.world import ddf_to_mm


def folds(ddf: Tensor, mask: Tensor | None = None) -> Tensor:
    """Percent of voxels where the field folds: its Jacobian determinant is 0 or less.

    Args:
        ddf: shape (B, n, *S).
        mask: shape (B, 1, *S); only voxels where it is not 0 count.

    Returns:
        Shape (B,), 0 to 100; NaN where the mask is empty.
    """
    return torch.stack([100 * one.mean() for one in _inside((jacobian_determinant(ddf) <= 0).float(), mask)])


def sd_log_jacobian(ddf: Tensor, mask: Tensor | None = None) -> Tensor:
    """How unevenly a field changes volumes, as the Learn2Reg challenge measures it: SD of log(det J + 3).

    Hering et al., "Learn2Reg", IEEE TMI 42 (2023), doi:10.1109/TMI.2022.3213983. The challenge's program adds 3 to
    the determinant, clips the sum to 1e-9 ... 1e9 and takes the population's SD of its logarithm; so do we, because
    published figures are made like that. Folds stay finite, and for small deformations it is a quarter of the SD of
    log(det J). The challenge leaves out the two outer voxels of the grid; pass a mask for the same.

    Args:
        ddf: shape (B, n, *S).
        mask: shape (B, 1, *S); only voxels where it is not 0 count.

    Returns:
        Shape (B,), from 0; NaN where the mask is empty.
    """
    logs = (jacobian_determinant(ddf) + 3).clamp(1e-9, 1e9).log()
    return torch.stack([(one - one.mean()).square().mean().sqrt() for one in _inside(logs, mask)])


def inverse_consistency(ddf: Tensor, inverse: Tensor, affine: np.ndarray | Tensor) -> Tensor:
    """How far from where it was each voxel's centre is after going by `inverse` and then by `ddf`.

    Args:
        ddf: shape (B, 3, *S). Beyond the grid it is taken to be as at the border.
        inverse: same shape.
        affine: shape (4, 4), voxel index -> mm; of the grid of both.

    Returns:
        Shape (B, 1, *S), mm. `mean_and_max` makes two numbers of it.
    """
    return ddf_to_mm(compose(ddf, inverse), affine).norm(dim=1, keepdim=True)


def mean_and_max(values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and maximum of each item, both of shape (B,); NaN where the mask is empty.

    Args:
        values: shape (B, 1, *S).
        mask: same shape; only voxels where it is not 0 count.
    """
    parts = _inside(values, mask)
    highest = [one.max() if len(one) else one.mean() for one in parts]
    return torch.stack([one.mean() for one in parts]), torch.stack(highest)


def target_registration_error(
    displacement_mm: Tensor, affine: np.ndarray | Tensor, fixed_points: Tensor, moving_points: Tensor
) -> Tensor:
    """Distance of where landmarks of the fixed image come from, by the field, to where they are in the moving one.

    Args:
        displacement_mm: shape (B, 3, *S), RAS mm, on the fixed grid (`world.ddf_to_mm` makes it of a ddf); linear
            between voxels, and beyond the grid as at the border.
        affine: shape (4, 4), index of a voxel of the fixed grid -> RAS mm.
        fixed_points: shape (B, N, 3), RAS mm.
        moving_points: the same landmarks, in the same order and shape.

    Returns:
        Shape (B, N), mm; NaN where a coordinate is NaN, so that items may have fewer than N landmarks.
    """
    if fixed_points.shape != moving_points.shape or fixed_points.ndim != 3 or fixed_points.shape[2] != 3:
        raise ValueError(
            f"fixed and moving points must both have shape (B, N, 3), got {tuple(fixed_points.shape)} and "
            f"{tuple(moving_points.shape)}"
        )
    to_voxel = torch.linalg.inv(torch.as_tensor(affine, dtype=torch.float64, device="cpu"))
    voxels = fixed_points.cpu().double() @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    field = displacement_mm.to(torch.promote_types(displacement_mm.dtype, torch.float32))
    places = voxels.transpose(1, 2)[..., None, None].to(field)
    moves = sample(field, places, padding="border")[..., 0, 0].transpose(1, 2)
    return (fixed_points.to(moves) + moves - moving_points.to(moves)).norm(dim=2)


def warp_labels(labels: Tensor, ddf: Tensor, classes: int) -> Tensor:
    """The moving label map as the fixed grid sees it: of linearly interpolated classes, the one with the most.

    Rounding places to the nearest voxel instead moves surfaces by up to half a voxel.

    Args:
        labels: shape (B, 1, *M), classes from 0, the background, to `classes` - 1.
        ddf: shape (B, n, *S).
        classes: their number.

    Returns:
        Shape (B, 1, *S), dtype of `labels`; background beyond the moving image.
    """
    most = 1 - warp((labels != 0).float(), ddf)
    found = torch.zeros_like(most, dtype=labels.dtype)
    for c in range(1, classes):
        share = warp((labels == c).float(), ddf)
        found[share > most] = c
        most = torch.maximum(most, share)
    return found


def dice(warped: Tensor, fixed: Tensor, classes: int) -> Tensor:
    """Dice's coefficient of each class but the background.

    Args:
        warped: label map, shape (B, 1, *S); see `warp_labels`.
        fixed: label map of the same shape.
        classes: their number with the background, 0.

    Returns:
        Shape (B, classes - 1), 0 to 1: 0 where a class is in one of the two only, NaN where it is in neither.
    """
    both, either = torch.zeros(2, len(fixed), classes, dtype=torch.int64, device=fixed.device)
    for item in range(len(fixed)):
        for part in planes(fixed.shape[2:]):  # by counting: as one-hot, many classes would not fit into memory
            a, b = (labels[item, :, part].flatten().long() for labels in (warped, fixed))
            either[item] += a.bincount(minlength=classes) + b.bincount(minlength=classes)
            both[item] += a[a == b].bincount(minlength=classes)
    return (2 * both / either)[:, 1:]


def mean_dice(warped: Tensor, fixed: Tensor) -> Tensor:
    """Mean of Dice's coefficients over the labels of either map but the background; see `dice`.

    Returns:
        Shape (B,); NaN where there are no labels.
    """
    return dice(warped, fixed, int(max(warped.max(), fixed.max())) + 1).nanmean(dim=1)


def hd95(warped: Tensor, fixed: Tensor, classes: int, spacing: Sequence[float]) -> Tensor:
    """95th percentile of the distances between the surfaces of each class but the background, by MONAI.

    The larger of the percentiles of either direction; distances are between centres of voxels at the surfaces.

    Args:
        warped: label map, shape (B, 1, *S); see `warp_labels`.
        fixed: label map of the same shape.
        classes: their number with the background, 0.
        spacing: mm, along each axis of S.

    Returns:
        Shape (B, classes - 1), mm: infinite where a class is in one of the two only, NaN where it is in neither.
    """
    result = torch.full((len(fixed), classes - 1), torch.nan)
    for b, c in np.ndindex(*result.shape):  # class by class: all of them as one-hot would not fit into memory
        pair = [(labels[b : b + 1] == c + 1) for labels in (warped, fixed)]
        present = [bool(one.any()) for one in pair]
        if all(present):
            found = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=tuple(spacing))
            result[b, c] = float(found)
        elif any(present):
            result[b, c] = torch.inf
    return result.to(fixed.device)


class _OfFields(CumulativeIterationMetric):
    """One number a field; `aggregate` is the mean of those that are not NaN."""

    def aggregate(self) -> Tensor:
        """Mean over all fields since the last `reset`; NaN if there was no number."""
        values = self.get_buffer()
        return torch.tensor(torch.nan) if values is None else values.nanmean()


class Folds(_OfFields):
    """Percent of folded voxels: `y_pred` is the ddf, (B, n, *S); `y`, if there is one, the mask. See `folds`."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Tensor:
        return folds(_plain(y_pred), None if y is None else _plain(y))[:, None]


class SDLogJacobian(_OfFields):
    """Unevenness of volume changes: `y_pred` is the ddf; `y`, if there is one, the mask. See `sd_log_jacobian`."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Tensor:
        return sd_log_jacobian(_plain(y_pred), None if y is None else _plain(y))[:, None]


class TargetRegistrationError(_OfFields):
    """Mean distance of landmarks in mm, a field; see `target_registration_error`.

    `y_pred` is the ddf, (B, 3, *S), a MetaTensor with the fixed grid's affine; `y` has shape (B, 2, N, 3): landmarks
    of the fixed image, then those of the moving one, RAS mm; NaN where an item has fewer.
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Tensor:
        if not isinstance(y_pred, MetaTensor) or y is None:
            raise TypeError(
                f"expected a MetaTensor, whose affine is the fixed grid's, and landmarks; got {type(y_pred)}"
            )
        points, ddf = _plain(y), _plain(y_pred)
        affines = torch.as_tensor(y_pred.affine).expand(len(ddf), 4, 4)
        errors = [
            target_registration_error(ddf_to_mm(one[None], affine), affine, pair[:1], pair[1:])[0]
            for one, affine, pair in zip(ddf, affines, points, strict=True)
        ]
        return torch.stack(errors).nanmean(dim=1, keepdim=True)


def _plain(x: Tensor) -> Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def _inside(values: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The values of each item that count, each of shape (N,)."""
    flat = list(values.flatten(1))
    if mask is None:
        return flat
    if mask.shape != values.shape:
        raise ValueError(f"the mask must have shape {tuple(values.shape)}, got {tuple(mask.shape)}")
    return [one[within] for one, within in zip(flat, mask.flatten(1) != 0, strict=True)]
