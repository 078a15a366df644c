"""Two processes that torchrun starts train what one trains."""

import csv
import json
import os
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch

from monai_attention.finetune.loss import PartialDiceCE
from monai_attention.finetune.run import finetune
from monai_attention.finetune.training import train
from tests.finetune.make_cohort import SOURCE, make_cohort
from tests.finetune.make_networks import made
from tests.finetune.train_together import IGNORED, samples
from tests.make_flexunetr_bundle import make_bundle

SUPERVISED = {
    "_target_": "monai_attention.networks.nnformer.NNFormer",
    **{"in_channels": 1, "out_channels": 3, "roi_size": "@roi_size", "patch_size": [2, 2, 2], "feature_size": 8},
    **{"depths": [2, 2, 1], "num_heads": [2, 2, 4], "window": [4, 2, 2], "drop_path_rate": 0.0},
    **{"deep_supervision": True, "use_checkpoint": True},
}


def edit(folder, **values):
    path = folder / "configs/train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def together(*arguments):
    """Run a module in two processes of torchrun's."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", *map(str, arguments)]
    # As in a job of SLURM's with one task, which ignite would take for the number of processes.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "1", "SLURM_LOCALID": "0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def planned(data, tmp_path_factory):
    """Bundles that are ready to be trained, exactly, and for two epochs of three steps, by name."""
    source = make_bundle(tmp_path_factory.mktemp("source") / "source", SOURCE)
    full = tmp_path_factory.mktemp("full") / "boxes"
    finetune(data, full, source=source, epochs=2, folds=2, fold=0, device="cpu", plan_only=True)
    edit(full, amp=False, epoch_length=3, val_interval=1)
    planned = {"full": full}
    for name in ("lora", "head", "deep"):
        planned[name] = shutil.copytree(full, tmp_path_factory.mktemp(name) / "boxes")
    recipe = json.loads((full / "configs/train.json").read_text())
    lora = {"adapted": "$add_lora(@loaded, rank=2, train=@trained) and @loaded"}
    edit(planned["lora"], **lora, network_def=recipe["network_def"] | {"use_checkpoint": True})
    edit(planned["head"], adapted="$train_only(@loaded, @trained) or @loaded")
    edit(planned["deep"], network_def=SUPERVISED, trained={})
    torch.save(made("NNFormer").state_dict(), planned["deep"] / "models/initial.pt")
    return planned


@pytest.fixture(scope="module")
def alone(planned, tmp_path_factory):
    """The same, trained by one process."""
    trained = {}
    for name, folder in planned.items():
        trained[name] = shutil.copytree(folder, tmp_path_factory.mktemp("alone") / "boxes")
        train(trained[name], 0, trained[name], device="cpu")
    return trained


@pytest.fixture(scope="module")
def both(planned, data, tmp_path_factory):
    """What the command made of it in two processes, and what it said."""
    folder = shutil.copytree(planned["full"], tmp_path_factory.mktemp("both") / "boxes")
    return folder, together("monai_attention", "finetune", data, "-o", folder, "--device", "cpu", "-q", "--resume")


def rows(folder):
    with (folder / "runs/fold_0/epochs.csv").open() as file:
        return [{name: float(row[name]) for name in ("loss", "val_mean_dice")} for row in csv.DictReader(file)]


def weights(folder):
    return torch.load(folder / "runs/fold_0/checkpoint_epoch=2.pt", weights_only=True)


def assert_same(one, other):
    """The same table, and the same weights to a fiftieth of the way that they went: AdamW also steps along rounding."""
    assert len(rows(one)) == 2
    assert rows(one) == [pytest.approx(row, abs=1e-4) for row in rows(other)]
    began = torch.load(one / "models/initial.pt", weights_only=True)
    for what in ("model", "ema"):
        first, second = weights(one)[what], weights(other)[what]
        assert first.keys() == second.keys()
        moved = max(float((first[name] - began[name]).abs().max()) for name in first.keys() & began.keys())
        apart = max(float((first[name] - second[name]).abs().max()) for name in first)
        assert apart < 2e-2 * moved


def without_last_epoch(folder, target):
    """A copy of a training as it was after its first epoch."""
    run = shutil.copytree(folder, target) / "runs/fold_0"
    for name in ("checkpoint_epoch=2.pt", "done", "last.pt"):
        (run / name).unlink()
    return target


def test_two_processes_train_what_one_trains(both, alone):
    folder, ended = both
    assert ended.returncode == 0, ended.stderr
    assert_same(alone["full"], folder)
    for once in ("5 cases of 5 people", "2, each with 1 of a batch's 2 crops", "Dice of held-out cases"):
        assert ended.stdout.count(once) == 1


def test_one_process_goes_on_with_what_two_began(both, alone, tmp_path):
    folder = without_last_epoch(both[0], tmp_path / "boxes")
    train(folder, 0, folder, device="cpu")
    assert_same(alone["full"], folder)


def test_two_processes_of_plain_monai_go_on_with_what_one_began(alone, tmp_path):
    folder = without_last_epoch(alone["full"], tmp_path / "boxes")
    config = ["--config_file", folder / "configs/train.json", "--bundle_root", folder, "--fold", "0"]
    ended = together("monai.bundle", "run", *config, "--device", "$torch.device('cpu')")
    assert ended.returncode == 0, ended.stderr
    assert_same(alone["full"], folder)


def test_a_refusal_ends_both_processes_and_is_told_once(both, data):
    ended = together("monai_attention", "finetune", data, "-o", both[0], "--device", "cpu", "-q")
    assert ended.stderr.count("E-OUTPUT-EXISTS") == 1
    assert "exitcode  : 2 " in ended.stderr
    assert ended.stdout == ""


def test_adapters_heads_bad_losses_and_what_does_not_count(planned, alone, tmp_path):
    trained = {name: shutil.copytree(planned[name], tmp_path / name) for name in ("lora", "deep", "head")}
    spoilt = shutil.copytree(planned["full"], tmp_path / "bad")
    bad = next(case for case in json.loads((spoilt / "data/cases.json").read_text()) if case["fold"] != 0)
    image = nibabel.load(spoilt / "data" / bad["image"])
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine), image.get_filename())

    ended = together("tests.finetune.train_together", tmp_path, *trained.values(), spoilt)
    assert ended.returncode == 0, ended.stderr
    for name, folder in trained.items():
        assert_same(alone[name], folder)
    for rank in range(2):
        ((name, (code, message, told)),) = json.loads((tmp_path / f"refused{rank}.json").read_text()).items()
        assert (name, code, told) == ("bad", "E-LOSS", rank > 0)
        assert bad["id"] in message

    logits, labels = samples()
    logits.requires_grad_()
    loss = PartialDiceCE(IGNORED)(logits, labels)
    loss.backward()
    found = [torch.load(tmp_path / f"loss{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(sum(one["loss"] for one in found) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([one["gradient"] for one in found]) / 2, logits.grad)
