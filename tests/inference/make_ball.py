"""A bright ball in the dark."""

import numpy as np

RADIUS = 9.0


def ball(shape, affine, centre=None, radius=RADIUS):
    """An image (X, Y, Z) with a ball of `radius` mm around a world point, half as bright as its middle at the edge."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3] if centre is None else centre
    far = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - centre, axis=-1)
    return np.clip((radius + 4 - far) / 8, 0, 1).astype(np.float32), centre
