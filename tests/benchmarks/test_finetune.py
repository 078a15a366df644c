"""The benchmark of fine-tuning in small: heads made of formulas, a tiny network, one epoch."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from benchmarks import finetune
from benchmarks.cohorts import TASKS, cohort, make_cohorts
from benchmarks.finetune import Contender, table
from monai_attention.finetune.dataset import find_labelled
from monai_attention.io.write import write_nifti
from monai_attention.synthesis.phantom import head_labels


def world(mask, affine):
    """Centre of a mask in mm."""
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


@pytest.mark.parametrize("task", [name for name, one in TASKS.items() if not one.tumour])
def test_labels_lie_on_what_they_name(task, tmp_path):
    labels, affine = head_labels(1.0)  # two voxels an edge of the scan's
    for person in range(4):
        write_nifti(tmp_path / f"{person}.nii.gz", labels, affine)
    make_cohorts(TASKS[task], sorted(tmp_path.glob("*.nii.gz")), [1], tmp_path / "out")
    (case,) = find_labelled([cohort(tmp_path / "out", 1)]).cases
    image, truth = (nibabel.load(path) for path in (case.images[0], case.label))
    values = np.asarray(truth.dataobj)
    assert np.allclose(image.affine, truth.affine)
    for number, (name, members) in enumerate(TASKS[task].classes.items(), start=1):
        fine = np.isin(labels, members)
        if fine.any():
            assert np.linalg.norm(world(values == number, truth.affine) - world(fine, affine)) < 0.5, name
    air = np.asarray(image.dataobj) < 100
    assert air[0].mean() > 0.9  # a margin is left around the head
    assert not air[values > 1].any()  # the first class may be dark fluid


def test_tumours_look_as_the_sequences_show_them(tmp_path):
    labels, affine = head_labels(2.0)
    for person in range(4):
        write_nifti(tmp_path / f"{person}.nii.gz", labels, affine)
    task = replace(TASKS["tumours"], test_scans=2)
    make_cohorts(task, sorted(tmp_path.glob("*.nii.gz")), [1], tmp_path / "out")
    cases = find_labelled([cohort(tmp_path / "out", 0)]).cases
    pairs = [[np.asarray(nibabel.load(path).dataobj) for path in (case.images[0], case.label)] for case in cases]
    image, truth = (
        np.concatenate([one[which].reshape(-1, *one[which].shape[3:]) for one in pairs]) for which in (0, 1)
    )
    assert len({(one[1] > 0).sum() for one in pairs}) == len(pairs) == 6  # all differ
    t1, t1c, _, flair = (np.array([np.median(image[truth == part, i]) for part in (1, 2, 3)]) for i in range(4))
    assert t1c[2] > 1.5 * t1[2]  # enhances
    assert t1c[1] == pytest.approx(t1[1], rel=0.15)
    assert flair[1] == max(flair)
    assert np.median(image[truth == 0, 3]) < flair[1] / 2


def test_cohorts_are_nested_and_split_by_people(people, tmp_path):
    make_cohorts(TASKS["contrast"], sorted(people.glob("*")), [3, 5], tmp_path)
    groups = {size: [case.group for case in find_labelled([cohort(tmp_path, size)]).cases] for size in (0, 3, 5)}
    assert groups[5] == [f"patient0{person}" for person in range(1, 6)]
    assert groups[3] == groups[5][:3]
    assert groups[0] == [f"patient0{person}" for person in (6, 6, 7, 7, 8, 8)]
    with pytest.raises(ValueError, match="cohorts of 1 to 5 people"):
        make_cohorts(TASKS["contrast"], sorted(people.glob("*")), [6], tmp_path)


def test_a_run_is_told_and_not_repeated(people, source, tmp_path, capsys):
    given = ["--labels", people, "--work", tmp_path, "--task", "contrast", "--cases", "5", "--epochs", "1"]
    given += ["--methods", "source", "scratch", "--source", source, "--threads", "1"]
    finetune.main([str(one) for one in given])
    results = sorted(tmp_path.rglob("result.json"))
    made = [path.stat().st_mtime_ns for path in results]
    first = capsys.readouterr().out
    finetune.main([str(one) for one in given])
    assert [path.stat().st_mtime_ns for path in results] == made
    assert capsys.readouterr().out == first
    as_it_was, scratch = (json.loads(path.read_text()) for path in sorted(results, reverse=True))
    assert as_it_was.keys() < scratch.keys()
    assert set(scratch["people"]) == {"patient06", "patient07", "patient08"}
    assert scratch["epochs"] == 1
    assert scratch["minutes"] > 0


def test_the_table_has_a_line_for_each_contender():
    whole = {"dice": 0.7, "interval": [0.6, 0.8], "people": {"a": 0.6, "b": 0.8}}
    trained = {"parameters": 40_000, "minutes": 4.04, "peak_gb": 1.52}
    results = {
        Contender("bundle", "contrast", "source", 0, 0): whole,
        Contender("bundle", "contrast", "lora", 5, 4): whole | trained,
    }
    results[Contender("bundle", "contrast", "lora", 5, 4)]["interval"] = None
    assert table(results).splitlines()[2:] == [
        "|  | source as it was | 0.700 (0.600 to 0.800) |  |  |  |",
        "| 5 | lora | 0.700 (0.600 to 0.800, people) | 40,000 | 4.0 min | 1.5 GB |",
    ]
