"""A bundle whose right answer is known, on labels that are right, shifted, absent, or refused."""

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from monai_attention.cli import main
from monai_attention.finetune.evaluate import evaluate
from monai_attention.finetune.evaluation import NO_SUCH_CLASS, compare
from monai_attention.report.disagreement import worst_place
from tests.finetune import make_dataset as make
from tests.io.make_volumes import oblique
from tests.make_bundle import threshold_bundle, write_bundle
from tests.refusals import refusal

AFFINE = oblique((2.0, 2.0, 2.0))
SHAPE = (24, 20, 16)
LENGTH = 12  # of the box, along the axis that labels are shifted on
LABELS = {"0": "background", "1": "Bright", "2": "dim"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return threshold_bundle(tmp_path_factory.mktemp("bundles") / "threshold")


def box(shift=0):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4 + shift : 4 + shift + LENGTH, 5:15, 4:12] = 1
    return mask


def dataset(root, labels, splits=None, **columns):
    """Cases a, b, c, ... whose image is bright in the box, with these label maps; classes as MSD tells them."""
    items = []
    for seed, (name, values) in enumerate(zip("abcdefgh", labels, strict=False)):
        noise = np.random.default_rng(seed).integers(0, 100, SHAPE, np.int16)
        make.put(root / "imagesTr" / f"{name}.nii.gz", 1000 * box().astype(np.int16) + noise, AFFINE)
        make.put(root / "labelsTr" / f"{name}.nii.gz", values, AFFINE)
        items.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    if splits is None:
        return make.describe(root, {"modality": {"0": "MRI"}, "labels": LABELS, "training": items})
    keys = [f"{name}.nii.gz" for name in "abcdefgh"[: len(labels)]]
    rows = [
        {
            "image": f"imagesTr/{key}",
            "label": f"labelsTr/{key}",
            "split": split,
            **{k: v[i] for k, v in columns.items()},
        }
        for i, (key, split) in enumerate(zip(keys, splits, strict=True))
    ]
    return make.table(root, rows)


def scored(found):
    return {one.case_id: one.scores["Bright"] for one in found.cases}


def test_right_labels_are_perfect_and_shifted_ones_as_the_formula_says(tmp_path, bundle):
    found = evaluate(bundle, dataset(tmp_path / "data", [box(), box(), box(3), box(1)]), tmp_path / "out")
    by_case = scored(found)
    assert [by_case[name]["dice"] for name in "abcd"] == pytest.approx([1, 1, 1 - 3 / LENGTH, 1 - 1 / LENGTH])
    assert [by_case[name]["hd95_mm"] for name in "abcd"] == pytest.approx([0, 0, 6, 2])
    assert [by_case[name]["surface_dice"] for name in "abd"] == pytest.approx([1, 1, 1])
    assert by_case["c"]["surface_dice"] < 0.9
    assert [one.case_id for one in found.worst] == ["c", "d", "a", "b"]
    mean, interval = found.estimates("dice")[0]["Bright"].mean, found.estimates("dice")[0]["Bright"].interval
    assert mean == pytest.approx(1 - 1 / LENGTH)
    assert interval[0] < mean < interval[1]


def test_row_35_classes_that_are_not_there_are_na_and_said_so(tmp_path, bundle):
    both = box()
    both[0:3, 0:3, 0:3] = 2
    empty = np.zeros_like(both)
    found = evaluate(bundle, dataset(tmp_path / "data", [box(), both, empty]), tmp_path / "out")
    single, overall = found.estimates("dice")
    assert (single["dim"].mean, single["dim"].cases) == (None, 0)
    assert single["Bright"].mean == overall.mean == pytest.approx(2 / 3)  # the third: found, but not in the truth
    assert found.estimates("hd95_mm")[0]["Bright"].cases == 2
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["classes"]["dim"]["bundle"] == NO_SUCH_CLASS
    assert summary["classes"]["Bright"]["cases"] == {"in both": 2, "in prediction only": 1}
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert len(rows) == 3 * 2
    assert {(row["dice"], row["remark"]) for row in rows if row["class"] == "dim"} == {
        ("n/a", "the bundle has no such class")
    }
    last = next(row for row in rows if row["case_id"] == "c" and row["class"] == "Bright")
    assert (last["dice"], last["hd95_mm"], last["remark"]) == ("0", "n/a", "in prediction only")
    assert "F-EMPTY" in (tmp_path / "out/report.html").read_text()


def test_refused_cases_are_listed_and_never_count(tmp_path, bundle, capsys):
    data = dataset(tmp_path / "data", [box(), box(), box()])
    make.put(data / "labelsTr" / "b.nii.gz", box()[:-1], AFFINE)
    assert main(["evaluate", str(bundle), str(data), "-o", str(tmp_path / "out"), "-q"]) == 1
    said = capsys.readouterr().out
    assert "refused  b: E-GRID" in said
    assert "1.000" in said
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert {row["remark"] for row in rows if row["case_id"] == "b"} == {"refused: E-GRID"}
    page = (tmp_path / "out/report.html").read_text()
    assert "E-GRID" in page
    assert page.index("Preview of a") < page.index("E-GRID")
    assert json.loads((tmp_path / "out/summary.json").read_text())["scored"] == 2


def test_the_bundles_own_gate_counts(tmp_path):
    picky = threshold_bundle(tmp_path / "bundle", gate={"spacing_mm": [0.2, 1.0], "min_extent_mm": 40.0})
    found = evaluate(picky, dataset(tmp_path / "data", [box()]), tmp_path / "out")
    assert [one["code"] for one in found.refused] == ["E-TOO-SMALL"]
    fine = threshold_bundle(tmp_path / "other", gate={"spacing_mm": [0.2, 1.0]})
    evaluate(fine, tmp_path / "data", tmp_path / "fine")
    assert "F-SPACING" in (tmp_path / "fine/report.html").read_text()


def test_several_channels_go_in_together(tmp_path):
    """A bundle that looks at the second channel alone, which is the one that shows the box."""
    slope = torch.tensor([[0.0, -30.0], [0.0, 30.0]]).view(2, 2, 1, 1, 1)
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 2, "kernel_size": 1}
    weights = {"weight": slope, "bias": torch.tensor([15.0, -15.0])}
    second = write_bundle(tmp_path / "bundle", network, weights, channels=(2, 2), gate={"channels": 2})
    data = dataset(tmp_path / "data", [box()])
    make.put(data / "imagesTr" / "noise.nii.gz", np.random.default_rng(9).integers(0, 900, SHAPE, np.int16), AFFINE)
    row = {"image_T1": "imagesTr/noise.nii.gz", "image_T2": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    table = make.table(tmp_path / "data", [row])
    found = evaluate(second, table, tmp_path / "out", names={"bright": "class_1"})
    assert found.estimates("dice")[1].mean == 1


def test_finished_cases_are_kept_and_changed_ones_done_again(tmp_path, bundle):
    data, out = dataset(tmp_path / "data", [box(), box()]), tmp_path / "out"
    before = evaluate(bundle, data, out)
    times = {name: (out / name / "run.json").stat().st_mtime_ns for name in "ab"}
    make.put(data / "labelsTr" / "b.nii.gz", box(1), AFFINE)
    os.utime(data / "labelsTr" / "b.nii.gz", ns=(1, 1))
    after = evaluate(bundle, data, out)
    assert (out / "a/run.json").stat().st_mtime_ns == times["a"]
    assert (out / "b/run.json").stat().st_mtime_ns > times["b"]
    assert scored(after)["a"] == scored(before)["a"]
    assert scored(after)["b"]["dice"] < 1


def test_only_one_split_and_whoever_leaks_into_it_is_refused(tmp_path, bundle):
    splits, people = ("train", "test", "test", "test"), ("Anna", "Bert", "Anna", "Carl")
    data = dataset(tmp_path / "data", [box()] * 4, splits, group=people)
    found = evaluate(bundle, data, tmp_path / "out", split="test", names={"bright": "class_1"})
    assert [one.case_id for one in found.cases] == ["b", "d"]
    assert [(one["case_id"], one["code"]) for one in found.refused] == [("c", "E-LEAK")]
    assert not (tmp_path / "out/a").exists()
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert not any(name.encode() in path.read_bytes() for name in people), path
    assert refusal(evaluate, bundle, data, tmp_path / "o", split="validation").code == "E-EMPTY"


def test_what_cannot_be_evaluated_is_refused_at_once(tmp_path, bundle):
    data = dataset(tmp_path / "data", [box()], ("test",))
    assert refusal(evaluate, bundle, data, tmp_path / "out").code == "E-CLASSES"  # classes are called class_1
    two = make.nnunet(tmp_path / "two")
    assert refusal(evaluate, bundle, two, tmp_path / "out").code == "E-CHANNELS"


def test_two_evaluations_are_compared_case_by_case(tmp_path, bundle):
    """The same bundle against better labels; the class that it lacks has no difference."""
    worse = dataset(tmp_path / "worse", [box(3), box(1), box(2), box()])
    better = dataset(tmp_path / "better", [box(2), box(), box(1), box(1)])
    before, after = (evaluate(bundle, data, data / "out") for data in (worse, better))
    by_class, overall = compare(before, after)
    change = by_class["Bright"]
    assert change.estimate.mean == pytest.approx((1 + 1 + 1 - 1) / 4 / LENGTH)
    assert (change.higher, change.lower, change.estimate.cases) == (3, 1, 4)
    assert change.estimate.interval[0] < change.estimate.mean < change.estimate.interval[1]
    assert by_class["dim"].estimate.mean is None
    assert overall.estimate.mean == pytest.approx(change.estimate.mean)
    fewer = replace(after, cases=after.cases[:1])
    assert compare(before, fewer)[0]["Bright"].estimate.cases == 1
    with pytest.raises(ValueError, match="same cases"):
        compare(before, replace(after, cases=()))
    with pytest.raises(ValueError, match="same classes"):
        compare(before, replace(after, classes={1: "other"}))


def test_the_picture_goes_through_the_largest_disagreement():
    differ = np.zeros((60, 60, 60), bool)
    differ[:, :, 3] = True  # a seam, of more voxels in all
    differ[40:46, 20:26, 30:33] = True
    assert worst_place(differ, np.ones(3)) != [43, 23, 31]
    differ[:, :, 3] = False
    assert worst_place(differ, np.ones(3)) == [42, 22, 31]
    assert worst_place(np.zeros((4, 6, 8), bool), np.ones(3)) == [2, 3, 4]
