"""Dense displacement fields: pure functions on them, differentiable (but for `invert`), one to three axes.

A `ddf` is a displacement in voxels of the **fixed** grid, shape (B, n, *S), component i along array axis i, and pulls
back: the warped image at x is the moving image at x + ddf(x). It stands for the transformation x -> x + ddf(x). All
functions compute in float32 whatever comes in (in float64 if that comes in).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_attention.registration.parts import planes
from monai_attention.registration.sampling import sample


def identity(size: Sequence[int], *, like: Tensor, part: slice = slice(None)) -> Tensor:
    """Index of each voxel, shape (n, *size), on the device of `like`; float32, or float64 if `like` is.

    Args:
        size: of the grid.
        like: see above.
        part: of the first axis; only these voxels.
    """
    axes = [torch.arange(n, device=like.device, dtype=_dtype(like)) for n in size]
    axes[0] = axes[0][part]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def warp(image: Tensor, ddf: Tensor, *, mode: str = "linear", padding: str = "zeros") -> Tensor:
    """The moving image as the fixed grid sees it.

    Args:
        image: shape (B, C, *M); usually M is S, but any size has voxels.
        ddf: shape (B, n, *S).
        mode: see `sampling.sample`.
        padding: see `sampling.sample`.

    Returns:
        Shape (B, C, *S).
    """
    return sample(image, _places(ddf), mode=mode, padding=padding)


def compose(first: Tensor, second: Tensor, *, padding: str = "border") -> Tensor:
    """One field for two: warping by the result is warping by `first`, and what comes out by `second`.

    As transformations of points, `second` is applied first: x -> x + second(x), and `first` there.

    Args:
        first: shape (B, n, *S).
        second: same shape.
        padding: beyond its grid `first` is as at the `border`, or `zeros`.
    """
    return second.to(_dtype(second)) + warp(first, second, padding=padding)


def integrate(velocity: Tensor, steps: int = 7, *, padding: str = "border") -> Tensor:
    """The flow of a stationary velocity at time 1, by scaling and squaring.

    Arsigny et al., "A Log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006,
    doi:10.1007/11866565_113. `integrate(-velocity)` is the inverse.

    Args:
        velocity: shape (B, n, *S), voxels per unit of time.
        steps: squarings; 2**steps small steps in effect.
        padding: see `compose`.

    Returns:
        ddf, shape (B, n, *S).
    """
    ddf = velocity.to(_dtype(velocity)) / 2**steps
    for _ in range(steps):
        ddf = compose(ddf, ddf, padding=padding)
    return ddf


@torch.no_grad()
def invert(
    ddf: Tensor, *, start: Tensor | None = None, iterations: int = 100, tolerance: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """The field of the inverse transformation on the same grid, by fixed-point iteration.

    Chen et al., "A simple fixed-point approach to invert a deformation field", Medical Physics 35 (2008),
    doi:10.1118/1.2816107. No gradients go through. Where the field folds there are several ways back, of which this is
    one: look at its Jacobian.

    Args:
        ddf: shape (B, n, *S). Beyond the grid it is taken to be as at the border.
        start: a guess of the inverse; None: minus the field.
        iterations: at most.
        tolerance: in voxels; when no residual is larger, it ends.

    Returns:
        The inverse, and its residual, shape (B, 1, *S): how many voxels a point is off after going there and back.
    """
    ddf = ddf.to(_dtype(ddf))
    inverse = -ddf if start is None else start.to(ddf).clone()
    wrong = torch.empty_like(ddf)
    share = torch.ones_like(ddf[:, :1])
    before = torch.full_like(share, float("inf"))
    for left in range(iterations, -1, -1):
        for part in planes(ddf.shape[2:]):
            back = inverse[:, :, part]
            places = back + identity(ddf.shape[2:], like=ddf, part=part)
            wrong[:, :, part] = back + sample(ddf, places, padding="border")  # 0 if there and back is where we were
        off = wrong.norm(dim=1, keepdim=True)
        if not left or float(off.max()) <= tolerance:
            break
        # Where the field is steep, whole steps go round in circles.
        share = torch.where(off > 0.9 * before, (share / 2).clamp_min(0.05), share)
        before = off
        inverse -= wrong.mul_(share)
    return inverse, off


def resize_ddf(ddf: Tensor, size: Sequence[int]) -> Tensor:
    """The same displacement on another grid over the same field of view: more or fewer voxels, other units.

    This is the only place where displacements are scaled for a grid. Grids cover the same space edge to edge (not
    centre of first voxel to centre of last).

    Args:
        ddf: shape (B, n, *S).
        size: of the new grid.

    Returns:
        Shape (B, n, *size), in voxels of the new grid.
    """
    ddf = ddf.to(_dtype(ddf))
    old = ddf.shape[2:]
    if tuple(size) == tuple(old):
        return ddf
    coarser = all(new <= n for new, n in zip(size, old, strict=True))
    kind = "area" if coarser else {1: "linear", 2: "bilinear", 3: "trilinear"}[len(old)]
    # Made on the device: a copy from the CPU could not be recorded (`finetune.graphed`).
    factors = torch.cat([ddf.new_full((1,), new / n) for new, n in zip(size, old, strict=True)])
    resized = F.interpolate(ddf, size=tuple(size), mode=kind, **({} if coarser else {"align_corners": False}))
    return resized * factors.view(1, -1, *[1] * len(old))


def jacobian(ddf: Tensor) -> list[list[Tensor]]:
    """Derivatives of the transformation: row i, column j is that of component i along axis j, each (B, *S).

    Central differences, one-sided at the border.
    """
    ddf = ddf.to(_dtype(ddf))
    rows = []
    for i, component in enumerate(ddf.unbind(1)):
        row = [_derivative(component, 1 + axis) for axis in range(component.ndim - 1)]
        row[i] = row[i] + 1
        rows.append(row)
    return rows


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """How much volume at each voxel of the fixed grid comes from the moving image; 0 or less where the field folds.

    Args:
        ddf: shape (B, n, *S), at least two voxels along each axis.

    Returns:
        Shape (B, 1, *S): 1 where volume is kept, 2 where the warped image is the moving one shrunk to half.
    """
    return _determinant(jacobian(ddf))[:, None]


def affine_to_ddf(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """The field of an affine transformation.

    Args:
        matrix: shape (B, n, n + 1) or (B, n + 1, n + 1): index of a voxel of the fixed grid -> where it comes from.
        size: of the fixed grid.

    Returns:
        Shape (B, n, *size).
    """
    n = len(size)
    grid = identity(size, like=matrix)
    linear, shift = matrix[:, :n, :n].to(grid), matrix[:, :n, n].to(grid)
    move = linear - torch.eye(n, device=grid.device, dtype=grid.dtype)  # of small numbers less is lost
    ddf = shift.view(-1, n, *[1] * n).repeat(1, 1, *size)
    for i in range(n):
        for j in range(n):  # by sums: matrix products may be rounded to fewer digits, by autocast or on GPUs
            ddf[:, i] += move[:, i, j].view(-1, *[1] * n) * grid[j]
    return ddf


def ddf_to_affine(ddf: Tensor) -> Tensor:
    """The affine transformation nearest to a field (least squares over voxels), shape (B, n + 1, n + 1), float64."""
    n, size = ddf.shape[1], ddf.shape[2:]
    result = torch.eye(n + 1, device=ddf.device, dtype=torch.float64).repeat(len(ddf), 1, 1)
    left, right = torch.zeros_like(result[0]), torch.zeros_like(result[:, :, :n])
    for part in planes(size):
        grid = identity(size, like=result, part=part).flatten(1)
        places = torch.cat([grid, torch.ones_like(grid[:1])])
        left = left + places @ places.T
        right = right + places @ ddf[:, :, part].double().flatten(2).transpose(1, 2)
    result[:, :n] += torch.linalg.solve(left, right).transpose(1, 2)
    return result


def _dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _places(ddf: Tensor) -> Tensor:
    """Where each voxel comes from."""
    if ddf.ndim != ddf.shape[1] + 2:
        raise ValueError(f"expected a field of shape (B, n, *S) with n axes in S, got {tuple(ddf.shape)}")
    return ddf.to(_dtype(ddf)) + identity(ddf.shape[2:], like=ddf)


def _derivative(x: Tensor, axis: int) -> Tensor:
    """Central differences, one-sided at the ends."""
    n = x.shape[axis]
    if n < 2:
        raise ValueError(f"there is no derivative along an axis of {n} voxel; the field has shape {tuple(x.shape)}")
    middle = (x.narrow(axis, 2, n - 2) - x.narrow(axis, 0, n - 2)) / 2
    first = x.narrow(axis, 1, 1) - x.narrow(axis, 0, 1)
    last = x.narrow(axis, n - 1, 1) - x.narrow(axis, n - 2, 1)
    return torch.cat([first, middle, last], dim=axis)


def _determinant(rows: list[list[Tensor]]) -> Tensor:
    """By the first row."""
    if len(rows) == 1:
        return rows[0][0]
    total = torch.zeros_like(rows[0][0])
    for j, entry in enumerate(rows[0]):
        minor = _determinant([row[:j] + row[j + 1 :] for row in rows[1:]])
        total = total + entry * minor if j % 2 == 0 else total - entry * minor
    return total
