"""Every bundle in the repository holds to MONAI's specification and runs, through MONAI and through us."""

import functools
import json
import shutil
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


@pytest.fixture(params=bundles.packaged_names())
def bundle(request):
    return bundles.find(request.param)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("data") / "head.nii.gz", spacing=3.0)


def test_there_are_bundles():
    assert bundles.packaged_names()


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


def test_monai_runs_it_and_finds_what_we_find(bundle, head, tmp_path):
    """Plain `monai.bundle run` reads, inverts and saves in its own way; the labels agree with ours."""
    from monai.bundle import run

    run(
        config_file=str(bundle / "configs/inference.json"),
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=str(bundle / "configs/logging.conf"),
        bundle_root=str(bundle),
        dataset_dir=str(head.parent),
        output_dir=str(tmp_path / "monai"),
    )
    theirs = nibabel.load(next((tmp_path / "monai").rglob("*.nii.gz")))
    (result,) = segment(head, tmp_path / "ours", bundle=bundle)
    ours = nibabel.load(result.outputs["labels"])
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    assert (np.asarray(ours.dataobj) == np.asarray(theirs.dataobj)).mean() > 0.995


def test_its_card_names_what_a_user_must_know(bundle):
    card = (bundle / "docs/README.md").read_text().lower()
    for word in ("trained on", "dice", "not a medical device", "fails", "licence"):
        assert word in card, word


def test_its_training_runs_on_label_maps_made_of_code(bundle, tmp_path):
    """One epoch of one step, a resumed second one that goes on where the first ended, and the release of weights."""
    from monai.bundle import ConfigWorkflow

    from monai_attention.synthesis.phantom import head_labels

    for k in range(2):
        labels, affine = head_labels(4.0)
        nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / f"{k}.nii.gz")
    copy = shutil.copytree(bundle, tmp_path / "copy")
    make = functools.partial(
        ConfigWorkflow,
        config_file=str(bundle / "configs/train.json"),
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=str(bundle / "configs/logging.conf"),
        workflow_type="train",
        bundle_root=str(copy),
        dataset_dir=str(tmp_path),
        output_dir=str(tmp_path / "run"),
        held_out=1,
        epoch_length=1,
        val_interval=10,
        num_workers=0,
        roi_size=[32, 32, 32],
    )
    for epochs in (1, 2):
        workflow = make(max_epochs=epochs)
        workflow.initialize()
        workflow.run()
        assert workflow.parser.get_parsed_content("train#trainer").state.iteration == epochs
        workflow.finalize()
    assert workflow.parser.get_parsed_content("train#dataset").first == 2  # a batch of two was seen before
    assert len(list((tmp_path / "run").glob("checkpoint_epoch=*.pt"))) == 2

    torch.save(workflow.parser.get_parsed_content("network").state_dict(), tmp_path / "run/best.pt")
    releasing = make(run_id="release")
    releasing.initialize()
    releasing.run()
    assert bundles.info(copy).weights_sha256 == file_sha256(copy / "models/model.pt")
    assert bundles.info(copy).weights_sha256 != bundles.info(bundle).weights_sha256
