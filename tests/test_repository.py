"""The repository itself: what lies where, what imports what, and that the card is whole."""

import ast
import functools
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import monai_attention

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "monai_attention"

AT_THE_ROOT = {
    *(".ci", ".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "NOTICE"),
    *(
        "README.md",
        "benchmarks",
        "bundles",
        "constraints.txt",
        "docs",
        "monai_attention",
        "pyproject.toml",
        "setup.py",
        "tests",
    ),
    "tutorials",
}

# Who may import whom: the first part of the name below the package; every `bundle_*` counts as `bundles`.
# A file of its own (`inference.demo`) may import its room's and what stands beside it.
ARROWS = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "columns": set(),
    "io": {"errors", "columns"},
    "layouts": {"errors"},
    "checkpoints": {"errors", "io", "layouts"},
    "bundles": {"errors", "io", "checkpoints"},
    "report": {"errors", "io"},
    "blocks": {"errors"},
    "acceleration": {"errors", "blocks"},
    "networks": {"errors", "blocks"},
    "cohort": {"errors", "io", "report"},
    "registration": {"errors", "io", "bundles", "checkpoints", "blocks", "report", "cohort"},
    "synthesis": {"errors", "registration"},
    "inference": {"errors", "io", "bundles", "checkpoints", "report", "cohort"},
    "inference.demo": {"synthesis"},
    "finetune": {"errors", "columns", "io", "bundles", "checkpoints", "report", "cohort", "inference"},
    "cli_options": {"io"},
    "cli_registration": {"cli_options", "registration"},
    "cli_finetune": {"cli_options", "columns", "finetune", "io", "report"},
    "cli": {"errors", "io", "bundles", "cohort", "report", "inference", "registration", "finetune", "cli_options"}
    | {"cli_registration", "cli_finetune"},
}
# What of others the rooms of networks may import; the rest of the package is free.
OTHERS = {"blocks": ("torch", "monai.networks"), "networks": ("torch", "monai.networks")}


@functools.cache
def modules():
    """Every module of the package: dotted name below the package -> file."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def room(name):
    first = name.partition(".")[0]
    return "bundles" if first.startswith("bundle_") else first


@functools.cache
def imported(path):
    """Full names a file imports, anywhere in it; `from a import b` gives a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def own(path):
    """Modules of the package that a file imports, as `modules()` names them."""
    known = modules()
    for name in imported(path):
        if name.startswith("monai_attention."):
            below = name.removeprefix("monai_attention.")
            while below and below not in known and f"{below}.__init__" not in known:
                below = below.rpartition(".")[0]
            yield below if below in known else f"{below}.__init__" if below else "__init__"


def wrong_arrows(files):
    for name, path in files.items():
        here = room(name)
        allowed = ARROWS[here] | ARROWS.get(name, set()) | {here, "__init__"}
        yield from (f"{name} -> {other}" for other in own(path) if room(other) not in allowed)
        if here in OTHERS:
            for other in imported(path):
                if other.partition(".")[0] not in (*sys.stdlib_module_names, "monai_attention") and not any(
                    other == given or other.startswith(f"{given}.") for given in OTHERS[here]
                ):
                    yield f"{name} -> {other}"
        if here == "networks":
            yield from (f"{name} -> {other}" for other in own(path) if room(other) == here)


def test_imports_go_one_way():
    assert list(wrong_arrows(modules())) == []


def test_no_module_imports_itself_round_a_corner():
    graph = {name: set(own(path)) - {name} for name, path in modules().items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("io.volume", "import monai_attention.report.page"),
        ("io.volume", "def later():\n    from monai_attention import bundles"),
        ("networks.nnformer", "from monai_attention.networks.flex_unetr import FlexUNETR"),
        ("networks.nnformer", "from monai.transforms import Compose"),
        ("inference.segment", "from monai_attention.synthesis import phantom"),
        ("bundle_trust", "from monai_attention.inference.segment import segment"),
    ],
)
def test_a_wrong_arrow_is_seen(name, line, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(line)
    assert list(wrong_arrows({name: file}))


def test_importing_the_package_and_its_readers_imports_neither_torch_nor_monai():
    io = sorted(name for name in modules() if name.startswith("io."))
    code = "import importlib, sys\n"
    for name in ["monai_attention", *(f"monai_attention.{name}" for name in io)]:
        code += f"importlib.import_module({name!r}); assert not {{'torch', 'monai'}} & set(sys.modules), {name!r}\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def tracked():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name]


def test_the_root_holds_what_belongs_there():
    assert {path.parts[0] for path in tracked()} <= AT_THE_ROOT


def test_no_fixture_is_large():
    large = [path for path in tracked() if path.parts[0] == "tests" and (ROOT / path).stat().st_size > 100_000]
    assert large == []


def test_bundles_hold_no_python():
    assert list((ROOT / "bundles").rglob("*.py")) == []


def test_links_between_documents_lead_somewhere():
    documents = [*ROOT.glob("*.md"), ROOT / "tests/FAULTS.md", *(ROOT / "bundles").glob("*/docs/*.md")]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_citation_says_what_it_must():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    top = dict(re.findall(r"^([a-z-]+): *(.*)$", text, re.MULTILINE))
    assert {"cff-version", "message", "title", "authors", "references"} <= set(top)
    assert (top["cff-version"], top["type"], top["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert top["version"] == monai_attention.__version__
    papers = re.split(r"^  - (?=type: )", text.partition("\nreferences:\n")[2], flags=re.MULTILINE)[1:]
    for paper in papers:
        keys = set(re.findall(r"^(?:    )?([a-z-]+):", paper, re.MULTILINE))
        assert {"type", "title", "authors", "year", "notes"} <= keys, paper
        assert keys & {"journal", "collection-title"}, paper
    for network in ("UNETR:", "Swin UNETR:", "nnFormer:", "TransMorph:", "MBANet:", "SynthSeg:", "MONAI:"):
        assert sum(f'title: "{network}' in paper for paper in papers) == 1, network


def test_the_tested_versions_are_ones_that_setup_allows():
    from packaging.requirements import Requirement

    pins = dict(re.findall(r"^([a-z-]+\d*[a-z-]*)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    asked = [Requirement(text) for text in re.findall(r'"([a-z-]+[<>][^"]*)"', (ROOT / "setup.py").read_text())]
    assert len(asked) > 10
    for one in asked:
        assert one.specifier.contains(pins[one.name]), one
