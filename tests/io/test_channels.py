"""Cases of several files, one a channel."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from monai_attention.errors import Refusal
from monai_attention.io.cases import find_cases
from monai_attention.io.channels import read_channel_headers, read_channels
from monai_attention.io.check import check
from monai_attention.io.volume import ReadOptions, Requirements
from tests.io.make_dicom import write_series
from tests.io.make_volumes import oblique, ramp, write_nifti

TWO = Requirements(channels=2, spacing_mm=(0.0, 100.0))


def pair(folder, name="a", scale=2.0, affine=None):
    folder.mkdir(exist_ok=True)
    array = ramp(4, 5, 6)
    affine = oblique() if affine is None else affine
    paths = folder / f"{name}_0000.nii.gz", folder / f"{name}_0001.nii.gz"
    write_nifti(paths[0], array, oblique())
    write_nifti(paths[1], scale * array, affine)
    return paths


def found(*inputs, channels=2):
    return [(case.id, [path.name for path in case.paths]) for case in find_cases(inputs, channels=channels)]


def test_numbered_files_of_a_folder_are_one_case(tmp_path):
    pair(tmp_path / "sub"), pair(tmp_path / "sub", "b")
    write_nifti(tmp_path / "sub/whole.nii.gz", ramp(4, 5, 6), oblique())
    expected = [("a", ["a_0000.nii.gz", "a_0001.nii.gz"]), ("b", ["b_0000.nii.gz", "b_0001.nii.gz"])]
    assert found(tmp_path / "sub") == [*expected, ("whole", ["whole.nii.gz"])]
    assert found(tmp_path)[0][0] == "sub__a"
    assert len(found(tmp_path, channels=1)) == 5


def test_files_with_commas_between_them_are_one_case(tmp_path):
    first, second = pair(tmp_path / "data")
    assert found(f"{second},{first}") == [("a", [second.name, first.name])]
    comma = shutil.copy(first, tmp_path / "x,y.nii.gz")
    assert found(comma) == [("x,y", ["x,y.nii.gz"])]  # in the name of what is there it means nothing
    for wrong, code in ((f"{first},{tmp_path / 'lost.nii'}", "E-NOT-FOUND"), (f"{first},{__file__}", "E-FORMAT")):
        with pytest.raises(Refusal) as caught:
            find_cases([wrong], channels=2)
        assert caught.value.code == code


@pytest.mark.parametrize("numbers", [(0, 2), (1, 2), (0, 1, 2), (0, 0)])
def test_numbers_that_are_not_the_channels_of_a_case_join_nothing(tmp_path, numbers):
    """Nobody is to get the third sequence for the second; and `sub_0001`, `sub_0002` may be two people."""
    for place, number in enumerate(numbers):
        write_nifti(tmp_path / f"a_{number:04d}.nii{'.gz' * (place % 2)}", ramp(4, 5, 6), oblique())
    if numbers[0] == numbers[1]:
        with pytest.raises(Refusal):
            found(tmp_path)
    else:
        assert [len(files) for _, files in found(tmp_path)] == [1] * len(numbers)


@pytest.mark.parametrize("typed", ["{},", ",{}", "{},,{}"])
def test_nothing_beside_a_comma_is_no_file(tmp_path, typed):
    first, _ = pair(tmp_path / "data")
    with pytest.raises(Refusal) as caught:
        find_cases([typed.format(first, first)], channels=2)
    assert caught.value.code == "E-NOT-FOUND"
    assert "comma" in caught.value.remedy


def test_blanks_beside_a_comma_and_home_are_understood(tmp_path, monkeypatch):
    first, second = pair(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found(f"{first}, ~/data/{second.name}") == [("a", [first.name, second.name])]


def test_memory_is_counted_for_all_of_them(tmp_path):
    paths = [pair(tmp_path / "data")[0]] * 8
    eight, all_of_them = replace(TWO, channels=8), (8 + 2) * 4 * 4 * 5 * 6  # and two that are being read
    assert read_channels(paths, ReadOptions(max_memory=all_of_them), eight).array.nbytes == 8 * 4 * 4 * 5 * 6
    for function in (read_channels, read_channel_headers):
        with pytest.raises(Refusal) as caught:
            function(paths, ReadOptions(max_memory=all_of_them - 1), eight)
        assert caught.value.code == "E-SIZE"


def test_without_a_bundle_any_number_will_do(tmp_path):
    assert read_channels(pair(tmp_path / "data")).array.shape[0] == 2


def test_a_table_has_a_column_for_each(tmp_path):
    pair(tmp_path / "data")
    table = tmp_path / "table.csv"
    table.write_text("id,image_T1,image_T2\nme,data/a_0001.nii.gz,data/a_0000.nii.gz\n")
    assert found(table) == [("me", ["a_0001.nii.gz", "a_0000.nii.gz"])]
    table.write_text("id,path,image_date\nme,data/a_0001.nii.gz,2020-01-01\n")
    assert found(table) == [("me", ["a_0001.nii.gz"])]
    table.write_text("image_T1,image_T2\ndata/a_0001.nii.gz,\n")
    with pytest.raises(Refusal) as caught:
        find_cases([table], channels=2)
    assert caught.value.code == "E-CSV"


def test_they_become_the_channels_of_one_volume(tmp_path):
    paths = pair(tmp_path / "data")
    volume = read_channels(paths, requirements=TWO)
    np.testing.assert_array_equal(volume.array, np.stack([ramp(4, 5, 6), 2 * ramp(4, 5, 6)]))
    header = read_channel_headers(paths, requirements=TWO)
    assert (header.channels, header.shape) == (2, (4, 5, 6))
    np.testing.assert_allclose(header.affine, volume.affine)


def test_axes_may_run_another_way_but_voxels_must_be_the_same(tmp_path):
    first, second = pair(tmp_path / "data")
    flip = oblique() @ np.array([[-1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_nifti(second, ramp(4, 5, 6)[::-1], flip)
    volume = read_channels([first, second], requirements=TWO)
    np.testing.assert_array_equal(*volume.array)
    moved = oblique()
    moved[0, 3] += 0.1
    write_nifti(second, ramp(4, 5, 6), moved)
    for function in (read_channels, read_channel_headers):
        with pytest.raises(Refusal) as caught:
            function([first, second], requirements=TWO)
        assert caught.value.code == "E-GRID"
        assert caught.value.path == second


@pytest.mark.parametrize("full", [False, True])
def test_a_case_that_lacks_a_channel_is_refused_and_the_others_are_not(tmp_path, full):
    first, second = pair(tmp_path / "data")
    pair(tmp_path / "data", "b")
    second.unlink()
    shutil.copy(first, tmp_path / "data/c_0000.nii.gz")
    shutil.copy(first, tmp_path / "data/c_0001.nii.gz")
    shutil.copy(first, tmp_path / "data/c_0002.nii.gz")
    verdicts = {one.case_id: one.code for one in check([tmp_path / "data"], requirements=TWO, headers_only=not full)}
    assert verdicts == {"a_0000": "E-CHANNELS", "b": "", **dict.fromkeys(("c_0000", "c_0001", "c_0002"), "E-CHANNELS")}


def test_series_of_one_grid_are_channels_too(tmp_path):
    for name, uid in (("t1", "1.2.1"), ("t2", "1.2.2")):
        write_series(tmp_path / name, ramp(4, 5, 3), oblique(), SeriesInstanceUID=uid)
    ((case_id, _),) = found(f"{tmp_path / 't1'},{tmp_path / 't2'}")
    assert case_id == "t1"
    volume = read_channels([tmp_path / "t1", tmp_path / "t2"], requirements=TWO)
    assert volume.array.shape == (2, 4, 5, 3)
