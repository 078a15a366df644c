"""Bundles are found, described, checked and loaded as data: what a bundle asks for beyond the list is not run."""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import importlib
import json
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_attention import bundle_trust, bundles
from monai_attention.bundle_build import Builder
from monai_attention.bundle_config import Config, lookup, parse_override, read_config, walk
from monai_attention.bundle_verify import smallest_size, verify
from monai_attention.errors import Refusal
from monai_attention.io.volume import Requirements

NETWORK = {
    "_target_": "monai_attention.networks.flex_unetr.FlexUNETR",
    **{"in_channels": 1, "out_channels": 3, "roi_size": "@roi_size", "patch_size": 4, "feature_size": 4},
    **{"hidden_size": 16, "mlp_size": 16, "num_heads": 2, "depth": 2},
}
INFERENCE = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "dataset_dir": "images",
    "output_dir": "$@bundle_root + '/eval'",
    "files": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "roi_size": [16, 16, 16],
    "network_def": NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 2.0]},
            {"_target_": "monai.transforms.ScaleIntensityd", "keys": "image"},
            {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @files]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@roi_size", "overlap": 0.25},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}],
    },
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        **{"device": "@device", "val_data_loader": "@dataloader", "network": "@network", "inferer": "@inferer"},
        "val_handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    },
    "run": ["$@evaluator.run()"],
}
TENSOR = {"type": "image", "format": "magnitude", "spatial_shape": ["4*n", "4*n", "4*n"], "dtype": "float32"}
METADATA = {
    "schema": "https://project-monai.github.io/schema/meta_schema_20240725.json",
    **{"version": "0.1.0", "changelog": {"0.1.0": "first"}, "name": "Test"},
    **{"monai_version": "1.6.1", "pytorch_version": "2.10.0", "numpy_version": "2.0.0"},
    "required_packages_version": {"monai_attention": "0.1.0"},
    **{"task": "Nothing", "description": "Made by a test", "authors": "A", "copyright": "C"},
    "gate": {"modalities": ["MR"], "spacing_mm": [0.5, 6], "min_extent_mm": 60},
    "network_data_format": {
        "inputs": {"image": TENSOR | {"num_channels": 1, "modality": "CT", "value_range": [0, 1]}},
        "outputs": {
            "pred": TENSOR
            | {"num_channels": 3, "value_range": [0, 1], "channel_def": {"0": "background", "1": "a", "2": "b"}}
        },
    },
}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=4), encoding="utf-8")
    return path


def make_bundle(folder: Path, inference: dict[str, Any] = INFERENCE, metadata: dict[str, Any] = METADATA) -> Path:
    from monai_attention.networks.flex_unetr import FlexUNETR

    torch.manual_seed(0)
    settings_ = {key: value for key, value in NETWORK.items() if key != "_target_"} | {"roi_size": [16, 16, 16]}
    (folder / "models").mkdir(parents=True)
    weights = folder / "models/model.pt"
    torch.save(FlexUNETR(**settings_).state_dict(), weights)
    record = {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "bytes": weights.stat().st_size}
    write(folder / "configs/metadata.json", metadata | {"weights": {"models/model.pt": record}})
    write(folder / "configs/inference.json", inference)
    write(folder / "LICENSE", "Apache-2.0")
    write(folder / "docs/README.md", "# Card")
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "test_bundle")


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call(*args, **kwargs)
    return caught.value


# Find and describe


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


def test_gate_comes_from_the_metadata_or_else_from_the_description_of_the_input(tmp_path: Path) -> None:
    own = make_bundle(tmp_path / "own")
    assert bundles.requirements(own) == Requirements(modalities=("MR",), spacing_mm=(0.5, 6), min_extent_mm=60)
    other = make_bundle(tmp_path / "other", metadata={key: METADATA[key] for key in METADATA if key != "gate"})
    assert bundles.requirements(other) == Requirements(modalities=("CT",))


@pytest.mark.parametrize("gate", [{"spacing": [1, 2]}, {"spacing_mm": [6, 0.5]}, {"modalities": "MR"}, ["MR"]])
def test_gate_that_is_not_understood_is_refused_rather_than_ignored(tmp_path: Path, gate: Any) -> None:
    error = refusal(bundles.requirements, make_bundle(tmp_path / "b", metadata=METADATA | {"gate": gate}))
    assert error.code == "E-BUNDLE-METADATA"
    assert "metadata.json: gate" in error.message


@pytest.mark.parametrize("stated", [{"c": [1, 2]}, {"a": [2, 1]}, {"a": 5}, ["a"]])
def test_plausible_volumes_that_are_not_understood_are_refused_rather_than_ignored(tmp_path: Path, stated: Any) -> None:
    error = refusal(bundles.load, make_bundle(tmp_path / "b", metadata=METADATA | {"plausible_ml": stated}))
    assert error.code == "E-BUNDLE-METADATA"
    assert "metadata.json: plausible_ml" in error.message


# Load


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


def test_the_interpreter_agrees_with_monai_about_the_language() -> None:
    from monai.bundle import ConfigParser

    tree = {
        "low": True,
        "root": "/data",
        "pair": {"a": [1, 2], "b": "@low"},
        "name": "$'a.pt' if @pair::b else 'b.pt'",
        "path": "$@root + '/models/' + @name",
        "spacing": "$[1.5, 1.5] if @pair#b else [3.0, 3.0]",
        "not": "$not @low",
        "literal": "$(1, 2.5, None)",
        "dtype": ["$torch.float16", "$np.int32"],
        "cpu": "$torch.device('cpu')",
        "mail": "someone@example.org",
        "alias": "$@pair::a",
        "list": [
            {"_target_": "torch.nn.ReLU", "_disabled_": True},
            {"_target_": "torch.nn.PReLU", "_disabled_": "$not @low", "num_parameters": "@pair::a::1"},
            {"_target_": "torch.nn.ELU", "_disabled_": "true"},
        ],
        "class": {"_target_": "torch.nn.ReLU", "_mode_": "callable", "_desc_": "a class", "_requires_": "@list"},
        "partial": {"_target_": "torch.nn.LeakyReLU", "_mode_": "callable", "negative_slope": 0.5},
    }
    ours, theirs = Builder(Config(Path("c.json"), tree)), ConfigParser(copy.deepcopy(tree))
    for id in set(tree) - {"list", "partial"}:
        assert ours.make(id) == theirs.get_parsed_content(id), id
    assert [str(one) for one in ours.make("list")] == [str(one) for one in theirs.get_parsed_content("list")]
    assert str(ours.make("partial")()) == str(theirs.get_parsed_content("partial")())
    assert ours.make("list") is ours.make("list")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roi_size": "@inferer"}, "refers to itself"),
        ({"roi_size": "@roi"}, "roi: needed, but not there"),
        ({"inferer": {"_target_": "SlidingWindowInferer", "roi_sise": 3}}, "roi_sise"),
        ({"network_def": {"_target_": "monai.networks.nets.SwinUNETR", "img_size": 96}}, "img_size"),
        ({"network_def": {"_target_": "ScaleIntensity"}}, "expected a network, got ScaleIntensity"),
    ],
)
def test_configuration_that_makes_nothing_is_refused_with_its_place(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    error = refusal(bundles.load, make_bundle(tmp_path / "b", INFERENCE | change))
    assert error.code == "E-BUNDLE-CONFIG"
    assert message in error.message
    assert "inference.json: " in error.message


def test_overrides_reach_configuration_and_metadata_and_nothing_else(bundle: Path) -> None:
    settings_ = dict(
        map(parse_override, ["inferer::overlap=0.5", "inferer#mode=gaussian", '_meta_::gate::modalities=["CT"]'])
    )
    loaded = bundles.load(bundle, overrides=settings_)
    assert loaded.inferer.overlap == 0.5
    assert loaded.inferer.mode == "gaussian"
    assert loaded.requirements.modalities == ("CT",)
    for key, value in {
        "inferer::overlap": "$__import__('os').getcwd()",
        "inferer::roi_size": ["@files"],
        "infrer::overlap": 0.5,
        "roi_size::3": 16,
        "new": 1,
    }.items():
        assert refusal(bundles.load, bundle, overrides={key: value}).code == "E-OVERRIDE", key
    assert refusal(parse_override, "overlap").code == "E-OVERRIDE"
    assert refusal(bundles.load, bundle, overrides={"inferer::_target_": "os.mkdir"}).code == "E-BUNDLE-UNTRUSTED"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda below: st.lists(below) | st.dictionaries(st.text(), below)
    )
)
@settings(max_examples=30, deadline=None)
def test_every_entry_of_a_configuration_has_its_line(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    tree = {"first": 1, "value": value, "last": 2}
    config = read_config(write(tmp_path_factory.getbasetemp() / "lines.json", tree))
    assert config.tree == tree
    assert set(config.lines) == {id for id, _ in walk(tree) if id}
    text = config.source.read_text().split("\n")
    assert text[config.lines["last"] - 1].strip() == '"last": 2'


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', "{'a': 1}", "[1]", '{"a": ' * 100 + "1" + "}" * 100, '{"a": ' * 100000, "\xff"]
)
def test_configuration_that_is_not_one_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text, encoding="latin-1")
    assert refusal(read_config, path).code == "E-BUNDLE-CONFIG"


# What a bundle may not do

MADE = "made-by-the-bundle"  # the folder that a payload makes if it is run


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
        r"|self\.(?:func|function)\("
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
        "$monai.data.load_decathlon_datalist(@list_path, data_list_key='testing', base_dir=@dataset_dir)",
        "$@checkpointloader(@evaluator)",
        "$setattr(torch.backends.cudnn, 'benchmark', True)",
        "$monai.utils.set_determinism(seed=123)",
        "$numpy.float32",
    ],
)
def test_expressions_of_published_bundles_are_on_the_list(text: str) -> None:
    assert bundle_trust.expression_for(text) is not None


# Weights and archives of a bundle


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


# Verify


def test_verify_passes_on_a_good_bundle_and_full_runs_it(bundle: Path) -> None:
    write(bundle / "configs/train.json", INFERENCE | {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 1}})
    result = verify(bundle, full=True)
    assert result.ok, result
    details = {check.name: check.detail for check in result.checks}
    assert "needs plain MONAI or --trust-bundle: 1 entries" in details["train.json"]
    assert "(1, 3, 4, 4, 4)" in details["run"]
    schema = json.loads((Path(__file__).parent / "data/meta_schema_20240725.json").read_text())
    jsonschema.validate(json.loads((bundle / "configs/metadata.json").read_text()), schema)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("files", lambda folder: (folder / "LICENSE").unlink()),
        ("metadata", lambda folder: write(folder / "configs/metadata.json", {})),
        ("changelog", lambda folder: write(folder / "configs/metadata.json", METADATA | {"version": "0.2.0"})),
        ("weights", lambda folder: (folder / bundles.WEIGHTS).write_bytes(b"")),
        ("weights", lambda folder: write(folder / "configs/metadata.json", METADATA)),
        ("inference.json", lambda folder: write(folder / "configs/inference.json", INFERENCE | {"a": "$1 + 1"})),
        ("run", lambda folder: write(folder / "configs/inference.json", INFERENCE | {"network_def": {}})),
    ],
)
def test_verify_names_what_is_wrong(bundle: Path, name: str, fault: Callable[[Path], Any]) -> None:
    fault(bundle)
    failed = {check.name: check.detail for check in verify(bundle, full=True).checks if not check.ok}
    assert name in failed


def test_smallest_size_of_monais_shapes() -> None:
    assert smallest_size([96, "*", "16*n", "2**p*n", "2**4*n"]) == (96, 32, 16, 2, 16)
    assert refusal(smallest_size, ["__import__('os')"]).code == "E-BUNDLE-METADATA"


@pytest.mark.parametrize("name", bundles.packaged_names())
def test_packaged_bundle_verifies_and_meets_monais_schema(name: str) -> None:
    result = verify(name, full=True)
    assert result.ok, [check for check in result.checks if not check.ok]
    schema = json.loads((Path(__file__).parent / "data/meta_schema_20240725.json").read_text())
    jsonschema.validate(read_config(bundles.find(name) / "configs/metadata.json").tree, schema)
