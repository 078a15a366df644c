import csv
import json
import logging
import re
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_attention import bundles
from monai_attention.cohort.phases import Phases
from monai_attention.errors import Refusal
from monai_attention.inference.predict import predict
from monai_attention.inference.segment import segment
from monai_attention.inference.sliding_window import settings_of
from monai_attention.io.geometry import spacing
from monai_attention.io.volume import ReadOptions, Volume
from monai_attention.networks.flex_unetr import FlexUNETR
from tests.inference.make_ball import RADIUS, ball
from tests.io.make_dicom import CANARY, ras_affine, tilted, write_series
from tests.io.make_volumes import affines, oblique, write_nifti
from tests.make_bundle import threshold_bundle, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return threshold_bundle(tmp_path_factory.mktemp("bundles") / "threshold")


@pytest.fixture(scope="module")
def loaded(bundle):
    return bundles.load(bundle)


def centre_and_ml(labels, affine):
    """Centre of mass of label 1 in world mm, and its volume."""
    where = np.argwhere(labels == 1)
    return affine[:3, :3] @ where.mean(axis=0) + affine[:3, 3], len(where) * abs(np.linalg.det(affine[:3, :3])) / 1000


BALL_ML = 4 / 3 * np.pi * RADIUS**3 / 1000


# Geometry


@settings(max_examples=15, deadline=None)
@given(affine=affines(), shear=st.sampled_from([0.0, 0.0, 0.3]))
def test_labels_lie_where_the_ball_lies_whatever_the_grid(loaded, affine, shear):
    affine[:3, :3] *= np.clip(spacing(affine), 0.9, 2.2) / spacing(affine)  # the ball is no larger than 18 mm
    affine[:3, 2] += shear * affine[:3, 1] * spacing(affine)[2] / spacing(affine)[1]
    shape = tuple(int(n) + extra for n, extra in zip(np.ceil(44 / spacing(affine)), (0, 1, 2), strict=True))
    array, centre = ball(shape, affine)
    labels = predict(Volume(array[None], affine, Path("x")), loaded, Phases(torch.device("cpu"))).labels
    assert labels.shape == shape
    found, ml = centre_and_ml(labels, affine)
    assert np.linalg.norm(found - centre) < 0.5
    assert ml == pytest.approx(BALL_ML, rel=0.1)


def test_row_20_a_sheared_nifti_is_segmented_in_place(tmp_path, bundle):
    affine = oblique((1.0, 1.0, 2.0))
    affine[:3, 2] += 0.4 * affine[:3, 1]
    array, centre = ball((50, 52, 30), affine)
    write_nifti(tmp_path / "sheared.nii.gz", array, affine, codes=(1, 0))
    (result,) = segment(tmp_path / "sheared.nii.gz", tmp_path / "out", bundle=bundle)
    image = nibabel.load(result.outputs["labels"])
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    found, ml = centre_and_ml(np.asarray(image.dataobj), image.affine)
    assert np.linalg.norm(found - centre) < 0.5
    assert ml == pytest.approx(BALL_ML, rel=0.05)


def test_row_03_a_tilted_series_gets_labels_on_its_own_slices(tmp_path, bundle):
    affine = tilted(ras_affine((1.0, 1.0, 2.0), origin=(20, -30, 100)), 15)
    array, centre = ball((48, 50, 24), affine)
    write_series(tmp_path / "series", 1000 * array, affine, "MR")
    (result,) = segment(tmp_path / "series", tmp_path / "out", bundle=bundle, formats=["nifti", "dicom-seg"])
    assert result.verdict == "ok"
    image = nibabel.load(result.outputs["labels"])
    assert image.shape == (48, 50, 24)
    found, _ = centre_and_ml(np.asarray(image.dataobj), image.affine)
    assert np.linalg.norm(found - centre) < 0.5
    assert highdicom.seg.segread(result.outputs["dicom_seg"]).number_of_segments == 1


@pytest.mark.parametrize("size", [(9, 11, 10), (45, 37, 50)])
def test_rows_26_27_28_any_size_goes_in_and_the_same_comes_out(tmp_path, size):
    """Smaller than the window, no multiple of anything, and another grid of positions than the one learned."""
    options = {"patch_size": 4, "feature_size": 4, "hidden_size": 12, "mlp_size": 16, "num_heads": 2, "depth": 2}
    network = FlexUNETR(1, 2, roi_size=(16, 16, 16), **options)
    target = {"_target_": "monai_attention.networks.flex_unetr.FlexUNETR", "in_channels": 1, "out_channels": 2}
    folder = write_bundle(
        tmp_path / "b", {**target, "roi_size": [16] * 3, **options}, network.state_dict(), spacing=1.0
    )
    path = write_nifti(tmp_path / "x.nii", np.random.default_rng(0).random(size, np.float32), oblique((1, 1, 1)))
    (result,) = segment(path, tmp_path / "out", bundle=folder)
    assert result.verdict in ("ok", "flagged")
    assert nibabel.load(result.outputs["labels"]).shape == size


# Outputs


def test_everything_is_written_and_agrees(tmp_path, bundle):
    affine = oblique()
    array, _ = ball((50, 40, 20), affine)
    (result,) = segment(write_nifti(tmp_path / "head.nii.gz", array, affine), tmp_path / "out", bundle=bundle)
    folder = tmp_path / "out/head"
    assert {path.name for path in folder.iterdir()} == {
        *("labels.nii.gz", "labels.json", "volumes.csv", "preview.png", "run.json"),
    }
    image = nibabel.load(folder / "labels.nii.gz")
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    assert json.loads((folder / "labels.json").read_text()) == {"0": "background", "1": "bright"}
    voxels = int((np.asarray(image.dataobj) == 1).sum())
    row = next(csv.DictReader((tmp_path / "out/volumes.csv").open()))
    assert (row["case_id"], row["class"], int(row["voxels"])) == ("head", "bright", voxels)
    assert result.volumes_ml["bright"] == pytest.approx(BALL_ML, rel=0.05)
    record = json.loads((folder / "run.json").read_text())
    assert record["bundle"]["weights_sha256"] == bundles.info(bundle).weights_sha256
    assert set(record["seconds"]) == {"read", "prepare", "network", "labels", "write"}
    assert all(mb > 0 for mb in record["peak_memory_mb"].values())
    assert "head" in (tmp_path / "out/report.html").read_text()


def test_a_dicom_series_becomes_a_dicom_segmentation_in_place(tmp_path, bundle):
    affine = ras_affine((1.0, 1.2, 2.5), origin=(30, 40, -50))
    array, _ = ball((40, 38, 18), affine)
    write_series(tmp_path / "study", 1000 * array, affine, "MR")
    (result,) = segment(tmp_path / "study", tmp_path / "out", bundle=bundle, formats=["dicom-seg"])
    image = nibabel.load(result.outputs["labels"])
    found = highdicom.seg.segread(result.outputs["dicom_seg"]).get_volume(combine_segments=True)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ found.affine
    labels = np.asarray(image.dataobj)
    for index in np.argwhere(found.array == 1):
        voxel = np.linalg.inv(image.affine) @ to_ras @ [*index, 1]
        assert labels[tuple(np.rint(voxel[:3]).astype(int))] == 1
    assert (found.array == 1).sum() == (labels == 1).sum() > 100


def test_a_seg_of_what_is_no_dicom_is_noted(tmp_path, bundle):
    array, _ = ball((30, 30, 30), np.eye(4))
    (result,) = segment(
        write_nifti(tmp_path / "a.nii", array, np.eye(4)), tmp_path / "out", bundle=bundle, formats=["dicom-seg"]
    )
    assert result.verdict == "ok"
    assert "I-NO-SEG" in (tmp_path / "out/a/run.json").read_text()


def test_nothing_found_is_flagged(tmp_path, bundle):
    array = np.linspace(0, 1, 30**3, dtype=np.float32).reshape(30, 30, 30)
    path = write_nifti(tmp_path / "a.nii", array, np.eye(4))
    settings = {"network_def::out_channels": 2, "preprocessing::transforms::4::maxv": 0.4}
    (result,) = segment(path, tmp_path / "out", bundle=bundle, overrides=settings)
    assert (result.verdict, result.code) == ("flagged", "F-EMPTY")


# Verdicts


def test_one_bad_case_does_not_stop_the_others(tmp_path, bundle):
    array, _ = ball((30, 30, 30), np.eye(4))
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in/good.nii.gz", array)
    write_nifti(tmp_path / "in/nan.nii.gz", np.full((30, 30, 30), np.nan, np.float32))
    (tmp_path / "in/cut.nii.gz").write_bytes((tmp_path / "in/good.nii.gz").read_bytes()[:-100])
    results = {r.case_id: r for r in segment(tmp_path / "in", tmp_path / "out", bundle=bundle)}
    assert {name: (r.verdict, r.code) for name, r in results.items()} == {
        "good": ("ok", ""),
        "nan": ("refused", "E-NONFINITE"),
        "cut": ("refused", "E-TRUNCATED"),
    }
    assert all(r.remedy for r in results.values() if r.verdict == "refused")


def test_row_14_a_ct_series_is_refused_by_an_mr_bundle(tmp_path, bundle):
    write_series(tmp_path / "ct", np.random.default_rng(0).normal(0, 300, (20, 20, 10)), ras_affine((3, 3, 5)), "CT")
    (result,) = segment(tmp_path / "ct", tmp_path / "out", bundle=bundle)
    assert (result.verdict, result.code) == ("refused", "E-MODALITY")
    (result,) = segment(tmp_path / "ct", tmp_path / "out", bundle=bundle, overrides={"_meta_::gate::modalities": []})
    assert result.verdict in ("ok", "flagged")


def test_row_29_what_would_not_fit_is_refused_with_the_figure(tmp_path, monkeypatch):
    bundle = threshold_bundle(tmp_path / "fine", spacing=0.5)  # 120 x 120 x 120 voxels for the network
    array, _ = ball((60, 60, 60), np.eye(4))
    path = write_nifti(tmp_path / "a.nii", array, np.eye(4))
    ran = []
    monkeypatch.setattr("monai_attention.inference.predict.stream", lambda *_: ran.append(1))
    (result,) = segment(path, tmp_path / "out", bundle=bundle, options=ReadOptions(max_memory=10_000_000))
    assert (result.verdict, result.code) == ("refused", "E-MEMORY")
    assert re.search(r"120 x 120 x 120|119 x 119 x 119", result.message)
    assert not ran


@pytest.mark.parametrize(("room", "verdict", "code"), [(2, "ok", ""), (0, "refused", "E-MEMORY")])
def test_row_54_out_of_memory_takes_fewer_windows_or_refuses_the_case(
    tmp_path, monkeypatch, caplog, room, verdict, code
):
    bundle = threshold_bundle(tmp_path / "bundle")
    affine = np.diag([2.0, 2, 2, 1])
    path = write_nifti(tmp_path / "a.nii", ball((60, 90, 60), affine)[0], affine)
    (expected,) = segment(path, tmp_path / "expected", bundle=bundle)
    whole = torch.nn.Conv3d.forward

    def small(self, windows):
        if len(windows) > room:
            raise torch.OutOfMemoryError
        return whole(self, windows)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", small)
    (result,) = segment(path, tmp_path / "out", bundle=bundle, overrides={"inferer::sw_batch_size": 4})
    assert (result.verdict, result.code) == (verdict, code)
    if room:
        assert result.volumes_ml == expected.volumes_ml
        assert "going on with 2 windows at a time" in caplog.text


STREAMING = "monai_attention.inference.sliding_window.StreamingInferer"


@pytest.mark.parametrize("sheared", [False, True])
def test_uncertainty_is_written_on_the_grid_of_the_input(tmp_path, bundle, sheared):
    affine = np.diag([1.5, 2, 2, 1])
    affine[0, 1] = 0.5 * sheared
    array, _ = ball((60, 40, 40), affine)
    path = write_nifti(tmp_path / "a.nii", array, affine, codes=(1, 0))
    mirrored = {"inferer::_target_": STREAMING, "inferer::mirror_axes": [0]}
    for name, overrides in (("plain", {}), ("mirrored", mirrored)):
        (result,) = segment(path, tmp_path / name, bundle=bundle, uncertainty=True, overrides=overrides)
        found = nibabel.load(result.outputs["entropy"])
        assert np.allclose(found.affine, nibabel.load(path).affine, atol=1e-6)
        values = found.get_fdata()
        assert values.shape == array.shape
        edge = np.abs(array / array.max() - 0.5) < 0.05
        assert values[edge].mean() > 0.3
        assert values[array == 0].max() < 0.01
        assert values.max() <= 1
        assert ("disagreement" in result.outputs) == (name == "mirrored")
    # The network looks at single voxels, so it says the same of a mirrored image.
    assert nibabel.load(result.outputs["disagreement"]).get_fdata().max() < 0.01
    (again,) = segment(path, tmp_path / "mirrored", bundle=bundle, overrides=mirrored)
    assert not again.resumed
    assert not (tmp_path / "mirrored" / "a" / "entropy.nii.gz").exists()


def test_several_devices_give_the_same_labels(tmp_path, bundle):
    affine = np.diag([1.0, 1, 1, 1])
    path = write_nifti(tmp_path / "a.nii", ball((90, 70, 70), affine)[0], affine)
    (one,) = segment(path, tmp_path / "one", bundle=bundle, device="cpu")
    (two,) = segment(path, tmp_path / "two", bundle=bundle, device="cpu, cpu")
    assert one.outputs["labels"].read_bytes() == two.outputs["labels"].read_bytes()
    assert json.loads((tmp_path / "two/a/run.json").read_text())["device"] == "cpu, cpu"
    with pytest.raises(Refusal, match="no device 'abacus'"):
        segment(path, tmp_path / "three", bundle=bundle, device="cpu,abacus")


def test_a_network_that_gives_no_numbers_is_not_believed(tmp_path):
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    weights = {"weight": torch.ones(2, 1, 1, 1, 1), "bias": torch.tensor([0.0, float("nan")])}
    bundle = write_bundle(tmp_path / "bundle", network, weights)
    path = write_nifti(tmp_path / "a.nii", ball((30, 30, 30), np.eye(4))[0], np.eye(4))
    (result,) = segment(path, tmp_path / "out", bundle=bundle)
    assert (result.verdict, result.code) == ("refused", "E-RESULT")


def test_a_fault_of_ours_is_reported_as_one(tmp_path, bundle, monkeypatch, caplog):
    array, _ = ball((30, 30, 30), np.eye(4))
    path = write_nifti(tmp_path / "a.nii", array, np.eye(4))
    monkeypatch.setattr("monai_attention.inference.labels.LabelsOnGrid.add", lambda *_: 1 / 0)
    (result,) = segment(path, tmp_path / "out", bundle=bundle)
    assert (result.verdict, result.code) == ("refused", "E-INTERNAL")
    assert "ZeroDivisionError" in caplog.text


def test_a_bundle_that_cannot_be_loaded_stops_the_run(tmp_path, bundle):
    array, _ = ball((30, 30, 30), np.eye(4))
    path = write_nifti(tmp_path / "a.nii", array, np.eye(4))
    with pytest.raises(Refusal, match="E-BUNDLE-NOT-FOUND"):
        segment(path, tmp_path / "out", bundle="no_such_bundle")
    with pytest.raises(Refusal, match="E-OVERRIDE"):
        segment(path, tmp_path / "out", bundle=bundle, overrides={"inferer::no::such": 1})
    with pytest.raises(Refusal, match="E-DEVICE there is no device 'abacus'"):
        segment(path, tmp_path / "out", bundle=bundle, device="abacus")


# Cohorts


def test_finished_cases_are_kept_and_refused_ones_tried_again(tmp_path, bundle):
    array, _ = ball((30, 30, 30), np.eye(4))
    good, bad = write_nifti(tmp_path / "good.nii", array, np.eye(4)), tmp_path / "bad.nii"
    bad.write_bytes(b"nothing")
    first = segment([good, bad], tmp_path / "out", bundle=bundle)
    assert [(r.verdict, r.resumed) for r in first] == [("ok", False), ("refused", False)]
    second = segment([good, bad], tmp_path / "out", bundle=bundle)
    assert [(r.verdict, r.resumed) for r in second] == [("ok", True), ("refused", False)]
    assert second[0].volumes_ml == first[0].volumes_ml
    third = segment([good], tmp_path / "out", bundle=bundle, overrides={"inferer::overlap": 0.5})
    assert not third[0].resumed  # other settings, another result
    fourth = segment([good], tmp_path / "out", bundle=bundle, overrides={"inferer::overlap": 0.5}, overwrite=True)
    assert not fourth[0].resumed


def test_results_of_an_edited_bundle_are_made_anew(tmp_path):
    bundle = threshold_bundle(tmp_path / "edited")
    array, _ = ball((30, 30, 30), np.eye(4))
    path = write_nifti(tmp_path / "a.nii", array, np.eye(4))
    assert not segment(path, tmp_path / "out", bundle=bundle)[0].resumed
    assert segment(path, tmp_path / "out", bundle=bundle)[0].resumed
    configuration = bundle / "configs/inference.json"
    configuration.write_text(configuration.read_text().replace("0.25", "0.5"))
    assert not segment(path, tmp_path / "out", bundle=bundle)[0].resumed


def test_the_same_input_gives_the_same_bytes(tmp_path, bundle):
    array, _ = ball((30, 30, 30), oblique((1, 1, 1)))
    path = write_nifti(tmp_path / "a.nii", array, oblique((1, 1, 1)))
    one, two = (segment(path, tmp_path / out, bundle=bundle)[0].outputs["labels"].read_bytes() for out in "xy")
    assert one == two


def test_a_table_and_a_folder_name_cases_and_the_output_is_no_input(tmp_path, bundle):
    array, _ = ball((30, 30, 30), np.eye(4))
    write_nifti(tmp_path / "one.nii", array, np.eye(4))
    (tmp_path / "cases.csv").write_text("id,path\nfirst,one.nii\n")
    assert [r.case_id for r in segment(tmp_path / "cases.csv", tmp_path / "out", bundle=bundle)] == ["first"]
    assert [r.case_id for r in segment(tmp_path, tmp_path / "out", bundle=bundle)] == ["one"]


def test_parts_divide_the_cases(tmp_path, bundle):
    array, _ = ball((20, 20, 20), np.eye(4))
    (tmp_path / "in").mkdir()
    for k in range(5):
        write_nifti(tmp_path / f"in/case{k}.nii", array, np.eye(4))
    parts = [
        {r.case_id for r in segment(tmp_path / "in", tmp_path / "out", bundle=bundle, part=(i, 2))} for i in (1, 2)
    ]
    assert parts[0] | parts[1] == {f"case{k}" for k in range(5)}
    assert not parts[0] & parts[1]
    page = (tmp_path / "out/report.html").read_text()
    assert all(f"case{k}" in page for k in range(5))  # those of the other part as well
    assert (tmp_path / "out/volumes.csv").read_text().count("\ncase") == 5


def test_row_60_nothing_of_the_patient_leaves_but_in_dicom(tmp_path, bundle, caplog):
    caplog.set_level(logging.DEBUG)
    affine = ras_affine((1.0, 1.0, 2.0))
    array, _ = ball((40, 40, 20), affine)
    write_series(tmp_path / "study", 1000 * array, affine, "MR")
    write_series(tmp_path / "gap", 1000 * array, affine, "MR", slices=[*range(5), *range(8, 20)])
    results = segment([tmp_path / "study", tmp_path / "gap"], tmp_path / "out", bundle=bundle, formats=["dicom-seg"])
    assert [r.verdict for r in results] == ["ok", "refused"]
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) >= 8
    for path in written:
        assert (CANARY.encode() in path.read_bytes()) == (path.suffix == ".dcm"), path
        if path.name.endswith(".gz"):
            assert CANARY.encode() not in nibabel.load(path).header.binaryblock
    assert CANARY not in caplog.text
    assert "19010203" not in caplog.text


def test_windows_are_counted_as_monai_visits_them():
    from monai.inferers import SlidingWindowInferer

    for size, roi, overlap in [((50, 33, 20), (32, 32, 32), 0.25), ((100, 64, 65), (64, 32, 16), 0.5)]:
        seen = []
        inferer = SlidingWindowInferer(roi, overlap=overlap)
        inferer(torch.zeros(1, 1, *size), lambda x, seen=seen: seen.append(len(x)) or x)
        assert settings_of(inferer).layout(size).count() == sum(seen)
