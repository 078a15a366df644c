"""A head made of formulas: for tests, tutorials and the demo, where no scan is at hand.

It is no anatomy: ellipsoids with folded surfaces in the places where a head has its parts. Label values are those of
FreeSurfer (left / right), so that everything made for real label maps works on it; 507 is scalp, 515 skull, 530 eyes.
"""

from __future__ import annotations

import numpy as np

SIZE_MM = (180.0, 216.0, 204.0)
"""Field of view along x (left to right), y (back to front), z (bottom to top)."""

T1 = {3: 0.50, 42: 0.50, 2: 0.80, 41: 0.80, 4: 0.15, 43: 0.15, 24: 0.12, 10: 0.62, 49: 0.62, 11: 0.54, 50: 0.54}
T1 |= {12: 0.58, 51: 0.58, 8: 0.50, 47: 0.50, 7: 0.76, 46: 0.76, 16: 0.70, 507: 0.90, 515: 0.08, 530: 0.20}
"""Brightness of each label in a T1-weighted image of the phantom."""


def head_labels(spacing: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """The phantom's label map.

    Args:
        spacing: mm between voxels, the same along each axis.

    Returns:
        Labels, int16 (X, Y, Z), and the affine, voxel index -> RAS mm, with the origin between the ears.
    """
    shape = [round(mm / spacing) for mm in SIZE_MM]
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * spacing for n in shape]
    x, y, z = (
        (np.arange(n) * spacing + start).reshape([-1 if i == axis else 1 for i in range(3)])
        for axis, (n, start) in enumerate(zip(shape, affine[:3, 3], strict=True))
    )
    z = z + 12.0  # the brain lies above the middle of the head
    labels = np.zeros(shape, np.int16)
    side = np.where(x < 0, 0, 1)  # RAS: x < 0 is left

    def paint(where: np.ndarray, left: int, right: int | None = None) -> None:
        values = np.broadcast_to(left if right is None else np.where(side == 0, left, right), shape)
        np.copyto(labels, values.astype(np.int16), where=np.broadcast_to(where, shape))

    neck = (np.hypot(x, y + 15) < 52) & (z < -40)
    paint((_radius(x, y, z + 5, 78, 100, 98) < 1) | neck, 507)
    fossa = (_radius(x, y + 45, z + 38, 56, 36, 34) < 1) | (np.hypot(x / 17, (y + 24 + z / 6) / 16) < 1)
    for shell, label in ((5, 515), (0, 24)):  # the skull, and the room inside it
        cavity = (_radius(x, y, z - 4, 65 + shell, 83 + shell, 77 + shell) < 1) & ((z > -26 - shell) | fossa)
        paint(cavity, label)
    # Depth in mm below the brain's surface is approximated by (1 - r) * smallest radius, where r = 1 on the ellipsoid.
    # Sulci are where a gyroid, a surface that winds through space, comes near the surface of the brain.
    depth = np.minimum((1 - _radius(x, y, z - 7, 62, 79, 68)) * 62, z + 23)
    gyroid = np.abs(np.sin(x / 6) * np.cos(y / 6) + np.sin(y / 6) * np.cos(z / 6) + np.sin(z / 6) * np.cos(x / 6))
    middle = np.where(z > 20, np.abs(x), 99)  # the fissure between the hemispheres ends at the corpus callosum
    to_fluid = np.minimum(np.minimum(depth, middle - 1.5), np.maximum(6 * gyroid - 1.2, depth - 15))  # mm, roughly
    paint(to_fluid > 0, 3, 42)
    paint(to_fluid > 3, 2, 41)
    ventricle = (_radius(np.abs(x) - 9 - y**2 / 250, y + 2, z - 14 + y**2 / 150, 5, 30, 6) < 1) & (np.abs(x) > 1)
    paint(_radius(np.abs(x) - 11, y + 12, z - 4, 8, 14, 8) < 1, 10, 49)
    paint(_radius(np.abs(x) - 26, y - 8, z - 4, 6, 16, 9) < 1, 12, 51)
    paint(_radius(np.abs(x) - 15, y - 16, z - 12, 5, 13, 8) < 1, 11, 50)
    paint(ventricle, 4, 43)
    stem = (np.hypot(x / 13, (y + 24 + z / 6) / 12) < 1) & (z < -6) & (z > -78)
    cerebellum = (1 - _radius(x, y + 50, z + 42, 50, 27, 24)) * 24 + 1.5 * np.sin(z + y / 2)
    paint(cerebellum > 0, 8, 47)
    paint(cerebellum > 9, 7, 46)
    paint(stem, 16)
    paint(_radius(np.abs(x) - 31, y - 82, z + 22, 12, 12, 12) < 1, 530)
    return labels, affine


def head_image(
    spacing: float = 2.0, *, brightness: dict[int, float] | None = None, noise: float = 0.02, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The phantom as a scanner might show it: one brightness a label, soft edges, uneven illumination, noise.

    Args:
        spacing: mm between voxels.
        brightness: of each label, 0 to 1; `T1` if None.
        noise: standard deviation.
        seed: of the noise.

    Returns:
        Image, float32 (X, Y, Z), 0 to about 1000; labels; affine, voxel index -> RAS mm.
    """
    from scipy.ndimage import gaussian_filter

    labels, affine = head_labels(spacing)
    table = np.zeros(int(labels.max()) + 1, np.float32)
    for label, value in (T1 if brightness is None else brightness).items():
        table[label] = value
    image = gaussian_filter(table[labels], 0.8 / spacing)
    slope = np.linspace(0.9, 1.1, image.shape[1], dtype=np.float32)[None, :, None]
    image = image * slope + noise * np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32)
    return np.clip(1000 * image, 0, None).astype(np.float32), labels, affine


def _radius(x: np.ndarray, y: np.ndarray, z: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    """Distance from the centre of an ellipsoid, 1 on its surface."""
    return np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
