"""NIfTI, MetaImage and NRRD files made as code, whole or broken in one place."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation


def ramp(*shape: int, dtype: Any = np.int16) -> np.ndarray:
    """Different values in all voxels, so that no swap of axes goes unseen."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def oblique(spacing: tuple[float, ...] = (0.8, 1.5, 3.0), angles: tuple[float, ...] = (10, -20, 30)) -> np.ndarray:
    """Voxel -> RAS mm of a rotated, anisotropic grid."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = (-30.0, 12.5, 7.25)
    return affine


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Rotated, anisotropic, possibly flipped and permuted grids, anywhere within two metres."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [draw(st.floats(-180, 180)) for _ in range(3)], degrees=True).as_matrix()
    spacing = [draw(st.floats(0.2, 8)) * draw(st.sampled_from((-1, 1))) for _ in range(3)]
    affine[:3, :3] = turn[:, list(draw(st.permutations(range(3))))] * spacing
    affine[:3, 3] = [draw(st.floats(-2000, 2000)) for _ in range(3)]
    return affine


def nifti_bytes(
    array: np.ndarray,
    affine: np.ndarray | None = None,
    *,
    image: Any = nibabel.Nifti1Image,
    codes: tuple[int, int] = (1, 1),
    **fields: Any,
) -> bytes:
    """A single-file NIfTI with sform and qform from the affine; then raw header fields are overwritten unchecked."""
    volume = image(array, oblique() if affine is None else affine, dtype=array.dtype)
    volume.set_sform(volume.affine, int(codes[0]))
    volume.set_qform(volume.affine, int(codes[1]))
    whole = volume.to_bytes()
    header = type(volume.header)(whole[: volume.header.sizeof_hdr], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + whole[volume.header.sizeof_hdr :]


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **options: Any) -> Path:
    """Write `nifti_bytes`, compressed if the name ends in .gz."""
    whole = nifti_bytes(array, affine, **options)
    path.write_bytes(gzip.compress(whole, mtime=0) if path.suffix == ".gz" else whole)
    return path


def write_meta(
    path: Path,
    array: np.ndarray,
    affine_lps: np.ndarray,
    *,
    compressed: bool = False,
    data: str = "LOCAL",
    **fields: str,
) -> Path:
    """Write a MetaImage from an array (X, Y, Z) and its voxel -> LPS affine; fields replace or add header lines."""
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    voxels = array.astype("<i2").tobytes("F")
    voxels = zlib.compress(voxels) if compressed else voxels
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed),
        "CompressedDataSize": str(len(voxels)) if compressed else "",
        "TransformMatrix": _words((affine_lps[:3, :3] / spacing).T.ravel()),
        "Offset": _words(affine_lps[:3, 3]),
        "ElementSpacing": _words(spacing),
        "DimSize": _words(array.shape),
        "ElementType": "MET_SHORT",
        **fields,
        "ElementDataFile": data,
    }
    header = "".join(f"{key} = {value}\n" for key, value in lines.items() if value != "").encode()
    if data == "LOCAL":
        path.write_bytes(header + voxels)
    else:
        path.write_bytes(header)
        (path.parent / data).write_bytes(voxels)
    return path


def write_nrrd(
    path: Path, array: np.ndarray, affine_lps: np.ndarray, *, compressed: bool = False, **fields: str
) -> Path:
    """Write an NRRD from an array (X, Y, Z) and its voxel -> LPS affine; fields (`_` is a blank) change lines."""
    lines = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": _words(array.shape),
        "space directions": " ".join(f"({','.join(map(repr, map(float, axis)))})" for axis in affine_lps[:3, :3].T),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "gzip" if compressed else "raw",
        "space origin": f"({','.join(map(repr, map(float, affine_lps[:3, 3])))})",
        **{name.replace("_", " "): value for name, value in fields.items()},
    }
    header = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in lines.items() if value != "") + "\n"
    voxels = array.astype("<i2").tobytes("F")
    path.write_bytes(header.encode() + (gzip.compress(voxels, mtime=0) if compressed else voxels))
    return path


def _words(numbers: Any) -> str:
    return " ".join(map(str, np.asarray(numbers).tolist()))
