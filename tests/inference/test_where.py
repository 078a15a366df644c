"""Where inputs and results lie, and what is asked for, before anything is segmented."""

import zipfile
from collections import namedtuple

import numpy as np
import pytest

from monai_attention.inference.segment import segment
from monai_attention.io import archives
from tests.inference.make_ball import ball
from tests.io.make_dicom import ras_affine, write_series
from tests.io.make_volumes import write_nifti
from tests.make_bundle import threshold_bundle
from tests.refusals import refusal


@pytest.fixture
def bundle(tmp_path_factory):
    return threshold_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.mark.parametrize("given", ["a.nii", "", "in"])
def test_nothing_is_segmented_into_the_folder_it_lies_in(tmp_path, bundle, given):
    array, _ = ball((20, 20, 20), np.eye(4))
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "a.nii", tmp_path / "in/b.nii"):
        write_nifti(path, array, np.eye(4))
    assert refusal(segment, tmp_path / given, tmp_path, bundle=bundle).code == "E-OUTPUT"


def test_a_table_may_lie_where_the_results_do(tmp_path, bundle):
    array, _ = ball((20, 20, 20), np.eye(4))
    write_nifti(tmp_path / "a.nii", array, np.eye(4))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/cases.csv").write_text("path\n../a.nii\n")
    (found,) = segment(tmp_path / "out/cases.csv", tmp_path / "out", bundle=bundle)
    assert found.verdict == "ok"


def test_results_inside_a_study_are_no_part_of_it(tmp_path, bundle):
    affine = ras_affine((1.0, 1.0, 2.0))
    array, _ = ball((40, 40, 20), affine)
    write_series(tmp_path / "study/series", 1000 * array, affine, "MR")
    runs = [segment(tmp_path / "study", tmp_path / "study/results", bundle=bundle) for _ in range(2)]
    assert [[(one.case_id, one.resumed) for one in run] for run in runs] == [[("study", False)], [("study", True)]]


@pytest.mark.parametrize("value", [{96}, float("inf"), "@roi"])
def test_settings_that_json_cannot_hold_are_refused_before_anything_is_done(tmp_path, bundle, value):
    array, _ = ball((20, 20, 20), np.eye(4))
    path = write_nifti(tmp_path / "a.nii", array, np.eye(4))
    overrides = {"_meta_::gate::spacing_mm": [0, value]}
    assert refusal(segment, path, tmp_path / "out", bundle=bundle, overrides=overrides).code == "E-OVERRIDE"


def test_a_zip_that_the_disk_has_no_room_for_does_not_stop_the_others(tmp_path, bundle, monkeypatch):
    array, _ = ball((20, 20, 20), np.eye(4))
    (tmp_path / "in").mkdir()
    for name in ("a.nii", "b.nii"):
        write_nifti(tmp_path / "in" / name, array, np.eye(4))
    with zipfile.ZipFile(tmp_path / "in/c.zip", "w") as archive:
        archive.write(tmp_path / "in/a.nii", "a.nii")
    full = namedtuple("usage", "total used free")(10, 10, 0)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: full)
    found = segment(tmp_path / "in", tmp_path / "out", bundle=bundle)
    assert [(one.verdict, one.code) for one in found] == [("ok", ""), ("ok", ""), ("refused", "E-DISK-FULL")]
