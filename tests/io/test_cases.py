"""What the user typed -> cases: a name of its own for each, before anything is read."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_attention.errors import Refusal
from monai_attention.io import cases
from monai_attention.io.cases import find_cases
from monai_attention.io.read import read
from tests.io.make_dicom import write_series
from tests.io.make_volumes import oblique, ramp, write_nifti


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def series(folder: Path, study: str = "1.2.3") -> Path:
    write_series(folder, ramp(4, 5, 2), oblique(), StudyInstanceUID=study)
    return folder


def ids(*inputs):
    return [case.id for case in find_cases(inputs)]


def refused(*inputs):
    with pytest.raises(Refusal) as caught:
        find_cases(inputs)
    assert caught.value.remedy
    return caught.value


def test_every_volume_file_of_a_folder_is_a_case(tmp_path):
    for name in (
        "b.nii",
        "a.nii.gz",
        "sub/c.NRRD",
        "sub/d.e.mha",
        "f.zip",
        ".tmp-1-a.nii.gz",
        ".cache/x.nii",
        "notes.txt",
    ):
        touch(tmp_path / name)
    found = find_cases([tmp_path])
    assert [case.id for case in found] == ["a", "b", "f", "sub__c", "sub__d.e"]
    assert [case.kind for case in found] == ["nifti", "nifti", "zip", "itk", "itk"]
    assert all(case.path.is_absolute() for case in found)


def test_the_half_of_a_pair_is_a_case_so_that_it_is_not_passed_over(tmp_path):
    touch(tmp_path / "a.hdr"), touch(tmp_path / "a.img")
    assert ids(tmp_path) == ["a"]


def test_dicom_of_one_study_is_one_case(tmp_path):
    series(tmp_path / "patient/study/one")
    series(tmp_path / "patient/study/two")
    (found,) = find_cases([tmp_path / "patient"])
    assert (found.id, found.kind, found.path) == ("patient", "dicom", tmp_path / "patient")
    single = next((tmp_path / "patient/study/one").iterdir())
    assert find_cases([single])[0].kind == "dicom"


def test_people_whose_study_is_unknown_are_one_case_each(tmp_path):
    """The UIDs are emptied, or the first file of each folder is a directory that names no study."""
    for name in ("anna", "bert"):
        series(tmp_path / name, "")
    assert ids(tmp_path) == ["anna", "bert"]
    for part in ("a", "b"):
        write_series(tmp_path / "carl" / part, ramp(4, 5, 2), oblique(), StudyInstanceUID="", SeriesInstanceUID="1.9")
    assert ids(tmp_path / "carl") == ["carl"]  # of one series


def test_dicom_of_several_studies_is_one_case_each(tmp_path):
    series(tmp_path / "anna/ct", "1.1")
    series(tmp_path / "anna/scout", "1.1")
    series(tmp_path / "bert/2020", "1.2")
    series(tmp_path / "bert/2021", "1.3")
    assert ids(tmp_path) == ["anna", "bert__2020", "bert__2021"]


def test_volume_files_beside_dicom_leave_both_as_cases(tmp_path):
    series(tmp_path / "dicom")
    touch(tmp_path / "image.nii.gz")
    assert ids(tmp_path) == ["dicom", "image"]


def test_row_36_equal_names_in_two_folders_stay_apart(tmp_path):
    one, two = touch(tmp_path / "a/t1.nii.gz"), touch(tmp_path / "b/t1.nii.gz")
    assert ids(one, two) == ids(tmp_path / "a", tmp_path / "b") == ids(tmp_path) == ["a__t1", "b__t1"]
    assert ids(one) == ["t1"]
    assert ids(one, touch(tmp_path / "b/t2.nii.gz")) == ["t1", "t2"]


@pytest.mark.parametrize("other", ["a.nrrd", "A.nii.gz"])
def test_row_36_equal_ids_are_refused_before_anything_starts(tmp_path, other):
    touch(tmp_path / "a.nii"), touch(tmp_path / other)
    assert refused(tmp_path).code == "E-DUPLICATE-CASE"
    assert refused(tmp_path / "a.nii", tmp_path / "a.nii").code == "E-DUPLICATE-CASE"


def test_a_table_names_cases(tmp_path):
    touch(tmp_path / "data/x.nii.gz"), touch(tmp_path / "data/y.nii.gz")
    table = tmp_path / "cohort.csv"
    table.write_text("id,path\nfirst case,data/x.nii.gz\n,data/y.nii.gz\nlost,data/z.nii.gz\n", encoding="utf-8-sig")
    assert [(case.id, case.path.name) for case in find_cases([table])] == [
        ("first_case", "x.nii.gz"),
        ("data__y", "y.nii.gz"),
        ("lost", "z.nii.gz"),
    ]
    table.write_text("image\ndata/x.nii.gz\n")
    assert ids(table) == ["data__x"]
    table.write_text("path,image\n,data/x.nii.gz\n")
    assert ids(table) == ["data__x"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("name\nx.nii\n", "E-CSV"),
        ("path\n", "E-EMPTY"),
        ("", "E-EMPTY"),
        ("id,path\na,\n", "E-CSV"),
        ("path\n\xff", "E-CSV"),
    ],
)
def test_tables_that_name_nothing_are_refused(tmp_path, text, code):
    table = tmp_path / "cohort.csv"
    table.write_text(text, encoding="latin-1")
    assert refused(table).code == code


def test_inputs_without_a_case_are_refused(tmp_path):
    assert refused(tmp_path).code == "E-EMPTY"
    assert refused(tmp_path / "nothing").code == "E-NOT-FOUND"
    refusal = refused(touch(tmp_path / "image.png"))
    assert refusal.code == "E-FORMAT"
    assert ".nii.gz" in refusal.message
    assert refused(tmp_path).code == "E-EMPTY"


def test_row_39_any_file_name_works(tmp_path):
    names = ["Größe", "two words", "画像", "a:b*?", os.fsdecode(b"\xff\xfe")]  # the last is no UTF-8
    for index, name in enumerate(names):
        write_nifti(touch(tmp_path / str(index) / f"{name}.nii.gz"), ramp(4, 5, 6))
    found = find_cases([tmp_path])
    assert [case.id for case in found] == ["0__Größe", "1__two_words", "2__画像", "3__a_b_", "4___"]
    for case in found:
        assert read(case.path).shape == (4, 5, 6)


def test_row_39_a_path_of_300_characters_works_and_one_that_is_too_long_is_refused(tmp_path):
    folder = tmp_path / ("a" * 150) / ("b" * 150)
    path = write_nifti(touch(folder / "image.nii"), ramp(4, 5, 6))
    assert read(path).shape == (4, 5, 6)
    (found,) = find_cases([tmp_path])
    assert len(found.id.encode()) <= cases.MAX_ID_BYTES
    assert refused(tmp_path / ("c" * 300 + ".nii")).code == "E-NOT-FOUND"
    with pytest.raises(Refusal, match="E-"):
        read(tmp_path / ("c" * 300 + ".nii"))


def test_row_39_symlink_loops_end(tmp_path):
    touch(tmp_path / "real/image.nii.gz")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "real")
    assert len(find_cases([tmp_path])) == 1
    for name, target in (("circle.nii.gz", "circle.nii.gz"), ("dangling.nii", "nowhere")):
        link = tmp_path / name
        link.symlink_to(tmp_path / target)
        assert len(find_cases([link])) == 1
        with pytest.raises(Refusal, match=r"E-NOT-FOUND|E-UNREADABLE"):
            read(link)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_cannot_be_listed_is_refused(tmp_path):
    touch(tmp_path / "closed/image.nii")
    (tmp_path / "closed").chmod(0)
    try:
        assert refused(tmp_path).code == "E-UNREADABLE"
    finally:
        (tmp_path / "closed").chmod(0o700)


@given(st.text(min_size=1))
def test_ids_are_safe_names(text):
    name = cases.safe_name(text)
    assert name
    assert len(name.encode()) <= cases.MAX_ID_BYTES
    assert not set(name) & set('/\\:*?"<>| \0')
    assert not name.startswith(".")
    assert Path(name).name == name
