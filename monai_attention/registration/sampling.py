"""Values of an image between its voxels: linear, nearest, cubic; one to three axes, differentiable.

All of it is computed in float32 at least, whatever comes in.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_attention.registration.parts import planes

MODES = ("linear", "nearest", "cubic")
PADDINGS = ("zeros", "border")


def sample(values: Tensor, coordinates: Tensor, *, mode: str = "linear", padding: str = "zeros") -> Tensor:
    """Look up an image at places given in its voxels.

    Args:
        values: shape (B, C, *M), one to three spatial axes.
        coordinates: shape (B, n, *S), component i along axis i of `M`, 0 at the centre of the first voxel.
        mode: `linear`, `nearest`, or `cubic` (Keys 1981, doi:10.1109/TASSP.1981.1163711, a = -1/2: reproduces
            polynomials up to the second degree, may overshoot).
        padding: `zeros`, outside of the image is 0; or `border`, it is the nearest voxel.

    Returns:
        Shape (B, C, *S). `nearest` has the dtype of `values`; the others float32, or float64 if anything is.
    """
    if mode not in MODES or padding not in PADDINGS:
        raise ValueError(f"mode must be one of {MODES} and padding one of {PADDINGS}; got {mode!r}, {padding!r}")
    n = values.ndim - 2
    if coordinates.ndim != values.ndim or coordinates.shape[1] != n or len(coordinates) != len(values):
        raise ValueError(
            f"coordinates must have shape ({len(values)}, {n}, ...) with {n} spatial axes for an image of shape "
            f"{tuple(values.shape)}; got {tuple(coordinates.shape)}"
        )
    double = torch.float64 in (values.dtype, coordinates.dtype)
    dtype = torch.float64 if double else torch.float32
    # As numbers these are the same in any precision; autocast must not round coordinates.
    with torch.autocast(values.device.type, enabled=False):
        looked_up = (_cubic if mode == "cubic" else _by_torch)(values.to(dtype), coordinates.to(dtype), mode, padding)
    return looked_up.to(values.dtype) if mode == "nearest" else looked_up


def _by_torch(values: Tensor, coordinates: Tensor, mode: str, padding: str) -> Tensor:
    if values.ndim == 3:  # torch begins at two axes
        return _by_torch(values[..., None], _with_an_axis(coordinates), mode, padding)[..., 0]
    size = values.shape[2:]
    # torch counts axes from the last, and voxels from -1 to 1 between the image's outer edges.
    parts = [(c + 0.5) * (2 / n) - 1 for c, n in zip(coordinates.unbind(1), size, strict=True)]
    grid = torch.stack(parts[::-1], dim=-1)
    kind = "bilinear" if mode == "linear" else mode
    # On the CPU torch divides 3-D work by images, so one image is looked up as several: parts of the same.
    if grid.device.type != "cpu" or values.ndim == 4 or len(values) >= torch.get_num_threads():
        return F.grid_sample(values, grid, mode=kind, padding_mode=padding, align_corners=False)
    parts_of_each = torch.get_num_threads() // len(values)
    length = -(-grid.shape[1] // parts_of_each)
    spare = length * parts_of_each - grid.shape[1]
    grid = F.pad(grid, (0, 0) * 3 + (0, spare)).unflatten(1, (parts_of_each, length)).flatten(0, 1)
    repeated = values[:, None].expand(-1, parts_of_each, *values.shape[1:]).flatten(0, 1)
    found = F.grid_sample(repeated, grid, mode=kind, padding_mode=padding, align_corners=False)
    whole = found.unflatten(0, (len(values), parts_of_each)).transpose(1, 2).flatten(2, 3)
    return whole[:, :, : whole.shape[2] - spare] if spare else whole


def _with_an_axis(coordinates: Tensor) -> Tensor:
    """Places in an image of one axis, as places in one of two whose second axis has one voxel."""
    return torch.cat([coordinates, torch.zeros_like(coordinates)], dim=1)[..., None]


def _cubic(values: Tensor, coordinates: Tensor, mode: str, padding: str) -> Tensor:
    if torch.is_grad_enabled() and (values.requires_grad or coordinates.requires_grad):
        return _cubic_at_once(values, coordinates, padding)
    parts = planes(coordinates.shape[2:])
    return torch.cat([_cubic_at_once(values, coordinates[:, :, part], padding) for part in parts], dim=2)


def _cubic_at_once(values: Tensor, coordinates: Tensor, padding: str) -> Tensor:
    size, strides = values.shape[2:], _strides(values.shape[2:])
    flat = values.flatten(2)
    low = coordinates.floor()
    weights = [_keys(t) for t in (coordinates - low).unbind(1)]
    found: Tensor | None = None
    for offsets in itertools.product(range(4), repeat=len(size)):
        index: Tensor | int = 0
        weight: Tensor | float = 1.0
        for axis, (offset, n) in enumerate(zip(offsets, size, strict=True)):
            place = low[:, axis].long() + (offset - 1)
            along = weights[axis][offset]
            if padding == "zeros":
                along = along * ((place >= 0) & (place < n))
            index = index + place.clamp(0, n - 1) * strides[axis]
            weight = weight * along
        assert isinstance(index, Tensor)
        taken = flat.gather(2, index.flatten(1)[:, None].expand(-1, flat.shape[1], -1)).unflatten(2, index.shape[1:])
        term = taken * weight[:, None]  # type: ignore[index]
        found = term if found is None else found + term
    assert found is not None
    return found


def _keys(t: Tensor) -> list[Tensor]:
    """Weights of the four voxels around a place that is `t`, from 0 to 1, after the second of them."""
    square, cube = t * t, t * t * t
    return [
        0.5 * (-t + 2 * square - cube),
        0.5 * (2 - 5 * square + 3 * cube),
        0.5 * (t + 4 * square - 3 * cube),
        0.5 * (cube - square),
    ]


def _strides(size: Sequence[int]) -> list[int]:
    """Of a contiguous array."""
    strides = [1]
    for n in reversed(size[1:]):
        strides.insert(0, strides[0] * n)
    return strides
