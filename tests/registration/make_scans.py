"""Pairs of scans whose transformation is known."""

import numpy as np
import torch

from monai_attention.registration.scan import Scan, transform
from monai_attention.synthesis.phantom import T1, head_image

T2 = {label: 1 - value if value > 0.1 else value for label, value in T1.items()}
"""Another contrast of the phantom."""

STORED = {
    "as_it_is": np.eye(3),
    "permuted_and_backwards": np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]]),
}
"""How an array may lie in the world."""


def head(spacing=4.0, *, brightness=None, seed=0):
    """A phantom head as a scan."""
    array, _, affine = head_image(spacing, brightness=brightness, seed=seed)
    return Scan(torch.from_numpy(array)[None, None], torch.from_numpy(affine))


def rigid(degrees, shift):
    """Rotation about x, then y, then z by degrees, then a shift in mm, (4, 4)."""
    matrix = torch.eye(4, dtype=torch.float64)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(4, dtype=torch.float64)
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    matrix[:3, 3] += torch.tensor(shift, dtype=torch.float64)
    return matrix


def moved(scan, matrix, *, spacing=(5.0, 4.0, 3.0), mode="linear"):
    """What a scanner shows of the same head when world point p has gone to `matrix` p: another, straight grid."""
    centre = transform(scan.points().mean(dim=(2, 3, 4), keepdim=True), matrix).flatten().double()
    size = [round(300 / step) for step in spacing]
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = centre - affine[:3, :3] @ (torch.tensor(size, dtype=torch.float64) - 1) / 2
    grid = Scan(torch.zeros(1).expand(1, 1, *size), affine)
    return Scan(scan.at(transform(grid.points(), torch.linalg.inv(matrix)), mode=mode), affine)


def error_mm(found, expected, scan):
    """How far two mappings of the brighter part of a scan are apart, mean in mm."""
    bright = (scan.values > scan.values.mean())[0, 0]
    return float((found(scan.points()) - expected(scan.points())).norm(dim=1)[0][bright].mean())
