"""One case of any format -> one volume, checked before its voxels are read and again after."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from monai_attention.errors import Refusal
from monai_attention.io import dicom, geometry, nifti
from monai_attention.io.read import read, read_header
from monai_attention.io.volume import ReadOptions, Requirements
from tests.io.make_dicom import ras_affine, write_series
from tests.io.make_volumes import oblique, ramp, write_meta, write_nifti, write_nrrd

SHAPE = (4, 5, 6)
AXIAL = ras_affine((0.8, 1.5, 3.0))
LPS = geometry.lps_to_ras(oblique())


def make(tmp_path: Path, name: str) -> tuple[Path, np.ndarray]:
    """A case of every format, all of the same voxels, and its affine."""
    path = tmp_path / name
    if name.startswith("image.nii"):
        return write_nifti(path, ramp(*SHAPE)), oblique()
    if name == "image.mha":
        return write_meta(path, ramp(*SHAPE), LPS), oblique()
    if name == "image.nrrd":
        return write_nrrd(path, ramp(*SHAPE), LPS), oblique()
    write_series(tmp_path / "series", ramp(*SHAPE), AXIAL, "MR")
    if name == "series.zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in (tmp_path / "series").iterdir():
                archive.write(file, f"export/disc/{file.name}")
        return path, AXIAL
    if name == "volume.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(write_nifti(tmp_path / "inside.nii.gz", ramp(*SHAPE)), "a/inside.nii.gz")
            archive.writestr("__MACOSX/a/._inside.nii.gz", b"resource fork")
        return path, oblique()
    return tmp_path / "series", AXIAL


@pytest.mark.parametrize(
    "name", ["image.nii", "image.nii.gz", "image.mha", "image.nrrd", "series", "series.zip", "volume.zip"]
)
def test_every_format_gives_the_same_volume_and_the_header_tells_its_geometry(tmp_path, name):
    path, affine = make(tmp_path, name)
    volume, header = read(path), read_header(path)
    assert volume.source == header.source == path
    assert volume.array.dtype == np.float32
    assert volume.array.flags.c_contiguous
    np.testing.assert_array_equal(volume.array[0], ramp(*SHAPE))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    assert header.shape == volume.shape
    np.testing.assert_array_equal(header.affine, volume.affine)
    assert header.modality == volume.modality
    assert header.notes == volume.notes


def test_files_of_a_zip_stay_where_the_caller_wants_them(tmp_path):
    path, _ = make(tmp_path, "series.zip")
    assert read(path).slice_files == ()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    volume = read(path, scratch=scratch)
    assert len(volume.slice_files) == SHAPE[2]
    assert all(file.is_file() and file.is_relative_to(scratch) for file in volume.slice_files)
    np.testing.assert_array_equal(read(path, scratch=scratch).array, volume.array)


def test_a_zip_of_several_images_or_of_none_is_refused_by_its_own_name(tmp_path):
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write_nifti(tmp_path / "a.nii", ramp(*SHAPE)), "a.nii")
        archive.write(write_nifti(tmp_path / "b.nii", ramp(*SHAPE)), "b.nii")
    with pytest.raises(Refusal) as caught:
        read(path)
    assert (caught.value.code, caught.value.path) == ("E-SEVERAL", path)
    empty = tmp_path / "none.zip"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(Refusal) as caught:
        read(empty)
    assert (caught.value.code, caught.value.path) == ("E-EMPTY", empty)


def test_row_14_the_modality_of_dicom_is_refused_before_pixels_are_read(tmp_path, monkeypatch):
    path, _ = make(tmp_path, "series")
    monkeypatch.setattr(dicom, "read_series", lambda *_: pytest.fail("pixels were read"))
    for reader in (read, read_header):
        with pytest.raises(Refusal) as caught:
            reader(path, ReadOptions(), Requirements(modalities=("CT",)))
        assert caught.value.code == "E-MODALITY"


def test_geometry_is_refused_before_voxels_are_read(tmp_path, monkeypatch):
    path, _ = make(tmp_path, "image.nii.gz")
    monkeypatch.setattr(nifti, "read", lambda *_: pytest.fail("voxels were read"))
    with pytest.raises(Refusal, match="E-TOO-SMALL"):
        read(path, requirements=Requirements(min_extent_mm=100))


def test_running_out_of_memory_is_a_refusal(tmp_path, monkeypatch):
    path, _ = make(tmp_path, "image.nii.gz")

    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(nifti, "read", exhausted)
    with pytest.raises(Refusal, match="E-SIZE"):
        read(path)


@pytest.mark.parametrize(
    ("name", "code"), [("missing.nii", "E-NOT-FOUND"), ("missing", "E-NOT-FOUND"), ("a.png", "E-FORMAT")]
)
def test_what_cannot_be_read_is_refused(tmp_path, name, code):
    (tmp_path / "a.png").write_bytes(b"\x89PNG" * 100)
    with pytest.raises(Refusal, match=code):
        read(tmp_path / name)


def test_reading_needs_neither_torch_nor_monai_nor_itk(tmp_path):
    path, _ = make(tmp_path, "image.nrrd")
    code = f"import sys; from monai_attention.io import read, check; read.read({str(path)!r}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "monai", "itk", "pydicom", "nibabel"} & set(loaded)
