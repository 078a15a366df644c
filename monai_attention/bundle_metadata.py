"""What a bundle's metadata says: its classes, the volumes it accepts, the hash of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai_attention.bundle_config import Config, lookup
from monai_attention.errors import Refusal
from monai_attention.io.volume import Requirements

# How other people's metadata spell a DICOM modality.
_MODALITIES = {"MRI": "MR", "PET": "PT"} | {
    code: code for code in ("CT", "MR", "PT", "US", "CR", "DX", "MG", "NM", "XA")
}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value)) and value[0] <= value[1]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_GATE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "modalities": (_texts, "a list of DICOM modalities"),
    "channels": (lambda value: isinstance(value, int) and value > 0, "a number of channels"),
    "spacing_mm": (_pair, "[smallest, largest]"),
    "min_extent_mm": (_number, "a length in mm"),
    "needs_orientation": (lambda value: isinstance(value, bool), "true or false"),
    "value_range": (lambda value: value is None or _pair(value), "[low, high] or null"),
}


def gate(metadata: Config) -> Requirements:
    """Which volumes the bundle accepts: the `gate`, and for what that leaves open, MONAI's description of the input.

    Raises:
        Refusal: `E-BUNDLE-METADATA` if the gate says something we do not understand, so that no limit is overlooked.
    """
    image, stated = tensor(metadata, "inputs", "image"), metadata.tree.get("gate", {})
    if not isinstance(stated, dict):
        raise refusal(metadata, "gate", "expected an object", stated)
    for key, value in stated.items():
        valid, expected = _GATE.get(key, (lambda _: False, f"nothing but {', '.join(_GATE)}"))
        if not valid(value):
            raise refusal(metadata, f"gate::{key}", f"expected {expected}", value)
    modality = _MODALITIES.get(str(image.get("modality", "")).upper())
    found: dict[str, Any] = {"modalities": (modality,) if modality else (), "channels": image.get("num_channels", 1)}
    found |= {key: tuple(value) if isinstance(value, list) else value for key, value in stated.items()}
    return Requirements(**found)


def channels(metadata: Config) -> tuple[str, ...]:
    """Names of the image's channels, in order; empty where they have none."""
    defined = tensor(metadata, "inputs", "image").get("channel_def")
    names = defined if isinstance(defined, dict) else {}
    return tuple(str(names.get(str(i)) or "") for i in range(gate(metadata).channels))


def classes(metadata: Config) -> dict[int, str]:
    """Label value -> name, from the description of the network's output."""
    defined = tensor(metadata, "outputs", "pred").get("channel_def", {})
    try:
        return {int(value): str(name) for value, name in sorted(defined.items(), key=lambda item: int(item[0]))}
    except (ValueError, AttributeError):
        id = "network_data_format::outputs::pred::channel_def"
        raise refusal(metadata, id, "expected label values and their names", defined) from None


def expect_names(metadata: Config) -> None:
    """Refuse channels without a name, and names without a channel.

    Raises:
        Refusal: `E-BUNDLE-METADATA`.
    """
    names, channels = sorted(classes(metadata)), tensor(metadata, "outputs", "pred").get("num_channels")
    if not isinstance(channels, int) or names != list(range(channels)):
        message = f"channel_def names the channels {names}; num_channels of the output is {channels!r}"
        raise Refusal("E-BUNDLE-METADATA", message, path=metadata.source)


def plausible_volumes(metadata: Config) -> dict[str, tuple[float, float]]:
    """Class name -> smallest and largest volume in mL that is believed without a look, from `plausible_ml`.

    Raises:
        Refusal: `E-BUNDLE-METADATA` if it names what is no class, or says something we do not understand.
    """
    stated = _by_class(metadata, "plausible_ml", "[smallest, largest] mL", _pair)
    return {name: (low, high) for name, (low, high) in stated.items()}


def plausible_reach(metadata: Config) -> dict[str, float]:
    """Class name -> how many mm from its middle it is believed to reach without a look, from `within_mm`.

    Raises:
        Refusal: as `plausible_volumes`.
    """
    stated = _by_class(metadata, "within_mm", "a number of mm above 0", _positive)
    return {name: float(reach) for name, reach in stated.items()}


def _by_class(metadata: Config, key: str, expected: str, fits: Callable[[Any], bool]) -> dict[str, Any]:
    """What the metadata says of classes under a key."""
    stated, names = metadata.tree.get(key, {}), [name for value, name in classes(metadata).items() if value]
    if not isinstance(stated, dict):
        raise refusal(metadata, key, "expected an object", stated)
    for name, value in stated.items():
        if name not in names or not fits(value):
            raise refusal(metadata, f"{key}::{name}", f"expected a class and {expected}", value)
    return stated


def recorded_weights(metadata: Config, file: str) -> tuple[str | None, int | None]:
    """Hash and size of a weights file, as the metadata records them under `weights`."""
    try:
        record = lookup(metadata.tree, f"weights::{file}")
    except KeyError:
        return None, None
    sha256, size = (record.get("sha256"), record.get("bytes")) if isinstance(record, dict) else (None, None)
    if not (isinstance(sha256, str) and isinstance(size, int)):
        raise refusal(metadata, f"weights::{file}", "expected an object with sha256 and bytes", record)
    return sha256, size


def tensor(metadata: Config, side: str, name: str) -> dict[str, Any]:
    """MONAI's description of one input or output of the network; empty if there is none."""
    try:
        value = lookup(metadata.tree, f"network_data_format::{side}::{name}")
    except KeyError:
        return {}
    return value if isinstance(value, dict) else {}


def refusal(metadata: Config, id: str, expected: str, value: Any) -> Refusal:
    """The refusal of an entry, with its place."""
    message = f"{metadata.where(id)}: {expected}, got {str(value)[:80]!r}"
    return Refusal("E-BUNDLE-METADATA", message, path=metadata.source)
