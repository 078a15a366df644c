"""MetaImage and NRRD: what ITK reads from whole files, and refusals where ITK would fill in."""

import gzip
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monai_attention.errors import Refusal
from monai_attention.io import geometry, itk_formats
from monai_attention.io.volume import ReadOptions, Requirements
from tests.io.make_volumes import affines, oblique, ramp, write_meta, write_nrrd

SHAPE = (4, 5, 6)
LPS = geometry.lps_to_ras(oblique())
WRITERS = {"mha": write_meta, "nrrd": write_nrrd}


def read(path, requirements=None, **options):
    return itk_formats.read(path, ReadOptions(**options), requirements)


def refused(path, requirements=None, **options):
    with pytest.raises(Refusal) as caught:
        read(path, requirements, **options)
    assert caught.value.remedy
    return caught.value.code


@settings(max_examples=15, deadline=None)
@given(affine=affines(), format=st.sampled_from(["mha", "nrrd"]), compressed=st.booleans())
def test_convention_voxels_lie_where_itk_puts_them(tmp_path_factory, affine, format, compressed):
    import itk

    path = tmp_path_factory.mktemp("itk") / f"image.{format}"
    WRITERS[format](path, ramp(*SHAPE), geometry.lps_to_ras(affine), compressed=compressed)
    ours, theirs = read(path), itk.imread(str(path))
    np.testing.assert_array_equal(ours.array[0], np.moveaxis(itk.array_from_image(theirs), (0, 1, 2), (2, 1, 0)))
    for index in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (0, 0, 5)):
        lps = theirs.TransformIndexToPhysicalPoint([int(i) for i in index])
        np.testing.assert_allclose((ours.affine @ [*index, 1])[:3] * (-1, -1, 1), lps, atol=1e-6)
    np.testing.assert_allclose(ours.affine, affine, atol=1e-9)


@pytest.mark.parametrize("format", ["mha", "mhd", "nrrd", "nhdr"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_reads_what_itk_writes(tmp_path, format, dtype):
    import itk

    path = tmp_path / f"image.{format}"
    image = itk.image_from_array(np.ascontiguousarray(ramp(*SHAPE, dtype=dtype).transpose()))
    image.SetSpacing([0.5, 2.0, 3.0])
    image.SetOrigin([1.0, -2.0, 3.0])
    itk.imwrite(image, str(path), compression=format in ("mhd", "nrrd"))
    volume = read(path)
    np.testing.assert_array_equal(volume.array[0], ramp(*SHAPE, dtype=dtype))
    np.testing.assert_allclose(volume.affine, np.diag([-0.5, -2, 3, 1]) + [[0, 0, 0, o] for o in (-1, 2, 3, 0)])
    assert volume.notes == ()


@pytest.mark.parametrize(("space", "flips"), [("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1))])
def test_other_worlds_of_nrrd_become_ras(tmp_path, space, flips):
    path = write_nrrd(tmp_path / "image.nrrd", ramp(*SHAPE), LPS, space=space)
    np.testing.assert_allclose(read(path).affine, np.diag([*flips, 1]) @ LPS)


def test_big_endian_is_honoured(tmp_path):
    swapped = ramp(*SHAPE).byteswap()
    for path in (
        write_meta(tmp_path / "image.mha", swapped, LPS, BinaryDataByteOrderMSB="True"),
        write_nrrd(tmp_path / "image.nrrd", swapped, LPS, endian="big"),
    ):
        np.testing.assert_array_equal(read(path).array[0], ramp(*SHAPE))


def test_true_is_what_metaimage_takes_for_it(tmp_path):
    path = write_meta(tmp_path / "image.mha", ramp(*SHAPE), LPS, compressed=True, CompressedData="T")
    np.testing.assert_array_equal(read(path).array[0], ramp(*SHAPE))


def test_row_10_several_numbers_a_voxel_are_refused(tmp_path):
    meta = write_meta(tmp_path / "image.mha", ramp(*SHAPE), LPS, ElementNumberOfChannels="3")
    nrrd = write_nrrd(
        tmp_path / "image.nrrd", ramp(*SHAPE), LPS, sizes="3 4 5 2", kinds="RGB-color domain domain domain"
    )
    vectors = write_nrrd(tmp_path / "v.nrrd", ramp(*SHAPE), LPS, kinds="", space_directions="none (1,0,0) (0,1,0)")
    assert [refused(path) for path in (meta, nrrd, vectors)] == ["E-NOT-SCALAR"] * 3


@pytest.mark.parametrize("format", ["mha", "nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("cut", [1, 9, 100])
def test_row_15_truncated_files_are_refused(tmp_path, format, compressed, cut):
    noise = np.random.default_rng(0).integers(-999, 999, SHAPE)
    path = WRITERS[format](tmp_path / f"image.{format}", noise, LPS, compressed=compressed)
    path.write_bytes(path.read_bytes()[:-cut])
    assert refused(path) == "E-TRUNCATED"


def test_row_15_detached_data_that_are_missing_or_short_are_refused(tmp_path):
    path = write_meta(tmp_path / "image.mhd", ramp(*SHAPE), LPS, data="image.raw")
    np.testing.assert_array_equal(read(path).array[0], ramp(*SHAPE))
    data = tmp_path / "image.raw"
    data.write_bytes(data.read_bytes()[:-2])
    assert refused(path) == "E-TRUNCATED"
    data.unlink()
    assert refused(path) == "E-NOT-FOUND"


def test_data_outside_the_headers_folder_are_not_read(tmp_path):
    (tmp_path / "below").mkdir()
    outside = tmp_path / "secret.raw"
    outside.write_bytes(bytes(240))
    for name in ("../secret.raw", str(outside), "LIST", "slice%03d.raw 1 6 1"):
        (tmp_path / "below/image.nhdr").unlink(missing_ok=True)
        path = write_nrrd(tmp_path / "below/image.nhdr", ramp(*SHAPE), LPS, data_file=name)
        assert refused(path) == "E-FORMAT"


@pytest.mark.parametrize("format", ["mha", "nrrd"])
def test_row_16_any_flipped_byte_of_the_data_is_refused_or_harmless(tmp_path, format):
    path = WRITERS[format](tmp_path / f"image.{format}", ramp(*SHAPE), LPS, compressed=True)
    whole = path.read_bytes()
    begin = len(whole) - len(
        whole[whole.rindex(b"LOCAL\n") + 6 :] if format == "mha" else whole[whole.rindex(b"\n\n") + 2 :]
    )
    codes = set()
    for at in range(begin, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            np.testing.assert_array_equal(read(path).array[0], ramp(*SHAPE))
        except Refusal as refusal:
            codes.add(refusal.code)
    assert "E-CORRUPT" in codes


@settings(max_examples=200, deadline=None)
@given(format=st.sampled_from(["mha", "nrrd"]), at=st.floats(0, 1), value=st.integers(0, 255))
@example(format="mha", at=0.9921875, value=0)  # a zero byte in the name of the data file
def test_a_damaged_header_is_a_refusal_or_a_volume_never_another_error(tmp_path_factory, format, at, value):
    path = WRITERS[format](tmp_path_factory.mktemp("itk") / f"image.{format}", ramp(*SHAPE), LPS)
    whole = bytearray(path.read_bytes())
    whole[int(at * (len(whole) - 241))] = value
    path.write_bytes(whole)
    try:
        volume = read(path)
    except Refusal:
        return
    assert np.isfinite(volume.affine).all()


def test_row_17_and_31_broken_geometry_is_refused(tmp_path):
    image = ramp(*SHAPE)
    flat = write_meta(tmp_path / "flat.mha", image, LPS, TransformMatrix="1 0 0 1 0 0 0 0 1")
    nan = write_nrrd(tmp_path / "nan.nrrd", image, LPS, space_origin="(0,nan,0)")
    zero = write_nrrd(tmp_path / "zero.nrrd", image, LPS, space_directions="(0,0,0) (0,0,0) (0,0,0)")
    assert [refused(path) for path in (flat, nan, zero)] == ["E-AFFINE"] * 3
    still = write_meta(tmp_path / "still.mha", image, LPS, ElementSpacing="1 0 1")
    unsaid = write_meta(tmp_path / "unsaid.mha", image, LPS, ElementSpacing="")
    micro = write_nrrd(tmp_path / "micro.nrrd", image, LPS, space_units='"um" "um" "um"')
    assert [refused(path) for path in (still, unsaid, micro)] == ["E-SPACING"] * 3


def test_row_19_files_without_orientation_are_flagged_or_refused(tmp_path):
    for path in (
        write_meta(tmp_path / "image.mha", ramp(*SHAPE), LPS, TransformMatrix=""),
        write_nrrd(tmp_path / "image.nrrd", ramp(*SHAPE), LPS, space="", space_directions="", spacings="1 2 3"),
        write_nrrd(tmp_path / "other.nrrd", ramp(*SHAPE), LPS, space="scanner-xyz"),
    ):
        assert [note.code for note in read(path).notes] == ["F-NO-ORIENTATION"]
        assert refused(path, Requirements()) == "E-NO-ORIENTATION"


def test_row_21_and_22_other_dimensions_are_refused(tmp_path):
    assert refused(write_meta(tmp_path / "4.mha", ramp(*SHAPE), LPS, DimSize="4 5 3 2")) == "E-4D"
    assert refused(write_nrrd(tmp_path / "4.nrrd", ramp(*SHAPE), LPS, sizes="4 5 3 2", kinds="")) == "E-4D"
    assert refused(write_meta(tmp_path / "2.mha", ramp(*SHAPE), LPS, DimSize="24 5")) == "E-DIMENSIONS"
    assert refused(write_nrrd(tmp_path / "2.nrrd", ramp(*SHAPE), LPS, sizes="24 5")) == "E-DIMENSIONS"
    assert refused(write_nrrd(tmp_path / "t.nrrd", ramp(*SHAPE), LPS, kinds="domain domain time")) == "E-DIMENSIONS"


@pytest.mark.parametrize("format", ["mha", "nrrd"])
def test_row_47_bombs_are_refused(tmp_path, format):
    huge = {"DimSize": "30000 30000 30000"} if format == "mha" else {"sizes": "30000 30000 30000"}
    path = WRITERS[format](tmp_path / f"huge.{format}", ramp(*SHAPE), LPS, compressed=True, **huge)
    assert refused(path) == "E-SIZE"
    assert refused(path, max_memory=1 << 60) == "E-TRUNCATED"
    bomb = WRITERS[format](tmp_path / f"bomb.{format}", ramp(*SHAPE), LPS, compressed=True)
    whole = bomb.read_bytes()
    compress = zlib.compress if format == "mha" else gzip.compress
    voxels = compress(ramp(*SHAPE).tobytes("F"), **({} if format == "mha" else {"mtime": 0}))
    assert whole.endswith(voxels)
    bomb.write_bytes(whole[: -len(voxels)] + compress(bytes(8 << 20)))
    assert refused(bomb) == "E-SIZE"


@pytest.mark.parametrize(
    "field",
    [
        {"ElementType": "MET_LONG"},
        {"BinaryData": "False"},
        {"HeaderSize": "-1"},
        {"ElementToIntensityFunctionSlope": "2"},
    ],
    ids=lambda field: next(iter(field)),
)
def test_features_of_metaimage_that_are_not_read_are_named(tmp_path, field):
    assert refused(write_meta(tmp_path / "image.mha", ramp(*SHAPE), LPS, **field)) == "E-FORMAT"


@pytest.mark.parametrize("field", [{"encoding": "bzip2"}, {"type": "block"}, {"byte_skip": "-1"}], ids=str)
def test_features_of_nrrd_that_are_not_read_are_named(tmp_path, field):
    assert refused(write_nrrd(tmp_path / "image.nrrd", ramp(*SHAPE), LPS, **field)) == "E-FORMAT"
