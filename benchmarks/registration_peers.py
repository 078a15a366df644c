"""One registration by another program, in a process of its own: what `benchmarks.registration` compares with.

    python registration_peers.py syn|affine|elastix|apply FOLDER

FOLDER holds fixed.nii.gz, moving.nii.gz and labels.nii.gz (of the moving scan); warped.nii.gz (labels on the fixed
grid, nearest), field.nii.gz (mm) and figures.json are written there. It needs antspyx or itk-elastix, and numpy, only.
"""

import json
import resource
import sys
import time
from pathlib import Path


def syn(folder: Path, kind: str = "SyN") -> float:
    """ANTs' symmetric normalisation with the defaults of antspyx."""
    import ants

    fixed, moving, labels = (ants.image_read(str(folder / f"{name}.nii.gz")) for name in ("fixed", "moving", "labels"))
    start = time.perf_counter()
    found = ants.registration(fixed, moving, kind, random_seed=1)
    seconds = time.perf_counter() - start
    warped = ants.apply_transforms(fixed, labels, found["fwdtransforms"], interpolator="nearestNeighbor")
    ants.image_write(warped, str(folder / "warped.nii.gz"))
    whole = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=str(folder / "whole_"))
    Path(whole).replace(folder / "field.nii.gz")
    return seconds


def affine(folder: Path) -> float:
    """ANTs' affine registration alone."""
    return syn(folder, "Affine")


def elastix(folder: Path) -> float:
    """Elastix with its default affine and B-spline parameters."""
    import itk

    fixed, moving = (itk.imread(str(folder / f"{name}.nii.gz"), itk.F) for name in ("fixed", "moving"))
    labels = itk.imread(str(folder / "labels.nii.gz"), itk.F)
    parameters = itk.ParameterObject.New()
    for name in ("affine", "bspline"):
        parameters.AddParameterMap(itk.ParameterObject.GetDefaultParameterMap(name))
    start = time.perf_counter()
    _, found = itk.elastix_registration_method(fixed, moving, parameter_object=parameters, log_to_console=False)
    seconds = time.perf_counter() - start
    for number in range(found.GetNumberOfParameterMaps()):
        found.SetParameter(number, "FinalBSplineInterpolationOrder", "0")
    itk.imwrite(itk.transformix_filter(labels, found), str(folder / "warped.nii.gz"))
    itk.imwrite(itk.transformix_deformation_field(moving, found), str(folder / "field.nii.gz"))
    return seconds


def apply(folder: Path) -> float:
    """Our field by ANTs: an image, ants.nii.gz, and points in LPS mm, sent.csv (see `benchmarks.fields`)."""
    import ants
    import numpy as np
    import pandas

    field = [str(folder / "field.nii.gz")]
    grid, moving = (ants.image_read(str(folder / f"{name}.nii.gz")) for name in ("ours", "moving"))
    start = time.perf_counter()
    ants.image_write(ants.apply_transforms(grid, moving, field), str(folder / "ants.nii.gz"))
    points = pandas.DataFrame(np.loadtxt(folder / "points.csv", delimiter=","), columns=["x", "y", "z"])
    sent = ants.apply_transforms_to_points(3, points, field)
    np.savetxt(folder / "sent.csv", sent[["x", "y", "z"]].to_numpy(), delimiter=",")
    return time.perf_counter() - start


if __name__ == "__main__":
    method, place = sys.argv[1], Path(sys.argv[2])
    taken = {"syn": syn, "affine": affine, "elastix": elastix, "apply": apply}[method](place)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    (place / "figures.json").write_text(json.dumps({"seconds": taken, "peak_gb": peak}))
