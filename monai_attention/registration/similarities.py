"""Which similarity a pair is registered with; all are of images with values from 0 to 1, lower is better."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from monai_attention.registration.local_correlation import LocalCorrelation
from monai_attention.registration.mutual_information import MutualInformation
from monai_attention.registration.self_similarity import Mind

SIMILARITIES: dict[str, Callable[[], nn.Module]] = {
    "lncc": LocalCorrelation,
    "mi": functools.partial(MutualInformation, warped_range=(0, 1), fixed_range=(0, 1)),
    "mind": Mind,
}
"""By name: local correlation for images of one kind, the others for different kinds."""

ALIKE = 0.3
"""Correlation of intensities, after the affine registration, from which two images are taken to be of one kind."""


def similarity(name: str) -> nn.Module:
    """A similarity by its name.

    Raises:
        ValueError: there is no such name.
    """
    if name not in SIMILARITIES:
        raise ValueError(f"similarity must be auto or one of {', '.join(SIMILARITIES)}; got {name!r}")
    return SIMILARITIES[name]()


def suited(moving: Tensor, fixed: Tensor, mask: Tensor) -> str:
    """`lncc` if two images that lie on each other are of one kind, else `mind`.

    Background is left out: it is dark in images of any kind, and noise around it lifts it from 0. What is darker than
    half way between the mean of the dark group that Otsu's threshold tells and that threshold counts as background.

    Args:
        moving: shape (1, C, *S).
        fixed: same shape.
        mask: where both are seen, shape (1, 1, *S).
    """
    both = torch.stack([x.mean(dim=1).flatten() for x in (moving, fixed)])
    limits = [otsu(values) for values in both]
    dark = [(values[values <= limit].mean() + limit) / 2 for values, limit in zip(both, limits, strict=True)]
    values = both[:, (mask > 0.5).flatten() & (both > torch.stack(dark)[:, None]).all(dim=0)]
    if values.shape[1] < 2 or not (values.std(dim=1) > 0).all():
        return "mind"
    return "lncc" if float(torch.corrcoef(values)[0, 1]) >= ALIKE else "mind"


def otsu(values: Tensor, bins: int = 128) -> Tensor:
    """The threshold that parts values into the two groups that are most uniform, on as many bins.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems, Man, and Cybernetics
    9 (1979), doi:10.1109/TSMC.1979.4310076.
    """
    low, high = values.min(), values.max()
    counts = torch.histc(values, bins, float(low), float(high))
    edges = torch.linspace(float(low), float(high), bins + 1, device=values.device)
    below, weighted = counts.cumsum(0), (counts * (edges[1:] + edges[:-1]) / 2).cumsum(0)
    above = below[-1] - below
    between = (weighted[-1] * below - below[-1] * weighted).square() / (below * above).clamp(min=1)
    return edges[1:][between[:-1].argmax()]
