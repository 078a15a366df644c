"""One command on a dataset of every layout, and the bundle that comes of it in `segment` and in plain MONAI."""

import json

import nibabel
import numpy as np
import pytest

from monai_attention import bundles, segment
from monai_attention.cli import main
from monai_attention.finetune.dataset import find_labelled
from monai_attention.io.dicom_seg import Segment, write_segmentation
from monai_attention.io.read import read
from tests.finetune import make_dataset as make
from tests.make_flexunetr_bundle import INFERENCE, make_bundle


def csv(root):
    return make.in_splits(root, ("train", "train", "validation"), id=("a", "b", "c"))


def dicom(root):
    """Series of two patients, with DICOM Segmentations."""
    for seed, case in enumerate("ab"):
        make.dicom(root / "images" / case, seed, PatientID=case)
        (root / "labels" / case).mkdir(parents=True)
        segments = [Segment(1, "liver"), Segment(2, "tumour")]
        told = {"algorithm_name": "hand", "algorithm_version": "1"}
        write_segmentation(
            root / "labels" / case / "1.dcm", make.labels(), read(root / "images" / case), segments, **told
        )
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    inference = INFERENCE | {"inferer": INFERENCE["inferer"] | {"sw_batch_size": 4}}
    return make_bundle(tmp_path_factory.mktemp("source") / "source", inference)


@pytest.mark.parametrize("make_one", [make.folders, make.msd, make.nnunet, make.bids, csv, dicom])
def test_one_command_makes_a_bundle_of_every_layout(make_one, source, tmp_path, capsys):
    data = make_one(tmp_path / "data")
    folds = [] if make_one is csv else ["--folds", "2", "--fold", "0"]  # the table says itself who is held out
    how = ["--from", str(source), "--time", "1s", "--device", "cpu", "-q", *folds]
    assert main(["finetune", str(data), "-o", str(tmp_path / "mine"), *how]) == 0
    assert "Dice of held-out cases" in capsys.readouterr().out
    judged = json.loads((tmp_path / "mine/evaluation/comparison.json").read_text())["contenders"]["this bundle"]
    assert judged["scored"] > 0
    assert not judged["refused"]
    found = find_labelled([data])
    info = bundles.info(tmp_path / "mine")
    assert info.requirements.channels == len(found.channels)
    assert len(info.classes) == 3
    channels = ",".join(map(str, found.cases[0].images))
    (result,) = segment(channels, tmp_path / "out", bundle=tmp_path / "mine", device="cpu")
    assert result.verdict != "refused", result.message


def test_plain_monai_trains_it_and_finds_with_it_what_we_find(tmp_path):
    from monai.bundle import run

    inference = json.loads((bundles.packaged_root() / "brain_mri_tissue_flexunetr/configs/inference.json").read_text())
    inference |= {"network_def": INFERENCE["network_def"], "roi_size": INFERENCE["roi_size"]}
    inference["inferer"]["roi_size"] = "@roi_size"
    source = make_bundle(tmp_path / "source", inference)
    data, mine = make.folders(tmp_path / "data"), tmp_path / "mine"
    how = ["--from", str(source), "--folds", "3", "--fold", "1", "--epochs", "1", "--device", "cpu", "-q"]
    assert main(["finetune", str(data), "-o", str(mine), *how, "--plan-only"]) == 0
    recipe = mine / "configs/train.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"epoch_length": 3}))
    where = {"bundle_root": str(mine), "meta_file": str(mine / "configs/metadata.json")}
    run(config_file=str(recipe), **where)
    run(run_id="release", config_file=str(recipe), **where)
    images = data / "images"
    run(
        config_file=str(mine / "configs/inference.json"),
        **where,
        dataset_dir=str(images),
        output_dir=str(tmp_path / "out"),
    )
    image = find_labelled([data]).cases[0].images[0]
    (result,) = segment(image, tmp_path / "ours", bundle=mine, device="cpu")
    (theirs,) = (tmp_path / "out").rglob(f"{image.name.partition('.')[0]}_*.nii.gz")
    ours, theirs = (np.asarray(nibabel.load(path).dataobj) for path in (result.outputs["labels"], theirs))
    assert len(np.unique(ours)) > 1
    assert (ours == theirs).mean() > 0.99
