"""Verify a bundle: its files, its metadata, what its configurations ask for, its weights; if asked, that it runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_attention import bundles
from monai_attention.bundle_config import Config, read_config
from monai_attention.bundle_metadata import (
    classes,
    expect_names,
    gate,
    plausible_reach,
    plausible_volumes,
    recorded_weights,
    tensor,
)
from monai_attention.bundle_trust import scan
from monai_attention.errors import Refusal

_FILES = ("LICENSE", "configs/metadata.json", "configs/inference.json", bundles.WEIGHTS, "docs/README.md")
_TEXTS = (
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version"),
    *("task", "description", "authors", "copyright"),
)
_TENSOR_KEYS = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, whether it is as it should be, and what was found."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """All checks of a bundle; it is `ok` if all are."""

    bundle: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)


def verify(bundle: str | Path, *, full: bool = False) -> Verification:
    """Check a bundle without running anything of it; with `full`, also load it and run it on a small random volume.

    Raises:
        Refusal: `E-BUNDLE-NOT-FOUND` only; every other fault is a check that failed.
    """
    folder = bundles.find(bundle)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("files", lambda: _files(folder)),
        ("metadata", lambda: _metadata(read_config(folder / "configs/metadata.json"))),
        ("changelog", lambda: _changelog(read_config(folder / "configs/metadata.json"))),
        ("weights", lambda: _weights(folder)),
        ("inference.json", lambda: _inference(folder)),
        *(
            (path.name, lambda path=path: _other(path))
            for path in sorted((folder / "configs").glob("*.json"))
            if path.name not in ("metadata.json", "inference.json")
        ),
        ("code", lambda: _code(folder)),
    ]
    if full:
        checks.append(("run", lambda: _run(folder)))
    return Verification(folder.name, tuple(_check(name, look) for name, look in checks))


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except Refusal as error:
        return Check(name, False, str(error))


def _files(folder: Path) -> str:
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise Refusal("E-BUNDLE-INCOMPLETE", f"missing: {', '.join(missing)}", path=folder)
    return f"all {len(_FILES)} required files"


def _metadata(metadata: Config) -> str:
    """The keys that MONAI's metadata schema requires, and ours."""
    tree = metadata.tree
    wrong = [key for key in _TEXTS if not isinstance(tree.get(key), str)]
    wrong += [
        key for key in ("required_packages_version", "network_data_format") if not isinstance(tree.get(key), dict)
    ]
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        described = tensor(metadata, side, name)
        wrong += [f"network_data_format::{side}::{name}::{key}" for key in _TENSOR_KEYS if key not in described]
    if wrong:
        message = f"missing, or not of the right type: {', '.join(wrong)}"
        raise Refusal("E-BUNDLE-METADATA", message, path=metadata.source)
    expect_names(metadata)
    gate(metadata)
    plausible_volumes(metadata)
    plausible_reach(metadata)
    return f"version {tree['version']}, {len(classes(metadata))} channels of output"


def _changelog(metadata: Config) -> str:
    version, changelog = metadata.tree.get("version"), metadata.tree.get("changelog", {})
    if not isinstance(changelog, dict) or version not in changelog:
        raise Refusal("E-BUNDLE-METADATA", f"changelog has no entry for version {version}", path=metadata.source)
    return str(changelog[version])


def _weights(folder: Path) -> str:
    from monai_attention.checkpoints import file_sha256

    sha256, size = recorded_weights(read_config(folder / "configs/metadata.json"), bundles.WEIGHTS)
    path = folder / bundles.WEIGHTS
    if not path.is_file():
        raise Refusal("E-WEIGHTS-MISSING", "there is no such weights file", path=path)
    found, found_size = file_sha256(path), path.stat().st_size
    if (sha256, size) != (found, found_size):
        message = f"file size {found_size}, sha256 {found}; the metadata records {size}, {sha256}"
        raise Refusal("E-WEIGHTS-CORRUPT", message, path=path)
    return f"{size} bytes, sha256 {sha256}"


def _inference(folder: Path) -> str:
    bundles.refuse(bundles.untrusted(*bundles.configurations(folder, {})))
    return "asks for nothing that is not on the list"


def _other(path: Path) -> str:
    """A configuration that only MONAI runs: what it asks for is worth saying, not worth refusing."""
    findings = scan(read_config(path))
    if not findings:
        return "asks for nothing that is not on the list"
    return f"needs plain MONAI or --trust-bundle: {len(findings)} entries, first {findings[0]}"


def _code(folder: Path) -> str:
    carried = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py"))
    return f"carries {', '.join(carried)}; never imported without --trust-bundle" if carried else "none"


def _run(folder: Path) -> str:
    import torch

    metadata, inference = bundles.configurations(folder, {})
    image = tensor(metadata, "inputs", "image")
    if missing := {"num_channels", "spatial_shape"} - image.keys():
        message = f"network_data_format::inputs::image lacks {', '.join(sorted(missing))}"
        raise Refusal("E-BUNDLE-METADATA", message, path=metadata.source)
    size = smallest_size(image["spatial_shape"])
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(1, image["num_channels"], *size, generator=generator)
    if bundles.purpose(inference) == "register":
        model, given = bundles.load_registration(folder).model, example.chunk(2, dim=1)
        what, channels = "a displacement", len(size)
    else:
        loaded = bundles.load(folder)
        model, given = loaded.network, (example,)
        what, channels = "logits", len(loaded.classes)
    try:
        with torch.inference_mode():
            found = model(*given)
    except Exception as error:  # whatever a network raises, it is a check that failed
        message = f"an image of {size} makes the network fail: {type(error).__name__}: {error}"
        raise Refusal("E-BUNDLE-OUTPUT", message, path=folder) from error
    if tuple(found.shape) != (1, channels, *size) or not bool(found.isfinite().all()):
        state = "finite" if bool(found.isfinite().all()) else "not finite"
        message = f"expected {what}, finite, of shape {(1, channels, *size)}; got shape {tuple(found.shape)}, {state}"
        raise Refusal("E-BUNDLE-OUTPUT", message, path=folder)
    return f"{what} {tuple(found.shape)} from an image of {size}"


def smallest_size(spatial_shape: Sequence[int | str]) -> tuple[int, ...]:
    """The smallest input that MONAI's `spatial_shape` allows: numbers, `*` (here 32), or products such as `2**p*n`.

    Raises:
        Refusal: `E-BUNDLE-METADATA` for anything else.
    """
    return tuple(_smallest(one) for one in spatial_shape)


def _smallest(size: int | str) -> int:
    if size == "*":
        return 32
    factors = [
        re.sub(r"\b[pn]\b", "1", factor.strip()).split("^") for factor in str(size).replace("**", "^").split("*")
    ]
    if not all(part.strip().isdecimal() for factor in factors for part in factor) or any(len(f) > 2 for f in factors):
        raise Refusal("E-BUNDLE-METADATA", f"spatial_shape {size!r}: expected a number, '*', or a product such as 16*n")
    return math.prod(int(base) ** int(power[0] if power else 1) for base, *power in factors)
