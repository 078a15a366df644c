"""Bundles: find, list, describe, verify and load them, running nothing they have not been allowed to.

A bundle is a folder (or a zip of one) after MONAI's specification: `LICENSE`, `configs/metadata.json`,
`configs/inference.json`, `models/model.pt`, `docs/README.md`. One that registers has a `registration_def` in its
`inference.json`, the model around its network; the others segment. Four keys of the metadata are ours: `gate` says
which volumes the bundle accepts (the fields of `monai_attention.io.volume.Requirements`), `plausible_ml` which volumes
of a class are believed without a look, `within_mm` how far a class is believed to reach from its middle, `weights` the
size and hash of each weights file. Whatever else a bundle may carry, such as `scripts/`, is never read.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_attention.bundle_build import MADE, Builder, make_trusted, without_loading
from monai_attention.bundle_config import (
    REFERENCE,
    TARGET,
    Config,
    is_component,
    lookup,
    override,
    reachable,
    read_config,
    references,
    walk,
)
from monai_attention.bundle_metadata import (
    channels,
    classes,
    expect_names,
    gate,
    plausible_reach,
    plausible_volumes,
    recorded_weights,
)
from monai_attention.bundle_trust import Finding, scan
from monai_attention.errors import Refusal
from monai_attention.io.volume import Requirements

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "models/model.pt"
_METADATA, _INFERENCE = "configs/metadata.json", "configs/inference.json"
_META = "_meta_"  # where MONAI keeps the metadata in the configuration


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle says about itself.

    Args:
        name: of the folder.
        folder: where it is.
        version: of the bundle.
        task: one line.
        description: a few sentences.
        purpose: `segment` or `register`.
        network: class of the network, as the configuration names it.
        classes: label value -> name; none of a bundle that registers.
        requirements: which volumes it accepts.
        channels: names of those of the image, in order; empty where they are not known.
        spacing_mm: voxel spacing the network works at, if the preprocessing states one.
        weights_bytes: size of the weights file, None if there is none.
        weights_sha256: hash the metadata records for it.
        trained: whether it has weights.
    """

    name: str
    folder: Path
    version: str
    task: str
    description: str
    purpose: str
    network: str
    classes: Mapping[int, str]
    requirements: Requirements
    channels: tuple[str, ...]
    spacing_mm: tuple[float, ...] | None
    weights_bytes: int | None
    weights_sha256: str | None
    trained: bool


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle ready to segment.

    Args:
        name: of the folder.
        version: of the bundle.
        network: with its weights, on the CPU, in evaluation mode.
        preprocessing: dict with `image`, a channel-first MetaTensor -> the same as the network wants it. Loads nothing.
        inferer: (inputs, network) -> logits.
        metadata: content of `metadata.json`, with the overrides.
        classes: label value -> name.
        requirements: which volumes it accepts.
        plausible_ml: class name -> smallest and largest volume in mL that is believed without a look.
        within_mm: class name -> how far from its middle it is believed to reach without a look.
        weights_sha256: hash of the weights file that was loaded.
    """

    name: str
    version: str
    network: nn.Module
    preprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    inferer: Callable[..., Any]
    metadata: Mapping[str, Any]
    classes: Mapping[int, str]
    requirements: Requirements
    plausible_ml: Mapping[str, tuple[float, float]]
    within_mm: Mapping[str, float]
    weights_sha256: str


@dataclass(frozen=True)
class LoadedRegistration:
    """A bundle ready to register.

    Args:
        name: of the folder.
        version: of the bundle.
        model: (moving, fixed) -> ddf, with its weights, on the CPU, in evaluation mode; see
            `monai_attention.registration.model.RegistrationModel`.
        spacing_mm: voxel spacing that it works at, along x, y, z.
        requirements: which volumes it accepts.
        weights_sha256: hash of the weights file that was loaded.
    """

    name: str
    version: str
    model: nn.Module
    spacing_mm: tuple[float, float, float]
    requirements: Requirements
    weights_sha256: str


# Find


def packaged_root() -> Path:
    """The folder of the bundles that come with the program: inside an installed wheel, or beside the package."""
    package = Path(__file__).parent
    inside = package / "packaged_bundles"
    return inside if inside.is_dir() else package.parent / "bundles"


def packaged_names() -> list[str]:
    """Names of the bundles that come with the program."""
    return sorted(path.parent.parent.name for path in packaged_root().glob(f"*/{_METADATA}"))


def find(bundle: str | Path) -> Path:
    """The folder of a bundle.

    Args:
        bundle: name of a packaged bundle (which wins over a folder of that name), or path of a folder or zip. A zip is
            unpacked into a temporary folder that lasts as long as the process.

    Raises:
        Refusal: `E-BUNDLE-NOT-FOUND`, listing the packaged names; and those of `monai_attention.io.archives.extract`.
    """
    if str(bundle) in packaged_names():
        return packaged_root() / str(bundle)
    path = Path(bundle)
    if path.is_file() and path.suffix == ".zip":
        status = path.stat()
        folder = Path(_unpacked(path.resolve(), status.st_mtime_ns, status.st_size).name) / path.resolve().stem
        candidates = [folder, *sorted(folder.iterdir())]
    else:
        candidates = [path]
    for candidate in candidates:
        if (candidate / _METADATA).is_file():
            return candidate.resolve()
    known = ", ".join(packaged_names()) or "none"
    message = f"no bundle here: expected a packaged name ({known}), or a folder or zip with {_METADATA}"
    raise Refusal("E-BUNDLE-NOT-FOUND", message, path=path, remedy="see monai-attention bundles list")


@functools.cache
def _unpacked(archive: Path, modified: int, size: int) -> tempfile.TemporaryDirectory:
    """An archive's content, unpacked once; time and size are there so that a changed archive is unpacked again."""
    from monai_attention.io.archives import extract

    folder = tempfile.TemporaryDirectory(prefix="bundle-")
    inside = Path(folder.name) / archive.stem  # the name of a bundle that lies in no folder there
    inside.mkdir()
    extract(archive, inside)
    return folder


# Describe


def list_bundles() -> list[BundleInfo]:
    """The bundles that come with the program."""
    return [info(name) for name in packaged_names()]


def info(bundle: str | Path) -> BundleInfo:
    """Describe a bundle from its files as data; imports neither torch nor monai."""
    folder = find(bundle)
    metadata, inference = read_config(folder / _METADATA), read_config(folder / _INFERENCE)
    weights = folder / WEIGHTS
    network = inference.tree.get("network_def", {})
    return BundleInfo(
        name=folder.name,
        folder=folder,
        version=str(metadata.tree.get("version", "")),
        task=str(metadata.tree.get("task", "")),
        description=str(metadata.tree.get("description", "")),
        purpose=purpose(inference),
        network=str(network.get(TARGET, "")) if isinstance(network, dict) else "",
        classes=classes(metadata) if purpose(inference) == "segment" else {},
        requirements=gate(metadata),
        channels=channels(metadata),
        spacing_mm=_working_spacing(inference),
        weights_bytes=weights.stat().st_size if weights.is_file() else None,
        weights_sha256=recorded_weights(metadata, WEIGHTS)[0],
        trained=weights.is_file(),
    )


def requirements(bundle: str | Path) -> Requirements:
    """Which volumes a bundle accepts: its `gate`, and for what that leaves open, MONAI's description of its input."""
    return gate(read_config(find(bundle) / _METADATA))


def purpose(inference: Config) -> str:
    """What a bundle is for: `segment` or `register`."""
    return "register" if "registration_def" in inference.tree else "segment"


def expect_purpose(purpose: str, wanted: str, folder: Path) -> None:
    """E-BUNDLE-PURPOSE if a bundle is for something else than what is wanted of it."""
    if purpose != wanted:
        remedy = f"use it with monai-attention {purpose}; `bundles list` shows what each is for"
        message = f"this bundle does not {wanted}, it is there to {purpose}"
        raise Refusal("E-BUNDLE-PURPOSE", message, path=folder, remedy=remedy)


def identity(bundle: str | Path) -> list[str | None]:
    """What tells a bundle from others and from itself before somebody edited it; changes of it change results."""
    one = info(bundle)
    files = (one.folder / _METADATA, one.folder / _INFERENCE)
    configuration = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
    weights = one.weights_sha256
    if weights is None and one.trained:
        from monai_attention.checkpoints import file_sha256

        weights = file_sha256(one.folder / WEIGHTS)
    return [one.name, one.version, weights, configuration]


def _working_spacing(inference: Config) -> tuple[float, ...] | None:
    """The `pixdim` of the preprocessing's Spacing, if it is written in numbers (or refers to some); makes no object."""
    for id in sorted(reachable(inference.tree, ("preprocessing",))):
        value = lookup(inference.tree, id)
        if is_component(value) and str(value[TARGET]).rpartition(".")[2] in ("Spacing", "Spacingd"):
            pixdim = value.get("pixdim")
            if isinstance(pixdim, str) and REFERENCE.fullmatch(pixdim.replace("#", "::")):
                named = references(pixdim)[0]
                if any(is_component(lookup(inference.tree, one)) for one in reachable(inference.tree, (named,))):
                    return None
                pixdim = Builder(inference).make(named)
            if isinstance(pixdim, list) and all(isinstance(one, (int, float)) for one in pixdim):
                return tuple(float(one) for one in pixdim)
    return None


# Load


def load(bundle: str | Path, *, trust: bool = False, overrides: Mapping[str, Any] | None = None) -> LoadedBundle:
    """Make a bundle's network, preprocessing and inferer, and load its weights, all of them or none.

    Args:
        bundle: see `find`.
        trust: let MONAI run the configuration as it is, with whatever code it names.
        overrides: ids and plain values to put there, for example {"inferer::overlap": 0.5}; ids that begin with
            `_meta_::` are in the metadata.

    Raises:
        Refusal: `E-BUNDLE-UNTRUSTED` (the configuration asks for something that is not on the list, with place and
            line), `E-BUNDLE-CONFIG` (overlapping classes among others), `E-BUNDLE-METADATA`, `E-BUNDLE-INCOMPLETE`,
            `E-OVERRIDE`; and those of `find` and of `monai_attention.checkpoints.load_weights`.
    """
    metadata, inference, made, sha256 = _made(bundle, "segment", trust, overrides or {})
    expect_names(metadata)
    _expect_one_class_a_voxel(inference)
    return LoadedBundle(
        name=metadata.source.parent.parent.name,
        version=str(metadata.tree.get("version", "")),
        network=made["network_def"].eval(),
        preprocessing=made["preprocessing"],
        inferer=made["inferer"],
        metadata=metadata.tree,
        classes=classes(metadata),
        requirements=gate(metadata),
        plausible_ml=plausible_volumes(metadata),
        within_mm=plausible_reach(metadata),
        weights_sha256=sha256,
    )


def _expect_one_class_a_voxel(inference: Config) -> None:
    """Refuse classes that have a probability of their own each: they may overlap."""
    for id, value in walk(inference.tree):
        if is_component(value) and value.get("sigmoid") is True:
            message = f"{inference.where(id)}: expected one class a voxel, got overlapping ones (sigmoid)"
            remedy = "run this bundle with `python -m monai.bundle run`, and fine-tune another"
            raise Refusal("E-BUNDLE-CONFIG", message, path=inference.source, remedy=remedy)


def load_registration(
    bundle: str | Path, *, trust: bool = False, overrides: Mapping[str, Any] | None = None
) -> LoadedRegistration:
    """Make a bundle's registration model, with its weights.

    Args:
        bundle: see `find`.
        trust: see `load`.
        overrides: see `load`.

    Raises:
        Refusal: those of `load`.
    """
    metadata, inference, made, sha256 = _made(bundle, "register", trust, overrides or {})
    spacing = _working_spacing(inference)
    if spacing is None or len(spacing) != 3:
        message = f"{inference.where('preprocessing')}: expected Spacingd with three numbers, the model's spacing"
        raise Refusal("E-BUNDLE-CONFIG", message, path=inference.source)
    return LoadedRegistration(
        name=metadata.source.parent.parent.name,
        version=str(metadata.tree.get("version", "")),
        model=made["registration_def"].eval(),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        requirements=gate(metadata),
        weights_sha256=sha256,
    )


def _made(
    bundle: str | Path, wanted: str, trust: bool, overrides: Mapping[str, Any]
) -> tuple[Config, Config, dict[str, Any], str]:
    """Metadata, configuration, objects and hash of the weights of a bundle that is for what is wanted of it."""
    from torch import nn

    from monai_attention.checkpoints import load_weights

    folder = find(bundle)
    metadata, inference = configurations(folder, overrides)
    expect_purpose(purpose(inference), wanted, folder)
    if not trust:
        refuse(untrusted(metadata, inference))
    builder, ids = Builder(inference), MADE[wanted]
    made = make_trusted(inference, folder, ids) if trust else {id: builder.make(id) for id in ids}
    for id in set(ids) & {"network_def", "registration_def"}:
        if not isinstance(made[id], nn.Module):
            message = f"{inference.where(id)}: expected a network, got {type(made[id]).__name__}"
            raise Refusal("E-BUNDLE-CONFIG", message, path=inference.source)
    sha256, size = recorded_weights(metadata, WEIGHTS)
    report = load_weights(made["network_def"], folder / WEIGHTS, sha256=sha256, size=size)
    return metadata, inference, made, report.sha256


def configurations(folder: Path, overrides: Mapping[str, Any]) -> tuple[Config, Config]:
    """Metadata and inference configuration of a bundle, with overrides, ready to make from.

    As with MONAI the metadata is at `_meta_` in the configuration, so that both can be referred to and overridden.
    """
    metadata, inference = read_config(folder / _METADATA), read_config(folder / _INFERENCE)
    tree = override({**inference.tree, _META: metadata.tree}, overrides)
    if "bundle_root" in tree:
        tree["bundle_root"] = str(folder)
    return replace(metadata, tree=tree[_META]), replace(inference, tree=without_loading(tree))


def untrusted(metadata: Config, inference: Config) -> list[Finding]:
    """Everything in a bundle's configuration that is not on the list."""
    made = reachable(inference.tree, MADE[purpose(inference)])
    own = {key: value for key, value in inference.tree.items() if key != _META}
    in_metadata = {id.removeprefix(f"{_META}::") for id in made if id.startswith(f"{_META}::")}
    return scan(replace(inference, tree=own), made) + scan(metadata, in_metadata)


def refuse(findings: list[Finding]) -> None:
    """Raise if there are findings, naming the first five."""
    if findings:
        more = f"; and {len(findings) - 5} more" if len(findings) > 5 else ""
        message = "not allowed: " + "; ".join(str(finding) for finding in findings[:5]) + more
        remedy = "if you trust its publisher with your computer, --trust-bundle runs it as it is"
        raise Refusal("E-BUNDLE-UNTRUSTED", message, path=findings[0].source, remedy=remedy)
