"""The NIfTI gate: the voxels and the geometry that the header states, or a refusal that says why not."""

import gzip

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_attention.errors import Refusal
from monai_attention.io import geometry, nifti, payload
from monai_attention.io.read import read as read_case
from monai_attention.io.volume import ReadOptions, Requirements
from tests.io.make_volumes import affines, nifti_bytes, oblique, ramp, write_nifti

SHAPE = (4, 5, 6)


def read(path, options=ReadOptions(), requirements=None):  # noqa: B008 - frozen
    return nifti.read(path, options, requirements)


def refused(path, options=ReadOptions(), requirements=None):  # noqa: B008 - frozen
    """The refusal of a file, which must be the same by its header and in full unless only the voxels can tell."""
    with pytest.raises(Refusal) as caught:
        read(path, options, requirements)
    assert caught.value.path == path
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<f4", ">f8", "<i8"])
@pytest.mark.parametrize("image", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_reads_what_nibabel_reads(tmp_path, dtype, image):
    header = image.header_class(endianness=">" if dtype[0] == ">" else "<")
    volume = image(ramp(*SHAPE, dtype=dtype), oblique(), header, dtype=dtype)
    volume.header.set_slope_inter(0.25, -3)
    path = tmp_path / "image.nii.gz"
    path.write_bytes(gzip.compress(volume.to_bytes()))
    ours, theirs = read(path), nibabel.load(path)
    assert ours.array.dtype == np.float32
    assert ours.array.flags.c_contiguous
    np.testing.assert_array_equal(ours.array[0], theirs.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-6)
    assert ours.notes == ()


@pytest.mark.parametrize(("slope", "inter"), [(0.0, 5.0), (np.nan, np.nan), (np.inf, 0.0), (2.5, 1.0)])
def test_scaling_is_what_the_standard_says(tmp_path, slope, inter):
    path = write_nifti(tmp_path / "image.nii", ramp(*SHAPE), scl_slope=slope, scl_inter=inter)
    expected = ramp(*SHAPE) * 2.5 + 1 if slope == 2.5 else ramp(*SHAPE)
    np.testing.assert_array_equal(read(path).array[0], expected)


def test_scaling_that_is_no_number_is_refused(tmp_path):
    path = write_nifti(tmp_path / "image.nii", ramp(*SHAPE), scl_slope=2.0, scl_inter=np.nan)
    assert refused(path).code == "E-CORRUPT"


@settings(max_examples=25, deadline=None)
@given(affine=affines(), codes=st.sampled_from([(1, 1), (1, 0), (0, 1)]))
def test_convention_voxels_lie_where_itk_puts_them(tmp_path_factory, affine, codes):
    import itk

    path = write_nifti(tmp_path_factory.mktemp("nifti") / "image.nii", ramp(*SHAPE), affine, codes=codes)
    ours, theirs = read(path), itk.imread(str(path))
    for index in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (0, 0, 5), (3, 4, 5)):
        lps = theirs.TransformIndexToPhysicalPoint([int(i) for i in index])
        ras = ours.affine @ [*index, 1]
        np.testing.assert_allclose(ras[:3] * (-1, -1, 1), lps, atol=0.02)  # ITK goes through the qform's quaternion
        assert ours.array[0][index] == theirs.GetPixel([int(i) for i in index])


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], "c8"])
def test_row_10_colour_and_complex_are_refused(tmp_path, dtype):
    assert refused(write_nifti(tmp_path / "image.nii", np.zeros(SHAPE, dtype))).code == "E-NOT-SCALAR"


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
@pytest.mark.parametrize("keep", [0, 0.1, 0.5, 0.9, 0.999])
def test_row_15_truncated_files_are_refused(tmp_path, name, keep):
    path = write_nifti(tmp_path / name, np.random.default_rng(0).integers(0, 999, (9, 9, 9), dtype=np.int16))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    assert refused(path).code == "E-TRUNCATED"


def test_row_15_a_whole_stream_of_too_few_voxels_is_refused(tmp_path):
    path = tmp_path / "image.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes(ramp(*SHAPE))[:-2]))
    assert refused(path).code == "E-TRUNCATED"


def test_row_16_any_flipped_byte_is_refused_or_harmless(tmp_path):
    path = write_nifti(tmp_path / "image.nii.gz", ramp(*SHAPE))
    whole, expected = path.read_bytes(), read(path)
    codes = set()
    for at in range(len(whole)):
        for mask in (0x01, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
            try:
                got = read(path)
            except Refusal as refusal:
                codes.add(refusal.code)
            else:
                np.testing.assert_array_equal(got.array, expected.array)
                np.testing.assert_array_equal(got.affine, expected.affine)
    assert "E-CORRUPT" in codes


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 351), value=st.integers(0, 255))
def test_a_damaged_header_is_a_refusal_or_a_volume_never_another_error(tmp_path_factory, at, value):
    whole = bytearray(nifti_bytes(ramp(*SHAPE)))
    whole[at] = value
    path = tmp_path_factory.mktemp("nifti") / "image.nii"
    path.write_bytes(whole)
    try:
        volume = read_case(path)
    except Refusal:
        return
    assert np.isfinite(volume.array).all()
    assert abs(np.linalg.det(volume.affine)) > 0


@pytest.mark.parametrize(
    "rows",
    [
        {"srow_x": 0, "srow_y": 0, "srow_z": 0},
        {"srow_y": (0, np.nan, 0, 0)},
        {"srow_x": (1, 2, 0, 0), "srow_y": (1, 2, 0, 0), "srow_z": (0, 0, 1, 0)},
    ],
    ids=["zero", "nan", "singular"],
)
@pytest.mark.parametrize("codes", [(1, 0), (1, 1)])
def test_row_17_affines_that_are_none_are_refused(tmp_path, rows, codes):
    path = write_nifti(tmp_path / "image.nii", ramp(*SHAPE), codes=codes, **rows)
    assert refused(path).code == "E-AFFINE"


def test_row_17_the_sound_form_is_taken_when_asked_for(tmp_path):
    path = write_nifti(tmp_path / "image.nii", ramp(*SHAPE), srow_x=0, srow_y=0, srow_z=0)
    volume = read(path, ReadOptions(affine="qform"))
    np.testing.assert_allclose(volume.affine, oblique(), atol=1e-4)
    assert [note.code for note in volume.notes] == ["F-AFFINE"]
    assert refused(path, ReadOptions(affine="sform")).code == "E-AFFINE"


@pytest.mark.parametrize(
    "field", [{"quatern_b": 1.5}, {"quatern_c": np.nan}, {"qoffset_x": np.inf}], ids=["too long", "nan", "inf"]
)
def test_row_17_damaged_qforms_are_refused(tmp_path, field):
    assert refused(write_nifti(tmp_path / "image.nii", ramp(*SHAPE), codes=(0, 1), **field)).code == "E-AFFINE"


@pytest.mark.parametrize(
    "field",
    [{"qoffset_z": 7.26}, {"pixdim": (-1, 0.8, 1.5, 3, 0, 0, 0, 0)}, {"quatern_b": 0.3}, {"srow_x": (-0.7, 0, 0.9, 3)}],
    ids=["shifted", "flipped", "turned", "other"],
)
def test_row_18_sform_and_qform_that_disagree_are_refused_unless_one_is_chosen(tmp_path, field):
    path = write_nifti(tmp_path / "image.nii", ramp(*SHAPE), **field)
    assert refused(path).code == "E-AFFINE-CONFLICT"
    for choice in ("sform", "qform"):
        volume = read(path, ReadOptions(affine=choice))
        header = nibabel.load(path).header
        expected = header.get_sform() if choice == "sform" else header.get_qform()
        np.testing.assert_allclose(volume.affine, expected, atol=1e-4)
        assert [note.code for note in volume.notes] == ["F-AFFINE"]


@settings(max_examples=60, deadline=None)
@given(affine=affines())
def test_row_18_forms_that_differ_by_rounding_only_agree(tmp_path_factory, affine):
    shape = (256, 256, 2)
    path = write_nifti(tmp_path_factory.mktemp("nifti") / "image.nii", np.zeros(shape, np.uint8), affine)
    volume = read(path, ReadOptions(affine="qform"))
    assert volume.notes == ()
    np.testing.assert_allclose(volume.affine, affine, atol=1e-3)


def test_row_18_a_half_turn_with_a_slight_tilt_is_no_conflict(tmp_path):
    # An axial LPS image, a degree off: the quaternion's a is near 0, where float32 b, c, d hardly determine it.
    for tilt in (0.01, 0.05, 0.2, 1.0):
        affine = oblique((0.5, 0.5, 1.0), (tilt, tilt, 180 - tilt))
        path = write_nifti(tmp_path / "image.nii", np.zeros((512, 512, 2), np.uint8), affine)
        np.testing.assert_allclose(read(path).affine, affine, atol=1e-3)


def test_row_19_files_without_orientation_are_flagged_or_refused(tmp_path):
    path = write_nifti(tmp_path / "image.nii", ramp(*SHAPE), codes=(0, 0))
    volume = read(path, requirements=Requirements(needs_orientation=False))
    assert [(note.kind, note.code) for note in volume.notes] == [("flag", "F-NO-ORIENTATION")]
    np.testing.assert_allclose(volume.affine, np.diag([0.8, 1.5, 3.0, 1.0]), atol=1e-6)
    assert refused(path, requirements=Requirements()).code == "E-NO-ORIENTATION"


def test_row_20_shear_is_kept(tmp_path):
    sheared = oblique()
    sheared[:3, 2] += 0.4 * sheared[:3, 1]
    volume = read_case(write_nifti(tmp_path / "image.nii", ramp(*SHAPE), sheared, codes=(1, 0)))
    np.testing.assert_allclose(volume.affine, sheared, atol=1e-5)
    assert geometry.is_sheared(volume.affine)
    assert [(note.kind, note.code) for note in volume.notes] == [("info", "I-SHEAR")]


def test_row_21_four_dimensions_need_a_choice_or_a_bundle_of_as_many_channels(tmp_path):
    array = ramp(*SHAPE, 3)
    path = write_nifti(tmp_path / "image.nii.gz", array)
    assert refused(path).code == "E-4D"
    assert refused(path, requirements=Requirements(channels=2)).code == "E-4D"
    assert refused(path, ReadOptions(volume=3)).code == "E-4D"
    assert refused(path, ReadOptions(volume=-1)).code == "E-4D"
    np.testing.assert_array_equal(read(path, ReadOptions(volume=1)).array, array[None, ..., 1])
    channels = read(path, requirements=Requirements(channels=3))
    np.testing.assert_array_equal(channels.array, np.moveaxis(array, -1, 0))
    single = write_nifti(tmp_path / "single.nii", ramp(*SHAPE, 1))
    np.testing.assert_array_equal(read(single).array[0], ramp(*SHAPE))


def test_row_21_one_volume_still_checks_the_whole_file(tmp_path):
    path = write_nifti(tmp_path / "image.nii.gz", ramp(*SHAPE, 3))
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:-1]))
    assert refused(path, ReadOptions(volume=0)).code == "E-TRUNCATED"


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 1, 3), (7,)])
def test_row_22_vectors_and_flat_images_are_refused(tmp_path, shape):
    assert refused(write_nifti(tmp_path / "image.nii", ramp(*shape))).code == "E-DIMENSIONS"


def test_row_25_an_image_without_voxels_is_refused(tmp_path):
    path = write_nifti(tmp_path / "image.nii", ramp(*SHAPE), dim=(3, 4, 0, 6, 1, 1, 1, 1))
    assert refused(path).code == "E-TOO-SMALL"


@pytest.mark.parametrize("unit", [1, 3])
def test_row_31_metre_and_micrometre_are_refused(tmp_path, unit):
    assert refused(write_nifti(tmp_path / "image.nii", ramp(*SHAPE), xyzt_units=unit)).code == "E-SPACING"


@pytest.mark.parametrize("size", [0, -1])
def test_row_31_voxel_sizes_that_are_none_are_refused(tmp_path, size):
    pixdim = (1, 0.8, size, 3, 0, 0, 0, 0)
    assert refused(write_nifti(tmp_path / "image.nii", ramp(*SHAPE), codes=(0, 1), pixdim=pixdim)).code == "E-SPACING"


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_row_47_a_header_that_promises_the_impossible_is_refused_before_reading(tmp_path, name, monkeypatch):
    path = write_nifti(tmp_path / name, ramp(*SHAPE), dim=(3, 30000, 30000, 30000, 1, 1, 1, 1))
    monkeypatch.setattr(payload, "take", lambda *_: pytest.fail("voxels were read"))
    assert refused(path).code == "E-SIZE"
    assert refused(path, ReadOptions(max_memory=1 << 60)).code == "E-TRUNCATED"


def test_row_47_the_users_limit_counts(tmp_path):
    path = write_nifti(tmp_path / "image.nii.gz", ramp(*SHAPE))
    needed = 4 * 5 * 6 * (2 + 4)
    assert refused(path, ReadOptions(max_memory=needed - 1)).code == "E-SIZE"
    read(path, ReadOptions(max_memory=needed))


def test_row_47_a_bomb_is_never_unpacked_beyond_what_the_header_promises(tmp_path, monkeypatch):
    path = tmp_path / "image.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes(ramp(*SHAPE)) + bytes(64 << 20)))
    unpacked = 0
    plain_read = gzip.GzipFile.read

    def counted(self, size=-1):
        nonlocal unpacked
        data = plain_read(self, size)
        unpacked += len(data)
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    assert refused(path).code == "E-SIZE"
    assert unpacked < 4 << 20


def test_what_is_not_a_single_nifti_is_refused_by_name(tmp_path):
    pair = tmp_path / "image.hdr"
    nibabel.Nifti1Pair(ramp(*SHAPE), oblique()).to_filename(pair)
    assert refused(pair).code == "E-FORMAT"
    text = tmp_path / "text.nii"
    text.write_text("not an image " * 100)
    assert refused(text).code == "E-FORMAT"
    plain = tmp_path / "plain.nii.gz"
    plain.write_bytes(nifti_bytes(ramp(*SHAPE)))
    assert refused(plain).code == "E-CORRUPT"
