"""From labelled cases to a bundle, on tiny volumes: what is bright is `a`, what is brighter is `b`."""

import csv
import json
import re
import shutil

import nibabel
import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from monai.networks.utils import one_hot

from monai_attention import DEFAULT_BUNDLE, Refusal, bundles, segment
from monai_attention.checkpoints import release_weights
from monai_attention.cli import main
from monai_attention.finetune import new_bundle
from monai_attention.finetune.begin import STORY
from monai_attention.finetune.dataset import find_labelled
from monai_attention.finetune.evaluate import expect_channels
from monai_attention.finetune.lora import load_lora, merge_lora
from monai_attention.finetune.plan import may_have_side, measured
from monai_attention.finetune.run import NEW, SCRATCH, finetune
from monai_attention.networks.nnformer import NNFormer
from tests.finetune.make_cohort import SOURCE, volume
from tests.finetune.make_dataset import in_splits, nnunet, put
from tests.make_bundle import threshold_bundle
from tests.make_flexunetr_bundle import make_bundle
from tests.refusals import refusal


def test_the_result_is_a_bundle_that_segments(tuned, data, tmp_path):
    info = bundles.info(tuned.bundle)
    assert info.classes == {0: "background", 1: "class_1", 2: "class_2"}
    assert info.trained
    (result,) = segment(data / "images/case0.nii.gz", tmp_path / "out", bundle=tuned.bundle, device="cpu")
    assert result.verdict != "refused"


def test_the_result_says_how_large_classes_were_and_how_far_they_reached(tuned):
    """Boxes of 11 voxels of 2 mm, of which the middle reaches 10 mm either way, and inside them boxes of 6."""
    metadata = json.loads((tuned.bundle / "configs/metadata.json").read_text())
    assert metadata["within_mm"] == {"class_1": 15.0, "class_2": 10.0}
    assert metadata["plausible_ml"]["class_2"] == pytest.approx([0.5 * 6**3 * 0.008, 2 * 6**3 * 0.008])


def test_it_learns(tuned):
    with (tuned.bundle / "runs/fold_0/epochs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 0.1
    assert float(rows[-1]["val_mean_dice"]) > 0.2  # 150 steps from nothing
    assert tuned.score > 0.2


def test_weights_are_those_of_the_end_whatever_held_out_cases_say(tuned):
    runs = tuned.bundle / "runs/fold_0"
    ended = torch.load(runs / "checkpoint_epoch=3.pt", weights_only=True)["ema"]
    last, given = (torch.load(path, weights_only=True) for path in (runs / "last.pt", tuned.bundle / "models/model.pt"))
    assert all(torch.equal(last[name], ended[name]) for name in ended)
    assert all(torch.equal(given[name], ended[name].to(given[name].dtype)) for name in ended)


def test_validation_is_the_dice_of_the_prepared_held_out_cases(tuned):
    bundle, heldout = tuned.bundle, [case for case, fold in tuned.story["folds"].items() if fold == 0]
    loaded = bundles.load(bundle)
    loaded.network.load_state_dict(torch.load(bundle / "runs/fold_0/last.pt", weights_only=True))
    scores = []
    for case in heldout:
        image, label = (nibabel.load(bundle / f"data/{case}.{kind}.nii").get_fdata() for kind in ("image", "label"))
        with torch.no_grad():
            logits = loaded.inferer(torch.from_numpy(image)[None, None].float(), loaded.network)
        found, truth = (one_hot(x[None, None], 3) for x in (logits[0].argmax(dim=0), torch.from_numpy(label)))
        scores.append(compute_dice(found, truth, include_background=False))
    with (bundle / "runs/fold_0/epochs.csv").open() as file:
        told = list(csv.DictReader(file))[-1]["val_mean_dice"]
    assert float(told) == pytest.approx(float(torch.cat(scores).nanmean()), abs=1e-4)


def test_the_bundle_says_what_was_done(tuned):
    card = (tuned.bundle / "docs/README.md").read_text()
    assert f"{tuned.score:.3f}" in card
    assert "head" in card
    assert "| spacing, mm | 2 | 2 |" in card
    assert bundles.info(tuned.bundle).weights_sha256 in card
    assert "case0" not in card
    story = json.loads((tuned.bundle / STORY).read_text())
    assert story["cases"] == 5
    assert sorted(story["folds"].values()) == [0, 1, 2, 3, 4]
    assert any("initialised afresh" in line for line in story["weights"])  # class_1 is no class of the source's
    assert (tuned.bundle / "preflight.html").is_file()


def test_from_scratch_there_is_nothing_to_choose_or_compare(data, tmp_path):
    assert refusal(finetune, data, tmp_path / "new", source=None, compare="scratch").code == "E-METHOD"
    assert refusal(finetune, data, tmp_path / "new", source=None, method="lora").code == "E-METHOD"


def test_cases_for_testing_are_not_looked_at(source, tmp_path):
    table = in_splits(tmp_path / "data", ("train", "train", "train", "test"), id=("a", "b", "c", "d"))
    settled = {"source": source, "seconds": 1, "device": "cpu"}
    story = finetune(table, tmp_path / "new", **settled, folds=3, fold=0, plan_only=True).story
    assert (story["cases"], story["people"], sorted(story["folds"])) == (3, 3, ["a", "b", "c"])
    assert not list((tmp_path / "new/data").glob("d.*"))


def test_a_split_without_a_case_to_validate_by_is_not_replaced_by_another(source, tmp_path):
    split = ("train", "train", "train", "train", "train", "validation")
    table = in_splits(tmp_path / "data", split, group=("a", "b", "c", "d", "e", "a"))  # its person is trained on
    refused = refusal(finetune, table, tmp_path / "new", source=source, epochs=1, device="cpu", plan_only=True)
    assert refused.code == "E-TOO-FEW"
    assert "for validation was refused" in refused.message


def test_channels_find_their_weights_by_name_and_else_by_order(tmp_path):
    inference = SOURCE | {"network_def": SOURCE["network_def"] | {"in_channels": 3}}
    named = make_bundle(tmp_path / "named", inference, in_channels=3)
    metadata = json.loads((named / "configs/metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    image |= {"num_channels": 3, "channel_def": {"0": "T1", "1": "T2", "2": "FLAIR"}}
    (named / "configs/metadata.json").write_text(json.dumps(metadata))
    names = tuple("abcde")
    cases = {
        order: nnunet(tmp_path / "".join(order), names, channels=order)
        for order in (("T1", "T2", "FLAIR"), ("FLAIR", "t1", "T2"), ("FLAIR", "x", "y"), ("T2", "x", "X"))
    }
    weights = torch.load(named / "models/model.pt", weights_only=True)
    first = next(name for name, tensor in weights.items() if tensor.ndim == 5 and tensor.shape[1] == 3)
    for (order, data), taken in zip(cases.items(), ([0, 1, 2], [2, 0, 1], [2, 0, 1], [1, 0, 2]), strict=True):
        new = tmp_path / f"new_{''.join(order)}"
        story = finetune(data, new, source=named, epochs=1, device="cpu", plan_only=True).story
        initial = torch.load(new / "models/initial.pt", weights_only=True)
        torch.testing.assert_close(initial[first], weights[first][:, taken].to(initial[first].dtype))
        assert any("taken in their order: x" in line for line in story["weights"]) == ("x" in order)
    data = find_labelled([cases[("FLAIR", "t1", "T2")]])
    assert refusal(expect_channels, data, bundles.info(named)).code == "E-CHANNELS"
    expect_channels(find_labelled([cases[("FLAIR", "x", "y")]]), bundles.info(named))  # who knows


def test_a_source_that_knows_the_cases_is_told(data, tuned, tmp_path):
    found = finetune(data, tmp_path / "new", source=tuned.bundle, seconds=1, device="cpu")
    assert found.story["source_saw"] == 4  # one was held out of its training
    assert "itself fine-tuned on 4 cases" in (found.bundle / "docs/README.md").read_text()
    assert "source as it was" in found.judged["contenders"]


def test_a_source_that_is_not_there_is_refused_before_a_case_is_read(data, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_attention.finetune.run.preflight", None)
    assert refusal(finetune, data, tmp_path / "new", source="no_such_bundle").code == "E-BUNDLE-NOT-FOUND"
    assert (
        refusal(finetune, data, tmp_path / "new", source="brain_mri_registration_transmorph").code == "E-BUNDLE-PURPOSE"
    )
    assert not (tmp_path / "new").exists()


def test_there_must_be_such_a_fold(data, source, tmp_path):
    assert refusal(finetune, data, tmp_path / "new", source=source, fold=5).code == "E-FOLD"
    assert not (tmp_path / "new").exists()


def test_row_35_a_fold_without_labels_is_refused_and_another_may_be_held_out(data, source, tmp_path):
    cohort = shutil.copytree(data, tmp_path / "cohort")
    for k in range(1, 5):
        put(cohort / f"labels/case{k}.nii.gz", volume(k)[1] * (k > 2), np.diag([2.0, 2.0, 2.0, 1.0]))
    folds = {}
    for fold in range(5):
        try:
            made = finetune(cohort, tmp_path / f"{fold}", source=source, fold=fold, device="cpu", plan_only=True)
        except Refusal as refused:
            folds[fold] = refused.code
        else:
            folds[fold] = made.story["folds"]
    of_case = next(found for found in folds.values() if isinstance(found, dict))
    empty = {of_case["case1"], of_case["case2"]}
    assert {fold for fold, found in folds.items() if found == "E-FOLD"} == empty


def test_adapters_are_refused_before_anything_is_prepared_where_they_have_no_place(data, tmp_path):
    source = threshold_bundle(tmp_path / "source")
    refused = refusal(finetune, data, tmp_path / "new", source=source, method="lora", device="cpu", plan_only=True)
    assert refused.code == "E-METHOD"
    assert "--method full" in refused.remedy
    assert not (tmp_path / "new/data").exists()
    finetune(data, tmp_path / "other", source=source, method="head", device="cpu", plan_only=True)


def test_what_does_not_fit_into_memory_is_computed_twice_where_the_network_can(data, source, tmp_path, monkeypatch):
    kept = []

    def measure(network, *rest):
        kept.append(getattr(network, "use_checkpoint", False))
        if not kept[-1]:
            raise Refusal("E-MEMORY", "it does not fit")
        return measured(network, *rest)

    monkeypatch.setattr(new_bundle, "measured", measure)
    made = finetune(data, tmp_path / "new", source=source, device="cpu", plan_only=True)
    assert kept == [False, True]
    assert made.story["plan"]["network"]["use_checkpoint"] is True
    other = threshold_bundle(tmp_path / "source")  # whose network cannot
    refused = refusal(finetune, data, tmp_path / "other", source=other, device="cpu", plan_only=True)
    assert refused.code == "E-MEMORY"


def test_the_command_tells_the_plan_before_it_trains(data, source, tmp_path, capsys):
    folder = tmp_path / "new"
    arguments = [
        "finetune",
        str(data),
        "-o",
        str(folder),
        "--from",
        str(source),
        "--epochs",
        "1",
        "--device",
        "cpu",
        "-q",
    ]
    assert main([*arguments, "--plan-only"]) == 0
    assert re.search(r"max epochs +1\n", capsys.readouterr().out)
    config = folder / "configs/train.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_epochs": 2}))
    assert main([*arguments, "--resume"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"max epochs +2\n", told)  # as it was edited
    assert told.index("max epochs") < told.index("Dice of held-out cases")
    assert "minutes as measured" in told
    assert bundles.info(folder).trained
    assert main(arguments) == 2
    assert "E-OUTPUT-EXISTS" in capsys.readouterr().err


def test_folds_are_held_out_in_turn_and_compared_with_random_weights(data, source, tmp_path):
    folder = tmp_path / "new"
    settled = {"source": source, "seconds": 10, "device": "cpu"}
    finetune(data, folder, **settled, folds=2, compare="scratch", plan_only=True)
    alone = finetune(data, folder, **settled, fold=1, resume=True)
    assert alone.judged is None
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["fold_1"]
    assert refusal(finetune, data, folder, **settled, fold=2, resume=True).code == "E-FOLD"
    weights = torch.load(folder / "runs/fold_1/new/models/model.pt", weights_only=True)
    made = finetune(data, folder, **settled, resume=True)
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["all", "fold_0", "fold_1"]
    again = torch.load(folder / "runs/fold_1/new/models/model.pt", weights_only=True)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert bundles.info(folder).trained
    contenders = made.judged["contenders"]
    assert list(contenders) == [NEW, SCRATCH]
    assert all(one["scored"] == 5 for one in contenders.values())  # each case once, by whoever did not train on it
    assert list(made.judged["lacking"]) == ["source as it was"]  # it has no class of these names
    lengths = [json.loads((made.bundle / of / "configs/train.json").read_text()) for of in (".", "from_scratch")]
    assert len({(one["max_epochs"], one["epoch_length"], one["batch_size"]) for one in lengths}) == 1
    assert lengths[0]["fold"] is None  # whose weights the bundle has
    assert made.judged["differences"][SCRATCH]["dice"]["class_1"]["estimate"]["cases"] == 5
    card = (folder / "docs/README.md").read_text()
    assert "Cross-validated: the people were divided into 2 folds" in card
    assert "Not compared with source as it was" in card


def test_from_scratch_the_preprocessing_is_the_cohorts(data, tmp_path):
    made = finetune(data, tmp_path / "new", source=None, epochs=1, device="cpu", plan_only=True)
    assert made.story["weights"] == ["all weights initialised afresh"]
    assert json.loads((made.bundle / "configs/inference.json").read_text())["spacing"] == [2.0, 2.0, 2.0]
    recipe = json.loads((made.bundle / "configs/train.json").read_text())
    assert recipe["loss"]["log_dice"] is True
    assert recipe["optimizer"]["_target_"].endswith("MuonAdamW")
    packaged = json.loads((bundles.info(DEFAULT_BUNDLE).folder / "configs/train.json").read_text())
    outer = packaged["optimizer"]["outer"]
    assert {next(start for start in outer if name.startswith(start)) for name in recipe["trained"]} == set(outer)


def test_from_scratch_a_network_need_not_take_the_weights_of_another(data, tmp_path, monkeypatch):
    def find_ends(*_):
        raise Refusal("E-WEIGHTS-MISMATCH", "its classes are everywhere")

    monkeypatch.setattr(new_bundle, "find_ends", find_ends)
    made = finetune(data, tmp_path / "new", source=None, epochs=1, device="cpu", plan_only=True)
    assert json.loads((made.bundle / "configs/train.json").read_text())["trained"] == {}
    assert refusal(finetune, data, tmp_path / "other", epochs=1, device="cpu").code == "E-WEIGHTS-MISMATCH"


def test_a_network_gets_what_it_can_in_training(data, tmp_path, monkeypatch):
    make = {"_target_": "monai_attention.networks.nnformer.NNFormer", "in_channels": 1, "out_channels": 3}
    make |= {
        "roi_size": [16, 16, 16],
        "patch_size": [2, 2, 2],
        "feature_size": 8,
        "depths": [1, 1, 1],
        "num_heads": [2, 2, 2],
    }
    make |= {"decoder_heads": [2, 2], "window": [4, 2, 2]}
    torch.manual_seed(0)
    network = NNFormer(**{name: value for name, value in make.items() if name != "_target_"})
    origin = make_bundle(tmp_path / "source", SOURCE | {"network_def": make})
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    release_weights(tmp_path / "weights.pt", origin)
    monkeypatch.setattr("monai_attention.finetune.plan.free_bytes", lambda device: 1)
    made = finetune(data, tmp_path / "new", source=origin, epochs=1, device="cpu")
    assert made.story["plan"]["network"] == {"deep_supervision": True, "use_checkpoint": True}
    recipe = json.loads((made.bundle / "configs/train.json").read_text())
    assert recipe["network_def"]["use_checkpoint"]
    assert recipe["batch_size"] == 1
    before, after = (torch.load(made.bundle / f"models/{name}.pt", weights_only=True) for name in ("initial", "model"))
    heads = [name for name in before if "heads" in name and name.endswith("weight")]
    assert len(heads) == 2
    assert not any(torch.equal(before[name].half(), after[name].half()) for name in heads)


def same(a, b):
    """But for half precision, and the rounding of averages of equal numbers."""
    return torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["head", "lora"])
def test_other_methods_train_what_they_say(data, source, tmp_path, method):
    made = finetune(data, tmp_path / "new", source=source, method=method, epochs=1, device="cpu")
    before = torch.load(made.bundle / "models/initial.pt", weights_only=True)
    after = torch.load(made.bundle / "models/model.pt", weights_only=True)
    assert before.keys() == after.keys()
    changed = {name for name in before if not same(before[name], after[name])}
    heads = set(json.loads((made.bundle / "configs/train.json").read_text())["trained"])
    assert heads & changed
    others = changed - heads
    adapters = made.bundle / "models/adapters.pt"
    assert adapters.is_file() == (method == "lora")
    if method == "lora":
        plain = bundles.load(made.bundle).network
        plain.load_state_dict(before)
        load_lora(plain, torch.load(adapters, weights_only=True))
        merge_lora(plain)
        assert all(same(tensor, after[name]) for name, tensor in plain.state_dict().items())
    assert (not others) if method == "head" else (others and all(before[name].ndim > 1 for name in others))


def test_adapters_of_a_fold_are_kept_beside_its_weights(data, source, tmp_path):
    settled = {"source": source, "method": "lora", "seconds": 1, "folds": 2, "device": "cpu"}
    finetune(data, tmp_path / "new", **settled, plan_only=True)
    finetune(data, tmp_path / "new", resume=True, fold=0, device="cpu")
    models = tmp_path / "new/runs/fold_0/new/models"
    assert sorted(path.name for path in models.iterdir()) == ["adapters.pt", "model.pt"]


def test_a_spoilt_loss_is_told_with_its_case(data, source, tmp_path):
    folder = tmp_path / "new"
    finetune(data, folder, source=source, epochs=1, device="cpu", plan_only=True)
    for path in (folder / "data").glob("*.image.nii"):
        image = nibabel.load(path)
        values = np.full(image.shape, np.nan, np.float32)
        nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    error = refusal(finetune, data, folder, resume=True, device="cpu")
    assert error.code == "E-LOSS"
    assert "case" in error.message


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *((one, True) for one in ("kidney_left", "Left_Kidney", "LeftKidney", "ctx-lh", "kidneyL", "Linke Niere")),
        *((one, True) for one in ("LKidney", "leftkidney", "RUL", "class_1")),
        *((one, False) for one in ("liver", "Aorta", "bright spot", "lung lower lobe")),
    ],
)
def test_names_tell_whether_a_class_may_have_a_side(name, side):
    assert may_have_side(name) is side
