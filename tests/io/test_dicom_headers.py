"""DICOM files by their headers: what is one, whether it is whole, and that nothing of the patient is quoted."""

import logging
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from monai_attention.errors import Refusal
from monai_attention.io import dicom
from monai_attention.io.dicom_headers import HEADER_TAGS, discreet, read_dataset
from tests.io.make_dicom import AFFINE, CANARY, write_series
from tests.io.reading_dicom import assert_same_in_world, refusal, refused_by_headers

pytestmark = pytest.mark.usefixtures("nothing_of_the_patient")


def test_a_data_set_without_preamble_is_read(tmp_path, values):
    for path in write_series(tmp_path, values, AFFINE):
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        with path.open("wb") as file:
            pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True)
        assert dicom.is_dicom(path)
    assert_same_in_world(dicom.read(tmp_path), values, AFFINE)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_row_07_a_truncated_file_is_refused_by_name(tmp_path, large, syntax, kept):
    paths = write_series(tmp_path, large, AFFINE, transfer_syntax=syntax)
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: int(len(whole) * kept)])
    error = refusal(tmp_path)
    assert (error.code, error.path) == ("E-TRUNCATED", paths[2])
    assert refused_by_headers(tmp_path) == "E-TRUNCATED"


def test_row_07_wherever_a_file_ends_it_is_never_left_out_silently(tmp_path):
    (path,) = write_series(tmp_path, np.zeros((4, 4, 1)), AFFINE, slices=[0])
    whole = path.read_bytes()
    for length in range(132, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(Refusal, match="E-TRUNCATED"):
            dicom.choose(dicom.scan(tmp_path))


@pytest.mark.parametrize("left", [b"", bytes(100), bytes(5000)])
def test_row_07_what_an_interrupted_copy_left_is_refused_by_name(tmp_path, large, left):
    paths = write_series(tmp_path, large, AFFINE)
    paths[-1].write_bytes(left)
    error = refusal(tmp_path)
    assert (error.code, error.path) == ("E-TRUNCATED", paths[-1])


def test_row_07_what_is_hidden_is_not_looked_at(tmp_path, large):
    """Macs write such a stub beside each file."""
    paths = write_series(tmp_path, large, AFFINE)
    (tmp_path / f"._{paths[0].name}").write_bytes(bytes(120))
    assert dicom.read(tmp_path).shape == large.shape


def test_row_07_a_truncated_file_without_a_preamble_is_refused_by_name(tmp_path, large):
    paths = write_series(tmp_path, large, AFFINE)
    for path in paths:
        path.write_bytes(path.read_bytes()[132:])
    paths[-1].write_bytes(paths[-1].read_bytes()[:-100])
    error = refusal(tmp_path)
    assert (error.code, error.path) == ("E-TRUNCATED", paths[-1])


def test_row_60_pydicom_is_counted_not_quoted(tmp_path, values, caplog):
    (path,) = write_series(tmp_path, values, AFFINE, slices=[0])
    assert "PatientName" not in read_dataset(path, HEADER_TAGS)
    with discreet(path):
        warnings.warn(CANARY, UserWarning, stacklevel=1)
        logging.getLogger("pydicom").error(CANARY)
    assert any("1 warnings" in text for text in caplog.messages)  # the fixture looks for the canary
