"""Files of transformations: ITK maps points and images through them as we do, and what is not certain is refused."""

import gzip

import nibabel
import numpy as np
import pytest
import torch
from scipy.io import savemat

from monai_attention.io.fields import read_affine, read_field, write_affine, write_field
from monai_attention.io.volume import ReadOptions
from monai_attention.registration.fields import warp
from monai_attention.registration.sampling import sample
from monai_attention.registration.scan import Scan
from monai_attention.registration.world import ddf_to_mm, mm_to_ddf
from tests.io.make_volumes import nifti_bytes, oblique, ramp, write_nifti
from tests.refusals import refusal

SIZE = (12, 11, 9)
AFFINE = oblique()
LPS = np.array([-1.0, -1.0, 1.0])
MATRIX = np.array([[0.9, 0.2, -0.1, 12.5], [-0.15, 1.1, 0.05, -3.0], [0.1, -0.2, 0.8, 1 / 3], [0, 0, 0, 1]])


def smooth(size, amplitude, channels=3, seed=0):
    """Random waves of a few periods over the grid, shape (channels, *size)."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) / n for n in size], indexing="ij"))
    waves = generator.normal(size=(channels, 3)), generator.uniform(0, 6, channels)
    return amplitude * np.sin(5 * np.tensordot(waves[0], grid, 1) + waves[1][:, None, None, None])


def world(affine, size):
    """World points of all voxels, shape (3, *size)."""
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    return np.tensordot(affine[:3, :3], grid, 1) + affine[:3, 3][:, None, None, None]


def moving_voxels(field, affine):
    """Where a field in mm takes the voxels of the fixed grid, in voxels of another one."""
    here, there = (Scan(torch.zeros(1, 1, *SIZE), torch.from_numpy(its)) for its in (AFFINE, affine))
    return there.voxels(here.points() + field)


def by_itk(path):
    """ITK's transformation of the field in a file; and what must be kept while it is used."""
    import itk

    image = itk.imread(path, itk.Vector[itk.F, 3])
    values = itk.array_from_image(image).astype(np.float64)  # transformations want double
    field = itk.image_view_from_array(values, ttype=itk.Image[itk.Vector[itk.D, 3], 3])
    field.CopyInformation(image)
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    transform.SetDisplacementField(field)
    return transform, (values, field)


def worst(transform, points, expected):
    """Largest distance in mm of where an ITK transformation puts RAS points, shape (N, 3), from where they belong."""
    there = np.array([transform.TransformPoint(p.tolist()) for p in points * LPS]) * LPS
    return np.linalg.norm(there - expected, axis=1).max()


@pytest.fixture(scope="module")
def displacement():
    return smooth(SIZE, 2.0).astype(np.float32)


@pytest.fixture(scope="module")
def transform(displacement, tmp_path_factory):
    """ITK's, and what it needs alive."""
    path = tmp_path_factory.mktemp("field") / "field.nii.gz"
    write_field(path, displacement, AFFINE)
    return by_itk(path)


@pytest.fixture(scope="module")
def between(displacement):
    """Random points of the grid in RAS mm, between its voxels, and where they come from."""
    places = np.random.default_rng(1).uniform(0, np.array(SIZE) - 1, (50, 3))
    points = places @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    values, where = torch.from_numpy(displacement)[None].double(), torch.from_numpy(places.T)[None, :, :, None, None]
    return points, points + sample(values, where)[0, :, :, 0, 0].numpy().T


def test_row_58_itk_maps_world_points_through_the_saved_field_as_we_do(transform, between):
    assert worst(transform[0], *between) < 1e-4
    assert worst(transform[0], between[0], between[0]) > 1  # not by moving nothing


@pytest.mark.parametrize(("intent", "signs"), [(1007, (1, 1, 1)), (1006, LPS)])
def test_row_58_fields_of_other_conventions_move_points_elsewhere(displacement, between, tmp_path, intent, signs):
    components = np.moveaxis(displacement, 0, -1)[:, :, :, None] * np.float32(signs)
    path = write_nifti(tmp_path / "wrong.nii", components, AFFINE, intent_code=intent)
    assert worst(by_itk(path)[0], *between) > 1


@pytest.mark.parametrize("its_own_grid", [False, True])
def test_row_58_itk_resamples_an_image_as_we_warp_it(transform, displacement, its_own_grid):
    import itk

    size, affine = SIZE, AFFINE
    if its_own_grid:
        size, affine = (16, 17, 8), oblique((0.7, 1.0, 3.5), (14, -16, 25))
        affine[:3, 3] += (1.0, -2.0, 1.5)
    moving = smooth(size, 100.0, channels=1, seed=2).astype(np.float32)
    image = itk.image_from_array(np.ascontiguousarray(moving[0].T))
    fixed = itk.image_from_array(np.zeros(SIZE[::-1], np.float32))
    for one, its in ((image, affine), (fixed, AFFINE)):
        spacing = np.linalg.norm(its[:3, :3], axis=0)
        one.SetSpacing(spacing.tolist())
        one.SetOrigin((its[:3, 3] * LPS).tolist())
        one.SetDirection(itk.matrix_from_array(its[:3, :3] / spacing * LPS[:, None]))
    resampled = itk.resample_image_filter(
        image, transform=transform[0], use_reference_image=True, reference_image=fixed
    )
    theirs = itk.array_from_image(resampled).T

    field, values = torch.from_numpy(displacement)[None], torch.from_numpy(moving)[None]
    places = moving_voxels(field, affine)
    ends = torch.tensor(size).view(3, 1, 1, 1) - 1
    inside = ((places[0] >= 0) & (places[0] <= ends)).all(0).numpy()  # beyond, ITK has 0 at once, we after a voxel
    assert inside.mean() > 0.3
    ours = sample(values, places) if its_own_grid else warp(values, mm_to_ddf(field, AFFINE))
    np.testing.assert_allclose(ours[0, 0].numpy()[inside], theirs[inside], atol=0.02)
    unmoved = sample(values, moving_voxels(0 * field, affine))[0, 0].numpy()
    assert np.abs(unmoved - theirs)[inside].max() > 20


def test_a_ddf_in_mm_is_the_way_between_the_world_points_of_its_voxels():
    ddf = torch.from_numpy(smooth(SIZE, 2.0))[None]
    there = world(AFFINE, SIZE) + ddf_to_mm(ddf, AFFINE)[0].numpy()
    moved = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij")) + ddf[0].numpy()
    np.testing.assert_allclose(there, np.tensordot(AFFINE[:3, :3], moved, 1) + AFFINE[:3, 3][:, None, None, None])
    torch.testing.assert_close(mm_to_ddf(ddf_to_mm(ddf, AFFINE), AFFINE), ddf)
    with torch.autocast("cpu", torch.bfloat16):
        places = moving_voxels(ddf_to_mm(ddf.float(), AFFINE), AFFINE)[0]
    np.testing.assert_allclose(places.numpy(), moved, atol=1e-4)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_field_comes_back_as_it_was_and_equal_fields_are_equal_files(displacement, tmp_path, name):
    write_field(tmp_path / name, displacement, AFFINE)
    write_field(tmp_path / f"again_{name}", np.asfortranarray(displacement), AFFINE)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again_{name}").read_bytes()
    field, affine = read_field(tmp_path / name)
    assert field.dtype == np.float32
    np.testing.assert_array_equal(field, displacement)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    header = nibabel.load(tmp_path / name).header
    assert header["dim"][:6].tolist() == [5, *SIZE, 1, 3]
    assert (header["intent_code"], header["sform_code"], header["qform_code"]) == (1007, 1, 1)


def test_files_are_those_that_nibabel_writes(displacement, tmp_path):
    write_field(tmp_path / "field.nii", displacement, AFFINE)
    ours = nibabel.load(tmp_path / "field.nii")
    lps = np.moveaxis(displacement * LPS[:, None, None, None], 0, -1)[:, :, :, None].astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(lps, AFFINE, ours.header), tmp_path / "theirs.nii")
    assert (tmp_path / "field.nii").read_bytes() == (tmp_path / "theirs.nii").read_bytes()


def test_a_field_whose_two_affines_disagree_is_read_by_the_one_asked_for(displacement, tmp_path):
    write_field(tmp_path / "agreed.nii", displacement, AFFINE)
    image, path = nibabel.load(tmp_path / "agreed.nii"), tmp_path / "field.nii"
    image.set_qform(np.diag([2.0, 2, 2, 1]), code="scanner")
    nibabel.save(image, path)
    assert refusal(read_field, path).code == "E-AFFINE-CONFLICT"
    _, affine = read_field(path, ReadOptions(affine="sform"))
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    assert refusal(read_field, path, ReadOptions(affine="sform", max_memory=1000)).code == "E-SIZE"


def test_a_field_that_itk_writes_is_read(displacement, tmp_path):
    import itk

    write_field(tmp_path / "ours.nii.gz", displacement, AFFINE)
    itk.imwrite(itk.imread(tmp_path / "ours.nii.gz", itk.Vector[itk.F, 3]), tmp_path / "theirs.nii.gz")
    field, affine = read_field(tmp_path / "theirs.nii.gz")
    np.testing.assert_array_equal(field, displacement)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "fields", "says"),
    [
        ((3, 4, 5, 1, 3), {"intent_code": 1006}, "1006"),
        ((3, 4, 5, 1, 3), {"intent_code": 0}, "got 0"),
        ((3, 4, 5, 1, 3), {"intent_code": 1007, "intent_name": b"Mapping"}, "Mapping"),  # SPM: places, RAS
        ((3, 4, 5, 1, 3), {"intent_code": 1007, "intent_name": b"NREG_TRANS"}, "NREG_TRANS"),  # RAS
        ((3, 4, 1, 1, 2), {"intent_code": 1007}, "(3, 4, 1, 1, 2)"),
        ((3, 4, 5, 3), {"intent_code": 1007}, "(3, 4, 5, 3)"),
        ((3, 4, 5), {}, "(3, 4, 5)"),
    ],
)
def test_row_58_fields_of_uncertain_convention_are_refused(tmp_path, shape, fields, says):
    caught = refusal(read_field, write_nifti(tmp_path / "field.nii.gz", ramp(*shape, dtype=np.float32), **fields))
    assert caught.code == "E-TRANSFORM"
    assert says in caught.message
    assert caught.path == tmp_path / "field.nii.gz"
    assert caught.remedy


def test_damaged_fields_are_refused(displacement, tmp_path):
    components = np.moveaxis(displacement, 0, -1)[:, :, :, None].copy()
    whole = nifti_bytes(components, intent_code=1007)
    path = tmp_path / "field.nii"
    for code, content in (
        ("E-TRUNCATED", whole[:-1]),
        ("E-TRUNCATED", whole[:100]),
        ("E-CORRUPT", nifti_bytes(components, intent_code=1007, vox_offset=12)),
        ("E-CORRUPT", nifti_bytes(components, intent_code=1007, vox_offset=352.5)),
        ("E-NO-ORIENTATION", nifti_bytes(components, intent_code=1007, codes=(0, 0))),
    ):
        path.write_bytes(content)
        assert refusal(read_field, path).code == code
    (tmp_path / "field.nii.gz").write_bytes(gzip.compress(whole)[:-9])
    assert refusal(read_field, tmp_path / "field.nii.gz").code == "E-TRUNCATED"
    components[3, 2, 1, 0, 1] = np.nan
    write_nifti(path, components, intent_code=1007)
    assert refusal(read_field, path).code == "E-NONFINITE"


def test_what_no_program_could_apply_is_not_written(displacement, tmp_path):
    sheared = AFFINE @ np.array([[1, 0, 0, 0], [0, 1, 0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert refusal(write_field, tmp_path / "a.nii.gz", displacement, sheared).code == "E-TRANSFORM"
    for wrong, says in ((displacement[0], "shape"), (displacement * np.nan, "NaN")):
        with pytest.raises(ValueError, match=says):
            write_field(tmp_path / "a.nii.gz", wrong, AFFINE)
    for write, content in ((write_field, (displacement, AFFINE)), (write_affine, (MATRIX,))):
        with pytest.raises(ValueError, match="must end in"):
            write(tmp_path / "a.nrrd", *content)
    with pytest.raises(ValueError, match="last row"):
        write_affine(tmp_path / "a.tfm", MATRIX.T)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.tfm", "a.txt", "a.mat"])
def test_row_58_itk_maps_points_through_a_saved_matrix_as_we_do(tmp_path, name):
    import itk

    write_affine(tmp_path / name, MATRIX)
    (theirs,) = itk.transformread(tmp_path / name)
    points = np.random.default_rng(0).uniform(-100, 100, (20, 3))
    expected = points @ MATRIX[:3, :3].T + MATRIX[:3, 3]
    assert worst(theirs, points, expected) < 1e-9
    assert worst(theirs, points * LPS, expected * LPS) > 10  # LPS and RAS are not the same here
    np.testing.assert_allclose(read_affine(tmp_path / name), MATRIX, atol=1e-12)
    before = (tmp_path / name).read_bytes()
    write_affine(tmp_path / name, MATRIX)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("name", ["a.tfm", "a.mat"])
def test_a_matrix_about_a_centre_that_itk_writes_is_read(tmp_path, name):
    import itk

    theirs = itk.AffineTransform[itk.D, 3].New()
    theirs.SetMatrix(itk.matrix_from_array(MATRIX[:3, :3]))
    theirs.SetCenter([10.0, -20.0, 30.0])
    theirs.SetTranslation([1.0, 2.0, 3.0])
    itk.transformwrite([theirs], str(tmp_path / name))
    points = np.random.default_rng(0).uniform(-100, 100, (20, 3))
    found = read_affine(tmp_path / name)
    assert worst(theirs, points, points @ found[:3, :3].T + found[:3, 3]) < 1e-3


TWELVE = "Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("E-TRANSFORM", f"Transform: Euler3DTransform_double_3_3\n{TWELVE}"),
        ("E-TRANSFORM", f"Transform: AffineTransform_double_3_3\n{TWELVE}" * 2),
        ("E-CORRUPT", "Transform: AffineTransform_double_3_3\nParameters: 1 0 0\nFixedParameters: 0 0 0\n"),
        ("E-CORRUPT", f"Transform: AffineTransform_double_3_3\n{TWELVE.replace('1', 'one')}"),
        ("E-AFFINE", f"Transform: AffineTransform_double_3_3\n{TWELVE.replace('1', '0')}"),
        ("E-AFFINE", f"Transform: AffineTransform_double_3_3\n{TWELVE.replace('1', 'nan')}"),
        ("E-TRUNCATED", f"Transform: AffineTransform_double_3_3\n{TWELVE}"[:-1]),
    ],
)
def test_row_58_other_transformations_are_refused(tmp_path, code, text):
    (tmp_path / "a.tfm").write_text(f"#Insight Transform File V1.0\n#Transform 0\n{text}")
    assert refusal(read_affine, tmp_path / "a.tfm").code == code


def test_matlab_files_cut_anywhere_or_with_several_matrices_are_refused(tmp_path):
    path = tmp_path / "a.mat"
    write_affine(path, MATRIX)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert refusal(read_affine, path).code in ("E-CORRUPT", "E-TRANSFORM")
    path.write_bytes(whole + whole)
    assert refusal(read_affine, path).code == "E-TRANSFORM"
    savemat(path, {"VersorRigid3DTransform_double_3_3": np.zeros((6, 1)), "fixed": np.zeros((3, 1))}, format="4")
    assert refusal(read_affine, path).code == "E-TRANSFORM"
    (tmp_path / "a.xfm").write_bytes(whole)
    assert refusal(read_affine, tmp_path / "a.xfm").code == "E-FORMAT"
