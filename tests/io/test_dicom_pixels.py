"""DICOM pixels: decoded, rescaled slice by slice and never inverted, or refused by name."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from monai_attention.io import dicom
from tests.io.make_dicom import AFFINE, SHAPE, write_series
from tests.io.reading_dicom import assert_same_in_world, refusal, refused_by_headers

pytestmark = pytest.mark.usefixtures("nothing_of_the_patient")


def test_row_07_a_damaged_code_stream_is_refused_by_name(tmp_path, large):
    paths = write_series(tmp_path, large, AFFINE, transfer_syntax=JPEG2000Lossless)
    dataset = pydicom.dcmread(paths[3])
    stream = bytearray(dataset.PixelData)
    stream[40:60] = bytes(20)
    dataset.PixelData = bytes(stream)
    dataset.save_as(paths[3])
    error = refusal(tmp_path)
    assert (error.code, error.path) == ("E-TRUNCATED", paths[3])


def test_row_10_colour_and_secondary_captures_are_refused(tmp_path, values):
    write_series(
        tmp_path / "rgb", values, AFFINE, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0
    )
    write_series(tmp_path / "capture", values, AFFINE, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    for name in ("rgb", "capture"):
        assert refusal(tmp_path / name).code == "E-NOT-SCALAR"
        assert refused_by_headers(tmp_path / name) == "E-NOT-SCALAR"


def test_row_11_monochrome1_is_refused_for_ct_and_never_inverted(tmp_path, values):
    write_series(tmp_path / "ct", values, AFFINE, PhotometricInterpretation="MONOCHROME1")
    assert refusal(tmp_path / "ct").code == "E-MONOCHROME1"
    shape = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    write_series(tmp_path / "pt", values, AFFINE, "PT", **shape)
    assert_same_in_world(dicom.read(tmp_path / "pt"), values, AFFINE)


def test_row_12_each_slice_has_its_own_rescale_and_no_window(tmp_path):
    slopes = 0.5 + np.arange(10) / 4
    array = np.random.default_rng(0).integers(-100, 100, SHAPE) * slopes - 10
    window = {"WindowCenter": 5, "WindowWidth": 3}
    write_series(tmp_path, array, AFFINE, "PT", RescaleSlope=lambda k: slopes[k], RescaleIntercept=-10, **window)
    assert_same_in_world(dicom.read(tmp_path), array.astype(np.float32), AFFINE)


@pytest.mark.parametrize("signed", [True, False])
def test_bits_that_are_not_stored_do_not_count(tmp_path, signed):
    """Twelve of sixteen bits; in the others a signed scan has zeros, an old unsigned one an overlay."""
    low, high = (-2048, 2047) if signed else (0, 4095)
    array = np.random.default_rng(0).integers(low, high, SHAPE)
    for path in write_series(tmp_path, array, AFFINE):
        dataset = pydicom.dcmread(path)
        stored = np.frombuffer(dataset.PixelData, np.uint16) & 0x0FFF
        dataset.PixelData = (stored if signed else stored | 0x1000).tobytes()
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, int(signed)
        dataset.save_as(path)
    assert_same_in_world(dicom.read(tmp_path), array.astype(np.float32), AFFINE)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_row_13_compressed_pixels_are_decoded(tmp_path, large, syntax):
    write_series(tmp_path, large, AFFINE, transfer_syntax=syntax)
    assert_same_in_world(dicom.read(tmp_path), large, AFFINE)


def test_row_13_a_missing_decoder_is_named_with_its_remedy(tmp_path, large, monkeypatch):
    write_series(tmp_path, large, AFFINE, transfer_syntax=JPEG2000Lossless)
    monkeypatch.setattr(pydicom.pixels.get_decoder(JPEG2000Lossless), "_available", {})
    error = refusal(tmp_path)
    assert error.code == "E-CODEC"
    assert "JPEG 2000" in error.message
    assert "1.2.840.10008.1.2.4.90" in error.message
    assert error.remedy == "pip install 'monai_attention[dicom-codecs]'"
    assert refused_by_headers(tmp_path) == "E-CODEC"
