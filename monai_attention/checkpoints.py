"""Strict, hashed, weights-only loading of checkpoints; `monai_attention.layouts` knows other people's."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_attention.errors import Refusal
from monai_attention.io.write import replacing, write_json
from monai_attention.layouts import LAYOUTS, Converted, StateDict

logger = logging.getLogger(__name__)

# A checkpoint may hold the weights directly or, as trainers write it, one level down under one of these keys.
_WRAPPERS = ("state_dict", "model", "network")
_AGAIN = "fetch the file again and compare its sha256 with the publisher's"


@dataclass(frozen=True)
class Report:
    """What loading a checkpoint did.

    Args:
        sha256: hash of the file.
        layout: layout the keys were converted from, or None if they fitted as they were.
        dropped: keys of the file that the layout carries but never uses.
        fresh: keys of the network that the layout does not have, which keep their values.
        cast: dtypes in the file that were cast to the network's, for example ("float16",).
    """

    sha256: str
    layout: str | None = None
    dropped: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    cast: tuple[str, ...] = ()


def read_state_dict(path: str | Path, *, sha256: str | None = None, size: int | None = None) -> StateDict:
    """The tensors of a checkpoint, by name; nothing in the file is executed.

    Args:
        path: a file written by `torch.save`: a state dict, or a dict that holds one as `state_dict`, `model` or
            `network`. A `module.` before every name (left by data-parallel training) is taken off.
        sha256: expected hash; compared before the file is unpickled.
        size: expected size in bytes, to tell a truncated file from a changed one.

    Raises:
        Refusal: `E-WEIGHTS-MISSING`, `E-WEIGHTS-CORRUPT` (truncated, changed or unreadable), `E-WEIGHTS-PICKLE` (the
            file asks for code to be run), `E-WEIGHTS-FORMAT` (it holds something else than tensors).
    """
    return _read(Path(path), sha256, size)[0]


def load_weights(
    network: nn.Module,
    path: str | Path,
    *,
    layout: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
) -> Report:
    """Load every tensor of a checkpoint into the network, or none.

    Args:
        network: receives the weights, cast to its own dtypes.
        path: see `read_state_dict`.
        layout: one of `LAYOUTS`; None: keys that fit are taken as they are, others are recognised if possible.
        sha256: see `read_state_dict`.
        size: see `read_state_dict`.

    Raises:
        Refusal: `E-WEIGHTS-MISMATCH`, naming missing, unexpected and misshapen keys; `E-WEIGHTS-LAYOUT` if the keys
            belong to several layouts; and those of `read_state_dict`.
    """
    state, digest = _read(Path(path), sha256, size)
    dropped: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    try:
        layout = layout or _layout_for(state, network)
        if layout is not None:
            state, dropped, fresh = convert(state, layout, network)
    except Refusal as refusal:  # of the weights; here is known which file they are from
        raise Refusal(refusal.code, refusal.message, path=path, remedy=refusal.remedy) from refusal
    if layout is not None:
        logger.info("converted from %s; %d unused keys dropped", layout, len(dropped))
        if fresh:
            logger.warning("not in the file, left untrained: %s", _ten(fresh))
    if problem := mismatch(state, network.state_dict()):
        remedy = "the bundle's network_def and its weights do not belong together"
        raise Refusal("E-WEIGHTS-MISMATCH", problem, path=path, remedy=remedy)
    own = network.state_dict()
    cast = {str(t.dtype).removeprefix("torch.") for key, t in state.items() if t.dtype != own[key].dtype}
    network.load_state_dict(state, strict=True)  # copies into the network's own tensors, so their dtype stays
    return Report(sha256=digest, layout=layout, dropped=dropped, fresh=fresh, cast=tuple(sorted(cast)))


def convert(state: Mapping[str, Tensor], layout: str, network: nn.Module) -> Converted:
    """Rename and reshape a foreign state dict for one of our networks.

    Args:
        state: tensors by their names in the foreign layout.
        layout: one of `LAYOUTS`.
        network: the target; tells what the file cannot (the grid of a position table, the shape of a patch).

    Raises:
        Refusal: `E-WEIGHTS-MISMATCH` if position tables belong to other windows than the network's.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {tuple(LAYOUTS)}; got {layout!r}")
    if type(network).__name__ != LAYOUTS[layout].network:
        raise ValueError(f"layout {layout!r} converts to {LAYOUTS[layout].network}; got {type(network).__name__}")
    return LAYOUTS[layout].convert(state, network)


def release_weights(path: str | Path, bundle: str | Path) -> str:
    """Put a training's checkpoint into a bundle: `models/model.pt`, a plain state dict in half precision.

    The metadata of the bundle records the file's size and hash, by which loading knows it.

    Args:
        path: see `read_state_dict`.
        bundle: folder of the bundle.

    Returns:
        The hash, hexadecimal.

    Raises:
        Refusal: E-LOSS, a number is NaN, infinite, or too large for half precision.
    """
    folder = Path(bundle)
    state = {k: t.half() if t.is_floating_point() else t for k, t in read_state_dict(path).items()}
    if broken := sorted(name for name, tensor in state.items() if not tensor.isfinite().all()):
        message = f"{broken[0]} holds NaN, infinity or numbers above 65504"
        raise Refusal(
            "E-LOSS", message, path=Path(path), remedy="begin anew in another folder, at a lower learning_rate"
        )
    (folder / "models").mkdir(exist_ok=True)
    with replacing(folder / "models/model.pt") as temporary:
        torch.save(state, temporary)
    digest = file_sha256(folder / "models/model.pt")
    metadata = folder / "configs/metadata.json"
    content = json.loads(metadata.read_text(encoding="utf-8"))
    size = (folder / "models/model.pt").stat().st_size
    content["weights"] = {"models/model.pt": {"sha256": digest, "bytes": size}}
    write_json(metadata, content)
    return digest


def file_sha256(path: str | Path) -> str:
    """Hash of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path, sha256: str | None, size: int | None) -> tuple[StateDict, str]:
    """The tensors and the hash of the very bytes they came from."""
    if not path.is_file():
        remedy = "fetch the weights; if the bundle has none yet, its docs/README.md says how to train them"
        raise Refusal("E-WEIGHTS-MISSING", "there is no such weights file", path=path, remedy=remedy)
    content = path.read_bytes()  # hashed and unpickled from memory: the file cannot change in between
    digest = hashlib.sha256(content).hexdigest()
    if size not in (None, len(content)) or sha256 not in (None, digest):
        expected = ", ".join([f"{size} bytes"] * (size is not None) + [f"sha256 {sha256}"] * (sha256 is not None))
        message = f"file size {len(content)} bytes, sha256 {digest}; expected {expected}"
        raise Refusal("E-WEIGHTS-CORRUPT", message, path=path, remedy=_AGAIN)
    return _tensors(_unpickle(content, path), path), digest


def _unpickle(content: bytes, path: Path) -> object:
    """The checkpoint's object, by torch's weights-only unpickler: it builds tensors and containers, calls nothing."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))  # the first callable or class that is not a tensor's
        if asked is None:
            raise _unreadable(content, path) from error
        message = f"loading the checkpoint would call {asked[1]}"
        remedy = "do not use this file; ask its publisher for a plain state dict"
        raise Refusal("E-WEIGHTS-PICKLE", message, path=path, remedy=remedy) from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            remedy = "use the bundle's models/model.pt, a plain state dict"
            raise Refusal("E-WEIGHTS-FORMAT", "a TorchScript program, not weights", path=path, remedy=remedy) from error
        raise _unreadable(content, path) from error
    except (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError) as error:
        raise _unreadable(content, path) from error  # the unpickler's ways of failing on damaged bytes


def _unreadable(content: bytes, path: Path) -> Refusal:
    return Refusal(
        "E-WEIGHTS-CORRUPT",
        f"not a readable checkpoint: file size {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}",
        path=path,
        remedy=_AGAIN,
    )


def _tensors(content: object, path: Path) -> StateDict:
    """Unwrap a checkpoint down to names and tensors."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        message = f"expected a state dict, got {type(content).__name__}{' without entries' if content == {} else ''}"
        raise Refusal("E-WEIGHTS-FORMAT", message, path=path)
    others = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        raise Refusal("E-WEIGHTS-FORMAT", f"entries that are not named tensors: {_ten(others)}", path=path)
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def mismatch(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Every way in which the keys do not fit, or an empty string."""
    misshapen = [
        f"{key} {tuple(given[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    groups = {
        "missing": [key for key in wanted if key not in given],
        "unexpected": [key for key in given if key not in wanted],
        "misshapen": misshapen,
    }
    return "; ".join(f"{len(keys)} {name} keys: {_ten(keys)}" for name, keys in groups.items() if keys)


def _layout_for(state: Mapping[str, Tensor], network: nn.Module) -> str | None:
    """The layout to convert from; None if the keys fit as they are, or are nobody's we know."""
    if state.keys() == network.state_dict().keys():
        return None
    kind = type(network).__name__
    names = [name for name, one in LAYOUTS.items() if one.known_by in state and one.network == kind]
    if len(names) > 1:
        message = f"the keys are those of {', '.join(names)}, and do not tell which"
        remedy = "say which one with layout=...; monai_attention.layouts tells them apart"
        raise Refusal("E-WEIGHTS-LAYOUT", message, remedy=remedy)
    return names[0] if names else None


def _ten(names: Iterable[str]) -> str:
    """The first ten names."""
    names = list(names)
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
