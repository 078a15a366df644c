"""Bundles are found, described and loaded, from a folder or a zip, whole or not at all."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from monai_attention import bundles
from tests.make_flexunetr_bundle import INFERENCE, make_bundle, write
from tests.refusals import refusal


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "test_bundle")


def test_info_needs_neither_torch_nor_monai(bundle: Path) -> None:
    code = (
        "import sys\nfrom monai_attention import bundles\n"
        f"found = bundles.info({str(bundle)!r})\nbundles.list_bundles()\n"
        "assert found.classes == {0: 'background', 1: 'a', 2: 'b'} and found.spacing_mm == (2.0, 2.0, 2.0), found\n"
        "assert found.trained and found.weights_bytes and found.network.endswith('FlexUNETR'), found\n"
        "assert not {'torch', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_bundle_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    for name in ("no_such_bundle", tmp_path, tmp_path / "no.zip"):
        error = refusal(bundles.find, name)
        assert error.code == "E-BUNDLE-NOT-FOUND"
        assert all(known in error.message for known in bundles.packaged_names())


def test_loading_gives_what_monai_makes_of_the_same_configuration(bundle: Path) -> None:
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor

    ours = bundles.load(bundle)
    parser = ConfigParser(copy.deepcopy(INFERENCE))
    theirs = parser.get_parsed_content("network_def").eval()
    theirs.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    image = MetaTensor(torch.rand(1, 20, 24, 28), affine=torch.diag(torch.tensor([-1.0, 1.5, 1.0, 1.0])))
    steps = parser.get_parsed_content("preprocessing").transforms[2:]
    expected = {"image": image.clone()}
    for step in steps:
        expected = step(expected)
    given = ours.preprocessing({"image": image.clone()})["image"]
    assert torch.equal(given, expected["image"])
    with torch.inference_mode():
        logits = ours.inferer(given[None], ours.network)
        assert torch.equal(logits, parser.get_parsed_content("inferer")(given[None], theirs))
    assert logits.shape == (1, 3, *given.shape[1:])
    assert not ours.network.training
    assert ours.weights_sha256 == bundles.info(bundle).weights_sha256
    assert ours.requirements == bundles.requirements(bundle)


def test_rows_40_41_43_weights_of_a_bundle_are_loaded_whole_or_not_at_all(bundle: Path) -> None:
    weights = bundle / bundles.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    error = refusal(bundles.load, bundle)
    assert error.code == "E-WEIGHTS-CORRUPT"
    assert f"file size {len(whole) - 10} bytes" in error.message
    assert f"expected {len(whole)} bytes" in error.message
    weights.write_bytes(whole)
    other = copy.deepcopy(INFERENCE)
    other["network_def"]["depth"] = 3
    write(bundle / "configs/inference.json", other)
    error = refusal(bundles.load, bundle)
    assert error.code == "E-WEIGHTS-MISMATCH"
    assert "missing keys: encoder.blocks.2." in error.message
    weights.unlink()
    assert refusal(bundles.load, bundle).code == "E-WEIGHTS-MISSING"


def test_bundle_in_a_zip_is_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "download.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(bundle.rglob("*")):
            file.write(path, path.relative_to(bundle.parent))
    assert bundles.find(archive) == bundles.find(archive)
    loaded = bundles.load(archive)
    assert loaded.name == "test_bundle"
    assert loaded.weights_sha256 == bundles.load(bundle).weights_sha256


def test_overlapping_classes_and_channels_without_a_name_are_refused(bundle: Path) -> None:
    path = bundle / "configs/inference.json"
    plain = json.loads(path.read_text())
    write(path, plain | {"postprocessing": {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}})
    assert refusal(bundles.load, bundle).code == "E-BUNDLE-CONFIG"
    write(path, plain)
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    named = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    named["7"] = named.pop(max(named))
    write(bundle / "configs/metadata.json", metadata)
    assert refusal(bundles.load, bundle).code == "E-BUNDLE-METADATA"


def test_a_bundle_in_no_folder_of_its_zip_is_called_like_the_zip(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "download.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(bundle.rglob("*")):
            file.write(path, path.relative_to(bundle))
    assert bundles.info(archive).name == "download"


def test_other_weights_are_another_bundle_whether_or_not_their_hash_is_recorded(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "copy")
    metadata = json.loads((folder / "configs/metadata.json").read_text())
    metadata.pop("weights", None)
    (folder / "configs/metadata.json").write_text(json.dumps(metadata))
    before = bundles.identity(folder)
    with (folder / bundles.WEIGHTS).open("ab") as file:
        file.write(b"0")
    assert bundles.identity(folder) != before


@pytest.mark.parametrize("name", ["../outside", "/outside", "b/../../outside"])
def test_row_45_bundle_zip_that_leaves_its_folder_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(bundle.rglob("*")):
            file.write(path, path.relative_to(bundle.parent))
        file.writestr(name, "out")
    error = refusal(bundles.find, archive)
    assert error.code.startswith("E-ARCHIVE")
    assert not Path("/outside").exists()


def test_row_46_bundle_zip_bomb_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("b/configs/metadata.json", bytes(100_000_000))
    assert refusal(bundles.find, archive).code.startswith("E-ARCHIVE")
