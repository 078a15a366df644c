"""What a bundle may not do: what it asks for beyond the list is refused, and not run."""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monai_attention import bundle_trust, bundles
from monai_attention.bundle_config import lookup
from monai_attention.bundle_verify import verify
from tests.make_flexunetr_bundle import INFERENCE, METADATA, make_bundle, write
from tests.refusals import refusal

MADE = "made-by-the-bundle"  # the folder that a payload makes if it is run


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "test_bundle")


def at(id: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: dict[str, Any]) -> None:
        above, _, last = id.rpartition("::")
        parent = lookup(tree, above) if above else tree
        if isinstance(parent, list):
            parent[int(last)] = value
        else:
            parent[last] = value

    return change


STEP = "preprocessing::transforms::2"
RUN = f"__import__('os').mkdir('{MADE}')"
CALL = {"_target_": "os.mkdir", "path": MADE}
FIELD = {"_target_": "monai_attention.registration.transforms.SaveFieldd", "keys": "image", "image": "image"}
FIELD |= {"output_dir": MADE}
HOSTILE = {
    # calls by name
    "network is a call": ("network_def::_target_", at("network_def", CALL)),
    "step is a call": (f"{STEP}::_target_", at(STEP, CALL)),
    "call inside an argument": (f"{STEP}::axcodes::_target_", at(f"{STEP}::axcodes", CALL)),
    "call inside a list": ("inferer::roi_size::1::_target_", at("inferer::roi_size", [16, CALL, 16])),
    "call where nothing refers to it": ("unused::_target_", at("unused", CALL)),
    "call that is switched off": ("unused::_target_", at("unused", CALL | {"_disabled_": True})),
    "call by requirement": ("inferer::_requires_::_target_", at("inferer::_requires_", CALL)),
    "call by reference": ("evil::_target_", lambda tree: (at("evil", CALL)(tree), at("roi_size", "@evil")(tree))),
    "target is a reference": ("inferer::_target_", at("inferer::_target_", "@dataset_dir")),
    "target is an expression": ("inferer::_target_", at("inferer::_target_", f"${RUN}")),
    "target is not a name": ("inferer::_target_", at("inferer::_target_", ["os.mkdir"])),
    # ways out of an allowed module
    "module attribute": (STEP, at(STEP, CALL | {"_target_": "monai.data.utils.os.mkdir"})),
    "class from elsewhere": ("unused::_target_", at("unused", {"_target_": "monai.transforms.io.array.Path"})),
    "class of its own": (STEP, at(STEP, {"_target_": "scripts.Evil"})),
    "module of the same beginning": (STEP, at(STEP, {"_target_": "monai_attention_scripts.Evil"})),
    "parent folder": (STEP, at(STEP, CALL | {"_target_": "monai.transforms....os.mkdir"})),
    "torch.load": (STEP, at(STEP, {"_target_": "torch.load", "f": "evil.pt"})),
    "function in an allowed module": (STEP, at(STEP, {"_target_": "monai.networks.utils.save_state"})),
    "bundle runner": (STEP, at(STEP, {"_target_": "monai.bundle.run"})),
    "trusted only by MONAI": (STEP, at(STEP, {"_target_": "monai.handlers.StatsHandler"})),
    # classes that run, read or write what they are told
    "lambda": (STEP, at(STEP, {"_target_": "Lambdad", "keys": "image", "func": "@roi_size"})),
    "deletes files": (
        STEP,
        at(STEP, {"_target_": "SaveClassificationd", "keys": "image", "output_dir": ".", "filename": "thesis.docx"}),
    ),
    "the program itself": (STEP, at(STEP, {"_target_": "monai_attention.__main__.Evil"})),
    "random lambda": (STEP, at(STEP, {"_target_": "monai.transforms.RandLambda", "func": "@roi_size"})),
    "reader by name": (f"{STEP}::reader", at(STEP, {"_target_": "LoadImaged", "keys": "image", "reader": "os.mkdir"})),
    "reader of a step that is left out": (
        "preprocessing::transforms::0::reader",
        at("preprocessing::transforms::0::reader", "os.mkdir"),
    ),
    "writer by name": (
        "postprocessing::transforms::0::writer",
        at("postprocessing::transforms::0::writer", "os.mkdir"),
    ),
    "writing in the dark": ("unused::_target_", at("unused", {"_target_": "SaveImaged", "keys": "image"})),
    "writing in the preprocessing": (STEP, at(STEP, {"_target_": "SaveImaged", "keys": "image"})),
    "fields in the preprocessing": (STEP, at(STEP, FIELD)),
    "fields in the dark": ("unused::_target_", at("unused", FIELD)),
    "pickles": ("dataset::_target_", at("dataset::_target_", "PersistentDataset")),
    "merger by name": ("inferer", at("inferer", {"_target_": "PatchInferer", "merger_cls": "evil.Merger"})),
    "not a part of inference": (STEP, at(STEP, {"_target_": "monai.data.ITKReader"})),
    "download": ("network_def", at("network_def", {"_target_": "TorchVisionFCModel"})),
    "download by argument": (
        "network_def::pretrained",
        at("network_def", {"_target_": "DenseNet121", "pretrained": True}),
    ),
    "debugger": ("inferer::_mode_", at("inferer::_mode_", "debug")),
    "debugger by argument": ("inferer::_debug_", at("inferer::_debug_", True)),
    # expressions
    "expression": ("inferer::overlap", at("inferer::overlap", f"${RUN}")),
    "expression where nothing refers to it": ("unused::a::0", at("unused", {"a": [f"${RUN}"]})),
    "expression as switch": (f"{STEP}::_disabled_", at(f"{STEP}::_disabled_", f"${RUN}")),
    "expression as requirement": ("inferer::_requires_", at("inferer::_requires_", f"${RUN}")),
    "own code": ("imports::0", at("imports::0", "$import scripts")),
    "own code from": ("imports::0", at("imports::0", "$from scripts import evil")),
    "after a path": ("output_dir", at("output_dir", f"$@bundle_root + '/eval' + str({RUN})")),
    "after a device": ("device", at("device", f"$torch.device('cpu') if {RUN} else torch.device('cpu')")),
    "after an import": ("imports::0", at("imports::0", f"$import os\n{RUN}")),
    "inside a comprehension": ("dataset::data", at("dataset::data", f"$[{{'image': i}} for i in @files if {RUN}]")),
    "inside a list of pairs": (
        "dataset::data",
        at("dataset::data", f"$[{{'fixed': f, 'moving': {RUN}}} for f, m in zip(@files, @files, strict=True)]"),
    ),
    "inside a list of files": ("files", at("files", f"$sorted(glob.glob({RUN}))")),
    "attribute of an object": ("unused", at("unused", "$@network_def.forward.__globals__")),
    "method of an object": ("unused", at("unused", "$@network.load_state_dict(torch.load('evil.pt'))")),
    "unsafe weights": ("unused", at("unused", "$torch.load(@output_dir, weights_only=False)")),
    "MONAI's part in ours": ("inferer::roi_size", at("inferer::roi_size", "$monai.utils.set_determinism(0)")),
    "macro": ("unused", at("unused", "%evil.json::a")),
    "relative reference": ("inferer::roi_size", at("inferer::roi_size", "@##roi_size")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_row_44_hostile_configuration_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place, change = HOSTILE[name]
    tree = copy.deepcopy(INFERENCE)
    change(tree)
    folder = make_bundle(tmp_path / "hostile", tree)
    for package in ("scripts", "monai_attention_scripts"):  # importing them is the payload
        write(folder / f"{package}.py", f"{RUN}\nclass Evil: pass")
    monkeypatch.syspath_prepend(folder)
    before = sorted(tmp_path.rglob("*"))
    error = refusal(bundles.load, folder)
    assert error.code == "E-BUNDLE-UNTRUSTED"
    named = re.search(r"inference\.json: ([\w:]+) \(line (\d+)\)", error.message)
    assert named is not None
    assert named[1].startswith(place)
    assert (
        json.dumps(named[1].rpartition("::")[2]).strip('"').isdecimal()
        or named[1].rpartition("::")[2]
        in ((folder / "configs/inference.json").read_text().split("\n")[int(named[2]) - 1])
    ), "the line is the entry's"
    assert not [check for check in verify(folder).checks if check.name == "inference.json" and check.ok]
    assert sorted(tmp_path.rglob("*")) == before, "nothing was made"


def test_row_44_what_describes_a_bundle_makes_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*_: object) -> None:
        raise AssertionError("an object was made")

    tree = copy.deepcopy(INFERENCE)
    spacing = next(one for one in tree["preprocessing"]["transforms"] if one["_target_"] == "Spacingd")
    spacing["pixdim"] = "@spacing"
    tree["spacing"] = "@deeper"
    tree["deeper"] = {"_target_": "DenseNet121", "pretrained": True}
    folder = make_bundle(tmp_path / "hostile", tree)
    monkeypatch.setattr(bundles.Builder, "make", make)
    assert bundles.info(folder).spacing_mm is None


def test_row_44_hostile_metadata_is_refused_too(tmp_path: Path) -> None:
    error = refusal(bundles.load, make_bundle(tmp_path / "b", metadata=METADATA | {"note": "$import scripts"}))
    assert error.code == "E-BUNDLE-UNTRUSTED"
    assert "metadata.json: note (line" in error.message


@pytest.mark.parametrize(
    "name", ["network is a call", "expression", "after a device", "module attribute", "call by requirement"]
)
def test_row_44_the_payloads_are_real_and_only_trust_runs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = copy.deepcopy(INFERENCE)
    HOSTILE[name][1](tree)
    if name == "after a device":
        tree["inferer"]["device"] = "@device"
    folder = make_bundle(tmp_path / "hostile", tree)
    with contextlib.suppress(Exception):  # whatever MONAI makes of what the payload returns
        bundles.load(folder, trust=True)
    assert (tmp_path / MADE).exists()


def test_row_44_trust_runs_a_bundles_own_code(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "own", INFERENCE | {"roi_size": "$__import__('own_sizes_of_this_bundle').SIZE"})
    write(folder / "own_sizes_of_this_bundle.py", "SIZE = [16, 16, 16]")
    assert refusal(bundles.load, folder).code == "E-BUNDLE-UNTRUSTED"
    assert tuple(bundles.load(folder, trust=True).inferer.roi_size) == (16, 16, 16)
    assert str(folder) not in sys.path


def test_row_48_nothing_else_in_a_bundle_is_read_or_run(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)

    class Payload:
        def __reduce__(self) -> tuple:
            return eval, (RUN,)

    evil = f"__import__('os').mkdir({MADE!r})"
    write(bundle / "configs/logging.conf", f"[handlers]\nkeys=h\n[handler_h]\nclass={evil}\nargs=({evil},)\n")
    for name in ("scripts/__init__.py", "monai.py", "glob.py", "configs/inference.py", "sitecustomize.py"):
        write(bundle / name, evil)
    for name in ("dataset.pkl", "models/dataset.pt", "configs/data.pickle"):
        (bundle / name).write_bytes(pickle.dumps(Payload()))
    bundles.info(bundle)
    bundles.load(bundle)
    assert verify(bundle, full=True).ok
    assert not (bundle / MADE).exists()
    assert "scripts" not in sys.modules


# Classes of MONAI that may be made although their source has one of the words below, and why that is fine.
REVIEWED = {
    "ForegroundMask": "picks one of scikit-image's threshold functions",
    "ToDevice": "its documentation speaks of subprocesses",
}


def test_no_class_that_may_be_made_imports_by_name_unpickles_downloads_or_touches_files() -> None:
    """Keeps `REFUSED` whole: a class of a new MONAI that does such a thing turns up here."""
    importlib.import_module("monai")  # loads every submodule
    risky = re.compile(
        r"\blocate\(|import_module\(|__import__|optional_import\([^)]*name=[^\"']|getattr\(sk|\beval\((?!\))|\bexec\("
        r"|pickle\.|torch\.load|torch\.hub|load_state_dict_from_url|download_url|from_pretrained"
        r"|pretrained: bool = True|subprocess\.|\bopen\(|makedirs|mkdir|np\.save|np\.load\b|torch\.save"
        r"|self\.(?:func|function)\(|CSVSaver\(|os\.remove|\.unlink\("
    )
    found, looked_at = set(), 0
    for module in [name for name in sys.modules if bundle_trust._under(name, bundle_trust.ROOTS)]:
        source = getattr(sys.modules[module], "__file__", None)
        if not module.startswith("monai.") or not source:
            continue
        text = Path(source).read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if not isinstance(node, ast.ClassDef):
                continue
            with contextlib.suppress(ValueError):
                bundle_trust.allowed_class(f"{module}.{node.name}", make=True)
                looked_at += 1
                lines = text.split("\n")[node.lineno - 1 : node.end_lineno]
                found |= {node.name} if risky.search("\n".join(lines)) else set()
    assert looked_at > 400
    assert found == REVIEWED.keys()


@pytest.mark.parametrize(
    "text",
    [
        "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
        "$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
        "$@bundle_root + '/models/' + @modelname",
        "$[{'fixed': f, 'moving': m} for f, m in zip(@fixed, @moving, strict=True)]",
        "$monai.data.load_decathlon_datalist(@list_path, data_list_key='testing', base_dir=@dataset_dir)",
        "$@checkpointloader(@evaluator)",
        "$setattr(torch.backends.cudnn, 'benchmark', True)",
        "$monai.utils.set_determinism(seed=123)",
        "$numpy.float32",
    ],
)
def test_expressions_of_published_bundles_are_on_the_list(text: str) -> None:
    assert bundle_trust.expression_for(text) is not None
