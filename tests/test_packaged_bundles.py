"""Every bundle in the repository holds to MONAI's specification and runs, through MONAI and through us."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from monai_attention import bundles, segment
from monai_attention.bundle_verify import verify
from monai_attention.checkpoints import file_sha256
from monai_attention.inference.demo import make_phantom

SCHEMA = Path(__file__).parent / "data/meta_schema_20240725.json"


def names(*purposes):
    return [one.name for one in bundles.list_bundles() if one.purpose in purposes]


@pytest.fixture(params=names("segment", "register"))
def bundle(request):
    return bundles.find(request.param)


@pytest.fixture(params=names("segment"))
def segmenting(request):
    return bundles.find(request.param)


@pytest.fixture(params=names("register"))
def registering(request):
    return bundles.find(request.param)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("data") / "head.nii.gz", spacing=3.0)


def test_there_are_bundles_with_weights():
    assert all(one.trained for one in bundles.list_bundles())
    assert len(bundles.packaged_names()) >= 4


def test_it_verifies_by_our_checks(bundle):
    failed = [check for check in verify(bundle, full=True).checks if not check.ok]
    assert not failed


def test_it_verifies_by_monais_checks(bundle, tmp_path):
    from monai.bundle import verify_metadata, verify_net_in_out

    metadata, inference = bundle / "configs/metadata.json", bundle / "configs/inference.json"
    content = json.loads(metadata.read_text())
    assert content["version"] in content["changelog"]
    assert bundle.name == content["name"]
    schema = tmp_path / "schema.json"
    schema.write_bytes(SCHEMA.read_bytes())  # where the schema lies already, MONAI does not download it
    verify_metadata(meta_file=str(metadata), filepath=str(schema))
    verify_net_in_out(net_id="network_def", meta_file=str(metadata), config_file=str(inference), n=2)


def run_by_monai(bundle, data, output):
    from monai.bundle import run

    run(
        config_file=str(bundle / "configs/inference.json"),
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=str(bundle / "configs/logging.conf"),
        bundle_root=str(bundle),
        dataset_dir=str(data),
        output_dir=str(output),
    )


def in_channels(head, channels, folder):
    """A head in a folder of its own, with as many channels as a bundle wants."""
    folder.mkdir()
    image = nibabel.load(head)
    shades = [image.get_fdata(dtype=np.float32) ** (1 + 0.2 * k) for k in range(channels)]
    data = np.stack(shades, axis=-1) if channels > 1 else shades[0]
    nibabel.save(nibabel.Nifti1Image(data, image.affine), folder / "head.nii.gz")
    return folder / "head.nii.gz"


def test_monai_runs_it_and_finds_what_we_find(segmenting, head, tmp_path):
    """Plain `monai.bundle run` reads, inverts and saves in its own way; the labels agree with ours."""
    head = in_channels(head, bundles.info(segmenting).requirements.channels, tmp_path / "scans")
    run_by_monai(segmenting, head.parent, tmp_path / "monai")
    theirs = nibabel.load(next((tmp_path / "monai").rglob("*.nii.gz")))
    (result,) = segment(head, tmp_path / "ours", bundle=segmenting)
    ours = nibabel.load(result.outputs["labels"])
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    assert (np.asarray(ours.dataobj) == np.asarray(theirs.dataobj)).mean() > 0.995


def test_monai_runs_a_registration_whose_field_we_apply(registering, head, tmp_path):
    """Plain `monai.bundle run` warps the moving scan, and writes a field by which `warp` does the same."""
    from monai_attention.registration.apply import warp

    scan = nibabel.load(head)
    bent = np.roll(np.asarray(scan.dataobj), 2, axis=1)[::-1]  # stored from left to right, the other way round
    affine = scan.affine @ np.array([[-1, 0, 0, scan.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for name, image in (("fixed", scan), ("moving", nibabel.Nifti1Image(bent, affine))):
        (tmp_path / name).mkdir()
        nibabel.save(image, tmp_path / f"{name}/head.nii.gz")
    run_by_monai(registering, tmp_path, tmp_path / "out")
    theirs = nibabel.load(tmp_path / "out/head/head_warped.nii.gz")
    warp(tmp_path / "moving/head.nii.gz", tmp_path / "out/head/head_field.nii.gz", tmp_path / "ours.nii.gz")
    ours = nibabel.load(tmp_path / "ours.nii.gz")
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    inner = tuple(slice(4, -4) for _ in range(3))
    assert np.corrcoef(ours.get_fdata()[inner].ravel(), theirs.get_fdata()[inner].ravel())[0, 1] > 0.99


def test_its_card_names_what_a_user_must_know(bundle):
    card = (bundle / "docs/README.md").read_text().lower()
    for word in ("trained on", "dice", "not a medical device", "fails", "licence"):
        assert word in card, word


def training(bundle, copy, data, *also):
    """Makes workflows of a bundle's training on small images, by `train.json` and what changes it."""
    from monai.bundle import ConfigWorkflow

    return functools.partial(
        ConfigWorkflow,
        config_file=[str(bundle / "configs" / name) for name in ("train.json", *also)],
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=str(bundle / "configs/logging.conf"),
        workflow_type="train",
        bundle_root=str(copy),
        dataset_dir=str(data),
        output_dir=str(data / "run"),
        held_out=1,
        epoch_length=1,
        val_interval=10,
        num_workers=0,
        roi_size=[32, 32, 32],
    )


def test_its_training_runs_on_label_maps_made_of_code(bundle, tmp_path):
    """One epoch of one step, a resumed second one that goes on where the first ended, and the release of the best."""
    from monai_attention.synthesis.phantom import head_labels

    for k in range(2):
        labels, affine = head_labels(4.0)
        nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / f"{k}.nii.gz")
    copy = shutil.copytree(bundle, tmp_path / "copy")
    small = {"validate#dataset#length": 1}
    if bundles.info(bundle).purpose == "segment":
        small["validate#dataset#generator#roi_size"] = [32, 32, 32]
    make, best = training(bundle, copy, tmp_path), tmp_path / "run/best.pt"
    for epochs in (1, 2):
        workflow = make(max_epochs=epochs, **small)
        workflow.initialize()
        workflow.run()
        parser = workflow.parser
        assert parser.get_parsed_content("train#trainer").state.iteration == epochs
        assert parser.get_parsed_content("validate#evaluator").state.epoch == epochs, "the last epoch is judged"
        if epochs == 1:
            first, learned = torch.load(best, weights_only=True), parser.get_parsed_content("network").state_dict()
            averaged = parser.get_parsed_content("ema").ema_model
            averaged = getattr(averaged, "network", averaged).state_dict()
            assert all(torch.equal(first[name], averaged[name]) for name in averaged)
            assert not all(torch.equal(first[name], learned[name]) for name in learned)
            best.with_suffix(".json").write_text(json.dumps({"score": 2.0, "epoch": 1}))
        workflow.finalize()
    assert all(torch.equal(first[name], one) for name, one in torch.load(best, weights_only=True).items())
    seen = workflow.parser.get_parsed_content("batch_size")  # by the first run
    assert workflow.parser.get_parsed_content("train#dataset").first == seen
    assert len(list((tmp_path / "run").glob("checkpoint_epoch=*.pt"))) == 2

    releasing = make(run_id="release")
    releasing.initialize()
    releasing.run()
    assert bundles.info(copy).weights_sha256 == file_sha256(copy / "models/model.pt")
    released = torch.load(copy / "models/model.pt", weights_only=True)
    assert all(torch.equal(released[name], one.to(released[name].dtype)) for name, one in first.items())
    assert bundles.info(copy).weights_sha256 != bundles.info(bundle).weights_sha256


def test_its_training_needs_no_import_but_its_own(bundle):
    """In a process of its own: here, other tests have imported what a configuration may have forgotten."""
    parse = "import sys; from monai.bundle import ConfigParser as P; p = P(); p.read_config(sys.argv[1])"
    command = [sys.executable, "-c", f"{parse}; p.get_parsed_content('optimizer')", bundle / "configs/train.json"]
    subprocess.run(command, check=True, capture_output=True)


def test_its_evaluation_judges_its_own_weights(segmenting, tmp_path):
    """`evaluate.json` on top of `train.json`: what is scored is the network of `models/model.pt`, and nothing else."""
    from monai_attention.synthesis.phantom import head_labels

    labels, affine = head_labels(4.0)
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "0.nii.gz")
    small = {"validate#dataset#length": 1, "validate#dataset#generator#roi_size": [32, 32, 32], "spacing": 4.0}
    workflow = training(segmenting, segmenting, tmp_path, "evaluate.json")(**small)
    workflow.initialize()
    workflow.run()
    judged = workflow.parser.get_parsed_content("validate#evaluator").network.state_dict()
    released = torch.load(segmenting / "models/model.pt", weights_only=True)
    assert set(judged) == set(released)
    for name, weights in released.items():
        torch.testing.assert_close(judged[name], weights.float(), rtol=0, atol=0)
    assert (tmp_path / "run/val_mean_dice_raw.csv").is_file()


def test_a_registration_trains_on_a_users_own_images(registering, tmp_path):
    """`own_images.json` on top of `train.json`: no labels; it begins with the bundle's weights, and validates."""
    for k in range(3):
        make_phantom(tmp_path / f"{k}.nii.gz", spacing=4.0)
    workflow = training(registering, registering, tmp_path, "own_images.json")(max_epochs=1, val_interval=1)
    workflow.initialize()
    workflow.run()
    assert workflow.parser.get_parsed_content("train#trainer").state.iteration == 1
    metrics = workflow.parser.get_parsed_content("validate#evaluator").state.metrics
    assert -1 < metrics["val_likeness"] < 0
    assert (tmp_path / "run/best.pt").is_file()


def test_a_registrations_training_lowers_its_loss_and_raises_dice(registering, tmp_path):
    """Forty steps on two pairs, deformed strongly: labels come to lie on each other better than undeformed."""
    from ignite.engine import Events
    from monai.metrics import DiceMetric

    from monai_attention.synthesis.phantom import head_labels

    for k in range(2):
        labels, affine = head_labels(4.0)
        nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / f"{k}.nii.gz")
    small = {"roi_size": [48, 48, 48], "spacing": 4.0, "amp": False, "learning_rate": 0.002, "epoch_length": 40}
    small |= {"network_def#roi_size": [48, 48, 48], "ema#momentum": 0.2}
    pairs = {"train#dataset#length": 2, "validate#dataset": "@train#dataset", "val_interval": 1}
    pairs |= {f"train#dataset#images#generator#{key}": value for key, value in (("scaling", 0.2), ("elastic_mm", 8.0))}
    workflow = training(registering, registering, tmp_path)(max_epochs=1, **{**small, **pairs})
    workflow.initialize()
    parser, losses = workflow.parser, []
    trainer = parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"]))
    workflow.run()
    assert len(losses) == 40
    assert np.mean(losses[-6:]) < np.mean(losses[:2]) - 0.05
    classes = len(parser.get_parsed_content("classes")) + 1
    undeformed = DiceMetric(include_background=False)
    for pair in parser.get_parsed_content("train#dataset"):
        undeformed(*(torch.nn.functional.one_hot(one.long(), classes).movedim(-1, 0)[None] for one in pair["label"]))
    found = parser.get_parsed_content("validate#evaluator").state.metrics["val_mean_dice"]
    assert found > float(undeformed.aggregate()) + 0.05
