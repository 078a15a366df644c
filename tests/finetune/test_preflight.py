"""Every case gets its verdict and its numbers, a bad one never stops the rest, and nothing is read twice."""

import json

import numpy as np
import pytest

from monai_attention.finetune import load
from monai_attention.finetune import preflight as module
from monai_attention.finetune.dataset import find_labelled
from monai_attention.finetune.preflight import format_classes, preflight
from monai_attention.finetune.together import absent
from monai_attention.io import channels
from monai_attention.io.dicom_seg import Segment, write_segmentation
from monai_attention.io.read import read
from tests.finetune import make_dataset as make
from tests.io.make_dicom import CANARY
from tests.io.make_volumes import oblique
from tests.refusals import refusal


def checked(root, **options):
    return preflight(find_labelled([root]), **options)


def verdicts(found):
    return {one.case.id: (one.verdict.verdict, one.verdict.code) for one in found.cases}


def verdict_of(root, image=None, labels=None, affine=None, label_affine=None):
    """Of a case of this image and these labels beside two good ones, which must stay good."""
    make.folders(root)
    make.put(root / "images" / "b.nii.gz", make.image(7) if image is None else image, affine)
    make.put(root / "labels" / "b_seg.nii.gz", make.labels() if labels is None else labels, label_affine)
    found = checked(root)
    assert [one.verdict.verdict for one in found.cases if one.case.id != "b"] == ["ok", "ok"]
    return next(one.verdict for one in found.cases if one.case.id == "b")


@pytest.mark.parametrize("make_one", [make.folders, make.msd, make.nnunet, make.bids])
def test_good_cases_of_every_layout_are_ok(tmp_path, make_one):
    found = checked(make_one(tmp_path))
    assert {one.verdict.verdict for one in found.cases} == {"ok"}
    named = make_one is not make.folders
    assert found.classes == ({1: "liver", 2: "tumour"} if named else {1: "class_1", 2: "class_2"})
    assert found.warnings == ()


def test_row_32_labels_beside_their_image_are_refused(tmp_path):
    moved = oblique()
    moved[0, 3] += 0.002
    verdict = verdict_of(tmp_path, label_affine=moved)
    assert (verdict.verdict, verdict.code) == ("refused", "E-GRID")
    assert "0.002 mm" in verdict.message
    assert verdict.path == tmp_path / "labels" / "b_seg.nii.gz"


def test_row_32_rounding_is_no_mismatch_and_turned_axes_are_turned_back(tmp_path):
    rounded = oblique()
    rounded[:3, 3] += 0.0004
    assert verdict_of(tmp_path / "rounded", label_affine=rounded).verdict == "ok"
    turned = oblique() @ np.array([[0, -1, 0, 9], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    labels = np.ascontiguousarray(make.labels()[::-1].transpose(2, 0, 1))
    root = make.folders(tmp_path / "turned")
    before = {one.case.id: one.statistics for one in checked(root).cases}
    make.put(root / "labels" / "b_seg.nii.gz", labels, turned)
    assert {one.case.id: one.statistics for one in checked(root).cases} == before


def test_row_33_another_number_of_slices_is_refused(tmp_path):
    verdict = verdict_of(tmp_path, labels=make.labels()[:, :, :-1])
    assert (verdict.verdict, verdict.code) == ("refused", "E-GRID")
    assert "10 x 9 x 8" in verdict.message
    assert "10 x 9 x 7" in verdict.message


@pytest.mark.parametrize(("wrong", "said"), [(-1, "-1"), (0.5, "0.5"), (300, "300"), (np.nan, "nan"), (np.inf, "inf")])
def test_row_34_values_that_are_no_class_are_refused_with_their_list(tmp_path, wrong, said):
    labels = make.labels().astype(np.float32)
    labels[9, 8, 7] = wrong
    verdict = verdict_of(tmp_path, labels=labels)
    assert (verdict.verdict, verdict.code) == ("refused", "E-LABELS")
    assert f"got also {said}" in verdict.message
    assert verdict.path == tmp_path / "labels" / "b_seg.nii.gz"


def test_row_34_values_beyond_the_described_classes_are_refused(tmp_path):
    make.msd(tmp_path)
    make.put(tmp_path / "labelsTr" / "b.nii.gz", make.labels(1, 2, 7))
    verdict = checked(tmp_path).cases[1].verdict
    assert (verdict.code, verdict.message) == ("E-LABELS", "expected the values 0, 1, 2, got also 7")


def test_row_35_an_empty_label_map_is_flagged_and_its_classes_are_not_counted(tmp_path):
    make.msd(tmp_path)
    make.put(tmp_path / "labelsTr" / "b.nii.gz", np.zeros(make.SHAPE, np.uint8))
    found = checked(tmp_path, pictures=True)
    assert verdicts(found) == {"a": ("ok", ""), "b": ("flagged", "F-EMPTY")}
    empty = found.cases[1].statistics
    assert (empty.voxels, empty.ml, empty.box, empty.foreground) == ({}, {}, None, ())
    assert found.to_json()["classes"]["liver"]["cases"] == 1
    assert found.warnings == ()


def test_row_35_a_class_that_a_split_lacks_is_warned_of_and_reported_as_missing(tmp_path):
    root = make.in_splits(tmp_path, ("train", "train", "validation"))
    make.put(tmp_path / "l2.nii.gz", make.labels(1))
    found = checked(root)
    (warning,) = found.warnings
    assert (warning.code, found.usable) == ("F-CLASS-ABSENT", found.cases)
    assert "the validation split holds class_2" in warning.message
    assert absent(found.classes, [found.cases[2].statistics]) == ["class_2"]
    never = checked(make.msd(tmp_path / "msd", labels={"liver": 1, "tumour": 2, "cyst": 3}))
    assert "the dataset holds cyst" in never.warnings[0].message
    assert never.to_json()["classes"]["cyst"]["ml"] is None
    assert "n/a" in format_classes(never)


def test_row_37_one_person_in_training_and_validation_is_refused(tmp_path):
    found = checked(make.in_splits(tmp_path, ("train", "validation", "test"), group=("p", "p", "q")))
    assert verdicts(found) == {"i0": ("ok", ""), "i1": ("refused", "E-LEAK"), "i2": ("ok", "")}
    assert "train split, as i0" in found.cases[1].verdict.message


def test_row_37_dicom_of_one_patient_in_two_splits_is_refused_without_naming_them(tmp_path, caplog):
    caplog.set_level("DEBUG")
    rows = []
    for seed, split in enumerate(("train", "validation")):
        make.dicom(tmp_path / f"s{seed}", seed)
        make.put(tmp_path / f"l{seed}.nii.gz", make.labels(), make.DICOM_AFFINE)
        rows.append({"image": f"s{seed}", "label": f"l{seed}.nii.gz", "split": split})
    found = checked(make.table(tmp_path, rows))
    assert verdicts(found) == {"s0": ("ok", ""), "s1": ("refused", "E-LEAK")}
    group = found.cases[0].case.group
    for text in (json.dumps(found.to_json()), caplog.text, format_classes(found)):
        assert CANARY not in text
        assert group not in text


def test_row_37_one_image_in_two_splits_is_refused_and_otherwise_flagged(tmp_path):
    make.in_splits(tmp_path, ("train", "train", "validation"))
    for copy in ("i1.nii", "i2.nii"):
        make.put(tmp_path / f"{copy}.gz", make.image(0))
    found = checked(tmp_path / "cases.csv")
    assert verdicts(found) == {
        "i0": ("flagged", "F-DUPLICATE-IMAGE"),
        "i1": ("flagged", "F-DUPLICATE-IMAGE"),
        "i2": ("refused", "E-LEAK"),
    }
    assert {case.group for case in found.data.cases} == {"i0"}  # no fold will part them


def test_row_37_people_who_share_an_image_are_one_in_their_other_cases_too(tmp_path):
    make.in_splits(tmp_path, ("train", "validation", "validation"), group=("a", "b", "b"))
    make.put(tmp_path / "i1.nii.gz", make.image(0))
    codes = {case: code for case, (_, code) in verdicts(checked(tmp_path / "cases.csv")).items()}
    assert codes == {"i0": "", "i1": "E-LEAK", "i2": "E-LEAK"}


def test_row_38_image_and_labels_the_wrong_way_round_are_refused(tmp_path):
    verdict = verdict_of(tmp_path, image=make.labels(1), labels=make.image(7))
    assert (verdict.verdict, verdict.code) == ("refused", "E-SWAPPED")
    few = make.image(7) % 100 + 1  # values that could be classes, but more than the image has
    assert verdict_of(tmp_path, image=make.labels(1), labels=few.astype(np.uint8)).code == "E-SWAPPED"


def test_row_38_the_same_file_and_the_same_voxels_are_refused(tmp_path):
    assert verdict_of(tmp_path / "voxels", image=make.image(7), labels=make.image(7)).code == "E-SWAPPED"
    make.folders(tmp_path)
    rows = [{"image": "images/a.nii.gz", "label": "images/../images/a.nii.gz"}]
    assert verdicts(checked(make.table(tmp_path, rows))) == {"a": ("refused", "E-SWAPPED")}


def test_a_file_that_is_missing_or_broken_is_the_verdict_of_its_case(tmp_path):
    make.msd(tmp_path, ("a", "b", "c", "d"))
    (tmp_path / "imagesTr" / "b.nii.gz").unlink()
    (tmp_path / "labelsTr" / "c.nii.gz").unlink()
    broken = tmp_path / "imagesTr" / "d.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-40])
    assert verdicts(checked(tmp_path)) == {
        "a": ("ok", ""),
        "b": ("refused", "E-NOT-FOUND"),
        "c": ("refused", "E-NOT-FOUND"),
        "d": ("refused", "E-TRUNCATED"),
    }


def test_an_unforeseen_error_is_a_verdict_that_quotes_nothing(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError(CANARY)

    monkeypatch.setattr(module, "measure", broken)
    found = checked(make.folders(tmp_path))
    assert set(verdicts(found).values()) == {("refused", "E-INTERNAL")}
    assert CANARY not in json.dumps(found.to_json())


def test_numbers_of_a_case(tmp_path):
    image = np.arange(np.prod(make.SHAPE), dtype=np.float32).reshape(make.SHAPE)
    make.put(tmp_path / "images" / "a.nii.gz", image)
    make.put(tmp_path / "labels" / "a.nii.gz", make.labels(1, 7))
    (one,) = checked(tmp_path).cases
    found = one.statistics
    assert (found.shape, found.orientation, found.voxels) == (make.SHAPE, "RAS", {1: 27, 7: 27})
    np.testing.assert_allclose(found.spacing_mm, (0.8, 1.5, 3.0), atol=1e-5)
    assert found.ml[7] == pytest.approx(27 * 0.8 * 1.5 * 3 / 1000, abs=1e-4)
    assert found.box == ((0, 6), (2, 5), (4, 7))
    (everywhere,), (inside,) = found.intensities, found.foreground
    assert (everywhere.low, everywhere.median, everywhere.high) == tuple(
        pytest.approx(float(np.percentile(image, p)), rel=1e-5) for p in (0.5, 50, 99.5)
    )
    labelled = image[make.labels() > 0]
    assert inside.mean == pytest.approx(labelled.mean(), rel=1e-5)
    assert inside.deviation == pytest.approx(labelled.std(), rel=1e-5)


def test_channels_are_read_from_one_file_or_several_and_must_share_a_grid(tmp_path):
    four = np.stack([make.image(0), make.image(1)], axis=-1)
    make.msd(tmp_path / "msd", ("a",), modality={"0": "T1", "1": "T2"})
    make.put(tmp_path / "msd" / "imagesTr" / "a.nii.gz", four)
    (one,) = checked(tmp_path / "msd").cases
    (other,) = checked(make.nnunet(tmp_path / "nnunet", ("a",))).cases
    assert len(one.statistics.intensities) == 2
    assert one.statistics == other.statistics
    make.put(tmp_path / "nnunet" / "imagesTr" / "a_0001.nii.gz", make.image(1), np.eye(4))
    assert verdicts(checked(tmp_path / "nnunet")) == {"a": ("refused", "E-GRID")}
    make.msd(tmp_path / "msd", ("a",), modality={"0": "T1", "1": "T2"})
    assert verdicts(checked(tmp_path / "msd")) == {"a": ("refused", "E-CHANNELS")}


def test_every_file_is_read_once(tmp_path, monkeypatch):
    seen = []
    read_image, read_labels = channels.read, load.read_labels
    monkeypatch.setattr(channels, "read", lambda path, *a, **k: seen.append(path) or read_image(path, *a, **k))
    monkeypatch.setattr(load, "read_labels", lambda path, *rest: seen.append(path) or read_labels(path, *rest))
    found = checked(make.folders(tmp_path), pictures=True)
    assert sorted(seen) == sorted(path for one in found.cases for path in (*one.case.images, one.case.label))
    assert all(one.picture.startswith(b"\xff\xd8") for one in found.cases)


def test_names_of_dicom_segments_name_the_classes_and_must_agree(tmp_path):
    for seed, (case, name) in enumerate((("a", "my-liver"), ("b", "My liver"), ("c", "spleen"))):
        make.dicom(tmp_path / "images" / case, seed, PatientID=case)
        (tmp_path / "labels" / case).mkdir(parents=True)
        write_segmentation(
            tmp_path / "labels" / case / "1.2.3.dcm",
            make.labels(5, 6),
            read(tmp_path / "images" / case),
            [Segment(5, name), Segment(6, "my_liver")],
            algorithm_name="net",
            algorithm_version="1",
        )
    found = checked(tmp_path)
    assert verdicts(found) == {"a": ("ok", ""), "b": ("ok", ""), "c": ("refused", "E-LABELS")}
    assert found.classes == {5: "my-liver_5", 6: "my_liver_6"}
    assert "spleen; elsewhere it is my-liver" in found.cases[2].verdict.message


def test_names_that_stay_the_same_are_refused_before_anything_is_made_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_named", lambda *_: {1: "a b", 2: "A_b"})
    refused = refusal(checked, make.folders(tmp_path))
    assert refused.code == "E-DATASET"
    assert "a b and A_b" in refused.message


def test_a_segment_called_background_gets_a_name_of_its_own():
    assert module._named([1, 2], {1: "Background", 2: "liver"}) == {1: "Background_1", 2: "liver"}
