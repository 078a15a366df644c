"""Fine-tuning that was stopped, edited, or given other data than it was begun with."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time

import nibabel
import numpy as np
import torch

from monai_attention.cohort import ledger
from monai_attention.finetune.begin import STORY
from monai_attention.finetune.run import finetune
from tests.finetune.make_cohort import SIZE, volume
from tests.finetune.make_dataset import put
from tests.refusals import refusal


def respaced(bundle, mm):
    """Edit its preprocessing."""
    path = bundle / "configs/inference.json"
    inference = json.loads(path.read_text())
    (spacing,) = (one for one in inference["preprocessing"]["transforms"] if one["_target_"] == "Spacingd")
    spacing["pixdim"] = [mm] * 3
    path.write_text(json.dumps(inference))


def test_row_50_a_training_that_is_killed_goes_on_to_the_same_curve(tuned, data, source, tmp_path):
    code = "import sys; from monai_attention.finetune.run import finetune as run; a, b, c = sys.argv[1:]; "
    code += "run(a, b, source=c, epochs=3, device='cpu')"
    folder = tmp_path / "boxes_mri_tuned"
    running = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(data), str(folder), str(source)])
    table = folder / "runs/fold_0/epochs.csv"
    while not table.is_file() and running.poll() is None:
        time.sleep(0.2)
    time.sleep(1.0)  # into the second epoch
    running.kill()
    running.wait()
    assert not (folder / "models/model.pt").exists()
    found = finetune(data, folder, resume=True, device="cpu")
    one, other = (list(csv.DictReader((made / "runs/fold_0/epochs.csv").open())) for made in (tuned.bundle, folder))
    assert [row["loss"] for row in one] == [row["loss"] for row in other]
    assert found.score == tuned.score
    one, other = (torch.load(made / "models/model.pt", weights_only=True) for made in (tuned.bundle, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_row_50_a_plan_that_was_edited_after_the_first_epoch_is_refused(tuned, data, tmp_path):
    folder = shutil.copytree(tuned.bundle, tmp_path / "copy")
    config = folder / "configs/train.json"
    edited = json.loads(config.read_text()) | {"learning_rate": 0.5, "max_epochs": 2}
    config.write_text(json.dumps(edited))
    refused = refusal(finetune, data, folder, resume=True, device="cpu")
    assert refused.code == "E-PLAN-CHANGED"
    assert "learning_rate, max_epochs" in refused.message
    assert (folder / "runs/fold_0/epochs.csv").read_bytes() == (tuned.bundle / "runs/fold_0/epochs.csv").read_bytes()
    config.write_text((tuned.bundle / "configs/train.json").read_text())
    assert finetune(data, folder, resume=True, device="cpu").score == tuned.score


def test_nothing_is_overwritten_and_nothing_resumed_by_mistake(tuned, data, source, tmp_path):
    assert refusal(finetune, data, tuned.bundle, source=source).code == "E-OUTPUT-EXISTS"
    assert refusal(finetune, data, tmp_path / "no", source=source, resume=True).code == "E-NOTHING-TO-RESUME"


def test_a_beginning_that_was_stopped_is_begun_again(data, source, tmp_path):
    folder = tmp_path / "new"
    planned = finetune(data, folder, source=source, epochs=1, device="cpu", plan_only=True)
    assert planned.score is None
    assert not (folder / "runs").exists()
    made = (folder / "data/case1.image.nii").stat().st_mtime_ns
    (folder / STORY).write_text('{"begun": true}')  # as it is until all is prepared
    assert (
        finetune(data, folder, source=source, epochs=7, device="cpu", plan_only=True, resume=True).story["plan"][
            "max_epochs"
        ]
        == 7
    )
    assert (folder / "data/case1.image.nii").stat().st_mtime_ns == made


def test_edited_preprocessing_prepares_again_before_the_first_epoch_and_is_refused_after_it(data, source, tmp_path):
    folder = tmp_path / "new"
    finetune(data, folder, source=source, seconds=1, device="cpu", plan_only=True)
    respaced(folder, 4.0)
    assert nibabel.load(folder / "data/case0.image.nii").shape == SIZE
    assert finetune(data, folder, resume=True, device="cpu").score is not None
    assert nibabel.load(folder / "data/case0.image.nii").shape[0] == SIZE[0] // 2
    respaced(folder, 2.0)
    assert refusal(finetune, data, folder, resume=True, device="cpu").code == "E-PLAN-CHANGED"


def test_preparing_again_keeps_who_is_held_out_and_refuses_other_data(data, source, tmp_path):
    folder, copy = tmp_path / "new", tmp_path / "data"
    shutil.copytree(data, copy)
    begun = finetune(copy, folder, source=source, seconds=1, folds=2, device="cpu", plan_only=True).story
    path = folder / "configs/inference.json"
    inference = json.loads(path.read_text())
    inference["preprocessing"]["transforms"][-2] |= {"minv": 0.0, "maxv": 2.0}
    path.write_text(json.dumps(inference))
    image, labels = volume(9)
    put(copy / "images/another.nii.gz", image, np.diag([2.0, 2.0, 2.0, 1.0]))
    put(copy / "labels/another.nii.gz", labels, np.diag([2.0, 2.0, 2.0, 1.0]))
    again = finetune(copy, folder, resume=True, plan_only=True).story
    assert again["folds"] == begun["folds"]
    cases = json.loads((folder / "data/cases.json").read_text())
    assert {one["id"]: one["fold"] for one in cases} == begun["folds"]
    inference["preprocessing"]["transforms"][-2] |= {"maxv": 3.0}
    path.write_text(json.dumps(inference))
    (copy / "images/case3.nii.gz").unlink()
    (copy / "labels/case3.nii.gz").unlink()
    error = refusal(finetune, copy, folder, resume=True, plan_only=True)
    assert error.code == "E-DATA-CHANGED"
    assert "case3" in error.message


def test_what_is_judged_is_what_was_held_out(data, source, tmp_path):
    folder, copy = tmp_path / "new", tmp_path / "data"
    shutil.copytree(data, copy)
    finetune(copy, folder, source=source, seconds=1, device="cpu", plan_only=True)
    image, _ = volume(9)
    kept = (copy / "images/case3.nii.gz").read_bytes()
    put(copy / "images/case3.nii.gz", image, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert refusal(finetune, copy, folder, resume=True, device="cpu").code == "E-DATA-CHANGED"
    (copy / "images/case3.nii.gz").write_bytes(kept)
    moved = np.roll(nibabel.load(copy / "labels/case3.nii.gz").get_fdata().astype(np.uint8), 1, axis=0)
    put(copy / "labels/case3.nii.gz", moved, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert refusal(finetune, copy, folder, resume=True, device="cpu").code == "E-DATA-CHANGED"


def test_row_50_a_checkpoint_that_was_cut_off_is_passed_over(data, source, tmp_path):
    folder = tmp_path / "new"
    finetune(data, folder, source=source, epochs=2, device="cpu")
    losses = (folder / "runs/fold_0/epochs.csv").read_text().splitlines()
    newest = folder / "runs/fold_0/checkpoint_epoch=2.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    (folder / "runs/fold_0/done").unlink()
    finetune(data, folder, resume=True, device="cpu")
    again = (folder / "runs/fold_0/epochs.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in again] == [row.split(",")[1] for row in losses]


def test_a_training_that_another_process_is_at_is_left_to_it(data, source, tmp_path):
    folder = tmp_path / "new"
    finetune(data, folder, source=source, epochs=1, device="cpu", plan_only=True)
    with ledger.claim(folder / "runs/fold_0"):
        assert refusal(finetune, data, folder, resume=True, device="cpu").code == "E-BUSY"


def test_cases_that_another_process_prepares_anew_are_left_to_it(data, source, tmp_path):
    folder = tmp_path / "new"
    finetune(data, folder, source=source, epochs=1, device="cpu", plan_only=True)
    respaced(folder, 4.0)
    with ledger.claim(folder / "data"):
        assert refusal(finetune, data, folder, resume=True, device="cpu").code == "E-BUSY"


def test_killed_after_its_last_epoch_it_ends_the_same(tuned, data, tmp_path):
    folder = shutil.copytree(tuned.bundle, tmp_path / tuned.bundle.name)
    for name in ("done", "last.pt", "merged.pt"):
        (folder / "runs/fold_0" / name).unlink()
    (folder / "models/model.pt").unlink()
    finetune(data, folder, resume=True, device="cpu")
    one, other = (torch.load(made / "models/model.pt", weights_only=True) for made in (tuned.bundle, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_was_refused_before_its_plan_can_be_begun_better(data, source, tmp_path):
    settled = {"source": source, "epochs": 1, "device": "cpu", "plan_only": True}
    assert refusal(finetune, data, tmp_path / "new", **settled, folds=6).code == "E-TOO-FEW"
    assert finetune(data, tmp_path / "new", **settled, folds=5).story["trainings"] == [0, 1, 2, 3, 4, None]
