"""Whether somebody should look at a result: by what was found, how much of it, and where."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from monai_attention.bundles import LoadedBundle
from monai_attention.io.reach import far_ml
from monai_attention.io.volume import Note

FAR_ML = 1.0
"""So much of a class far from its middle is too much."""


def doubts(labels: np.ndarray, affine: np.ndarray, volumes_ml: Mapping[str, float], bundle: LoadedBundle) -> list[Note]:
    """Flags for a result: `F-EMPTY`, `F-VOLUME`, `F-SCATTERED`.

    Args:
        labels: uint8, shape (X, Y, Z).
        affine: shape (4, 4), voxel index -> world mm.
        volumes_ml: of each class.
        bundle: says which volumes, and which distances from the middle, are believed.
    """
    if not any(volumes_ml.values()):
        return [Note("flag", "F-EMPTY", "nothing was found: every voxel is background")]
    notes = []
    odd = [
        f"{name} {_amount(volumes_ml[name])} mL, expected {low:g} to {high:g}"
        for name, (low, high) in bundle.plausible_ml.items()
        if not low <= volumes_ml[name] <= high
    ]
    if odd:
        message = f"implausible volumes, or not a whole one in the image: {'; '.join(odd)}"
        notes.append(Note("flag", "F-VOLUME", message))
    reach = {label: bundle.within_mm[name] for label, name in bundle.classes.items() if name in bundle.within_mm}
    scattered = [
        f"{_amount(ml)} mL of {bundle.classes[label]} more than {reach[label]:g} mm from its middle"
        for label, ml in far_ml(labels, affine, reach).items()
        if ml > FAR_ML
    ]
    if scattered:
        notes.append(Note("flag", "F-SCATTERED", f"found where it cannot all be: {'; '.join(scattered)}"))
    return notes


def _amount(ml: float) -> str:
    """Three digits, or whole mL: what is just outside its limits is not to read as if it were inside."""
    return f"{ml:.3g}" if ml < 100 else f"{ml:.0f}"
