"""Whether ANTs applies our displacement fields as we do, on an oblique and anisotropic grid; a figure, not a test.

    python -m benchmarks.fields --peers python3

A head made of formulas is the moving scan; the field, an affine and a smooth part, lies on another, turned grid. Our
`warp` and ANTs' `apply_transforms` resample by the same file, and the same points are sent through it. `--peers` is a
Python that has antspyx. (ITK is held against us in the tests.)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/fields.py`

from monai_attention.io.fields import write_field
from monai_attention.registration.apply import warp
from monai_attention.registration.scan import Scan
from monai_attention.registration.transformation import Transformation, displacement
from monai_attention.synthesis.phantom import head_image
from monai_attention.synthesis.randomness import smooth_field

SIZE, SPACING = (70, 90, 45), (2.5, 2.0, 4.0)
LPS = np.array([-1.0, -1.0, 1.0])


def turned(spacing: tuple[float, ...], size: tuple[int, ...], degrees: float) -> np.ndarray:
    """Affine of a grid around the world's origin, turned about an axis between x, y and z."""
    axis = np.array([1.0, -2.0, 1.5]) / np.linalg.norm([1.0, -2.0, 1.5])
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) @ np.diag(spacing)
    matrix[:3, 3] = -matrix[:3, :3] @ (np.array(size) - 1) / 2
    return matrix


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="a Python that has antspyx")
    peers = parser.parse_args().peers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        moving, _, affine = head_image(2.0)
        nibabel.save(nibabel.Nifti1Image(moving, affine), folder / "moving.nii.gz")
        grid = torch.from_numpy(turned(SPACING, SIZE, 25.0))
        ddf = 4 * smooth_field(3, (5, 5, 4), SIZE, torch.Generator().manual_seed(0))[None]
        matrix = torch.from_numpy(turned((1.05, 0.95, 1.0), (1, 1, 1), -8.0))
        matrix[:3, 3] = torch.tensor([6.0, -3.0, 4.0])
        fixed = Scan(torch.zeros(1, 1, *SIZE), grid)
        mm = displacement(Transformation(matrix, ddf, grid), fixed)
        write_field(folder / "field.nii.gz", mm, grid.numpy())
        warp(folder / "moving.nii.gz", folder / "field.nii.gz", folder / "ours.nii.gz")
        points = fixed.points()[0].flatten(1).T.numpy().astype(np.float64)[::7919]
        np.savetxt(folder / "points.csv", points * LPS, delimiter=",")
        script = Path(__file__).parent / "registration_peers.py"
        subprocess.run(
            [peers, str(script), "apply", str(folder)], check=True, env=os.environ, stdout=subprocess.DEVNULL
        )
        sent = np.loadtxt(folder / "sent.csv", delimiter=",") * LPS
        ours = points + mm.reshape(3, -1).T[::7919]
        print(
            f"points: {len(points)} moved by {np.linalg.norm(ours - points, axis=1).mean():.1f} mm on average;", end=" "
        )
        print(f"ANTs sends them at most {np.linalg.norm(sent - ours, axis=1).max():.1e} mm elsewhere")
        one, two = (nibabel.load(folder / f"{who}.nii.gz").get_fdata() for who in ("ours", "ants"))
        source = Scan(torch.from_numpy(moving)[None, None], torch.from_numpy(affine))
        inside = (source.inside(fixed.points() + torch.from_numpy(mm)[None]) == 1)[0, 0].numpy()
        off = np.abs(one - two)[inside].max() / np.ptp(moving)
        print(f"voxels: {inside.mean():.0%} see the moving scan; they differ by at most {off:.1e} of its range")


if __name__ == "__main__":
    main()
