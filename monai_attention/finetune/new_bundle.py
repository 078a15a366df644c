"""A new bundle from a source bundle and a cohort: configurations, first weights, prepared data; not trained yet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils.misc import ensure_tuple_rep

from monai_attention import __version__, bundles
from monai_attention.bundle_build import Builder
from monai_attention.bundle_config import Config, read_config
from monai_attention.bundle_metadata import gate
from monai_attention.bundles import LoadedBundle
from monai_attention.cohort.device import device_of
from monai_attention.errors import Refusal
from monai_attention.finetune.adapt import Adaptation, Named, adapt
from monai_attention.finetune.ends import find_ends, make_from
from monai_attention.finetune.folds import FOLDS, folds_of
from monai_attention.finetune.plan import Costs, Plan, measured, planned
from monai_attention.finetune.preflight import Preflight
from monai_attention.finetune.prepared import write_prepared
from monai_attention.finetune.recipe import inference_config, train_config
from monai_attention.io.read import DEFAULTS
from monai_attention.io.volume import ReadOptions, Requirements
from monai_attention.io.write import replacing, write_json

INITIAL = "models/initial.pt"
"""Weights that the training begins with."""


@dataclass(frozen=True)
class NewBundle:
    """What was made.

    Args:
        folder: of the bundle.
        plan: what its training will do.
        adaptation: what became of the source's weights.
        costs: of a training step, as measured.
    """

    folder: Path
    plan: Plan
    adaptation: Adaptation
    costs: Costs


def make_bundle(
    found: Preflight,
    folder: Path,
    source: str | Path,
    *,
    method: str = "full",
    epochs: int | None = None,
    seconds: float | None = None,
    fold: int = 0,
    device: str | None = None,
) -> NewBundle:
    """Write a bundle that is ready to be trained: all but its data, see `write_data`.

    Args:
        found: the cohort.
        folder: of the new bundle; made if needed.
        source: bundle whose architecture, preprocessing and weights are taken; see `bundles.find`.
        method: `full`, `lora` or `head`.
        epochs: of the training; see `plan.planned`.
        seconds: that the training may take.
        fold: held out.
        device: to train on; None takes CUDA if there is one.

    Raises:
        Refusal: the source cannot be loaded, or not be adapted.
    """
    place = device_of(device)
    loaded = bundles.load(source)
    origin = bundles.find(source)
    names = ("background", *found.classes.values())
    channels = len(found.data.channels)
    inference = inference_config(read_config(origin / "configs/inference.json"), channels=channels, classes=len(names))
    make = make_from(bundles.configurations(origin, {})[1])
    ends = find_ends(make, channels, len(names))
    torch.manual_seed(0)
    network = make(channels, len(names))
    adaptation = adapt(
        network,
        loaded.network.state_dict(),
        ends,
        source=Named(tuple(loaded.classes.values()), ("",) * loaded.requirements.channels),
        target=Named(names, ("",) * channels),
    )
    for name in ("models", "configs", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with replacing(folder / INITIAL) as temporary:
        torch.save(network.state_dict(), temporary)
    changed = {one.name for one in adaptation.changed}
    trained = [*ends.heads, *(name for name in ends.inputs if name in changed)]
    roi_size = _window(loaded)
    costs = measured(network, channels, roi_size, place)
    plan = planned(
        method, roi_size, names[1:], costs, place, oriented=_oriented(inference), epochs=epochs, seconds=seconds
    )
    metadata = _metadata(
        read_config(origin / "configs/metadata.json"), found, folder.name, f"{loaded.name} {loaded.version}"
    )
    write_json(folder / "configs/inference.json", inference)
    write_json(folder / "configs/train.json", train_config(inference, plan, trained=trained, fold=fold))
    write_json(folder / "configs/metadata.json", metadata)
    for name in ("LICENSE", "configs/logging.conf"):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    return NewBundle(folder, plan, adaptation, costs)


def write_data(
    found: Preflight, folder: Path, *, folds: int = FOLDS, options: ReadOptions = DEFAULTS, progress: bool = False
) -> list[dict[str, Any]]:
    """Prepare the cohort's usable cases in `data/` of a new bundle, as its own preprocessing does.

    Raises:
        Refusal: E-TOO-FEW; or what reading a case, or writing, raises.
    """
    cases = [one.case for one in found.usable]
    inference = bundles.configurations(folder, {})[1]
    return write_prepared(
        cases,
        folder / "data",
        Builder(inference).make("preprocessing"),
        classes=list(found.classes),
        channels=len(found.data.channels),
        folds=folds_of(cases, folds),
        recipe={key: value for key, value in inference.tree.items() if key in ("preprocessing", "spacing")},
        options=options,
        progress=progress,
    )


def _window(loaded: LoadedBundle) -> tuple[int, ...]:
    """Voxels of the windows that the source's network looks at: those of a crop."""
    if not isinstance(loaded.inferer, SlidingWindowInferer):
        message = f"expected a bundle with a SlidingWindowInferer, got {type(loaded.inferer).__name__}"
        raise Refusal("E-BUNDLE-CONFIG", message, remedy="fine-tune a bundle that looks at windows of a fixed size")
    size = tuple(ensure_tuple_rep(loaded.inferer.roi_size, 3))
    if min(size) < 1:
        message = f"expected windows of a fixed size, got {size}"
        raise Refusal("E-BUNDLE-CONFIG", message, remedy="set inferer::roi_size in the source's inference.json")
    return size


def _oriented(inference: Mapping[str, Any]) -> bool:
    """Whether the preprocessing turns images so that their first axis runs from side to side."""
    steps = inference.get("preprocessing", {}).get("transforms", [])
    turns = [step for step in steps if str(step.get("_target_", "")).rpartition(".")[2] == "Orientationd"]
    return any(str(turn.get("axcodes", ""))[:1] in ("R", "L") for turn in turns)


def _metadata(source: Config, found: Preflight, name: str, origin: str) -> dict[str, Any]:
    """The source's, with what is the cohort's."""
    tree = json.loads(json.dumps(source.tree))
    classes = dict(enumerate(("background", *found.classes.values())))
    tree |= {
        "name": name,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"fine-tuned from {origin} by monai_attention {__version__}"},
        "task": f"Segmentation of {', '.join(found.classes.values())}",
        "description": f"Fine-tuned from {origin} on {len(found.usable)} labelled cases.",
        "authors": "",
        "copyright": "",
        "data_source": f"{len(found.usable)} cases of the user's",
        "label_values": {name: value for value, name in found.classes.items()},
        "plausible_ml": _plausible(found.volumes_ml(), len(found.usable)),
        "weights": {},
    }
    tree.pop("eval_metrics", None)
    image = tree["network_data_format"]["inputs"]["image"]
    image |= {"num_channels": len(found.data.channels), "channel_def": dict(enumerate(found.data.channels))}
    tree["network_data_format"]["outputs"]["pred"] |= {"num_channels": len(classes), "channel_def": classes}
    tree["gate"] = _gate(gate(source), found)
    return tree


def _gate(source: Requirements, found: Preflight) -> dict[str, Any]:
    """What the source accepts, widened to what it is now trained on.

    Modalities are those seen, where files tell them; where they do not, intensities alone tell what is not alike.
    """
    seen = [one.statistics for one in found.usable if one.statistics]
    spacings = [mm for one in seen for mm in one.spacing_mm]
    extents = [n * mm for one in seen for n, mm in zip(one.shape, one.spacing_mm, strict=True)]
    modalities = sorted({one.verdict.modality for one in found.usable if one.verdict.modality})
    low = min(channel.low for one in seen for channel in one.intensities)
    high = max(channel.high for one in seen for channel in one.intensities)
    room = high - low
    return {
        "modalities": modalities,
        "channels": len(found.data.channels),
        "spacing_mm": [min(source.spacing_mm[0], *spacings), max(source.spacing_mm[1], *spacings)],
        "min_extent_mm": round(min(source.min_extent_mm, *extents), 3),
        "needs_orientation": source.needs_orientation,
        "value_range": [low - room, high + 3 * room],
    }


def _plausible(volumes: Mapping[str, list[float]], cases: int) -> dict[str, list[float]]:
    """Half the smallest to twice the largest that was seen, of classes that five cases had; from 0 if not all did."""
    return {
        name: [round(0.5 * min(ml), 3) if len(ml) == cases else 0.0, round(2 * max(ml), 3)]
        for name, ml in volumes.items()
        if len(ml) >= 5
    }


def expect_usable(found: Preflight) -> None:
    """Refuse a cohort of which nothing can be learned.

    Raises:
        Refusal: E-EMPTY, no case is usable or no class is labelled.
    """
    if not found.usable or not any(found.volumes_ml().values()):
        first = next((one.verdict for one in found.cases if not one.usable), None)
        told = f"; the first is {first.code}: {first.message}" if first else ""
        message = f"none of {len(found.cases)} cases can be trained on{told}"
        remedy = "see what `monai-attention check --labels` says of them"
        raise Refusal("E-EMPTY", message, path=found.data.source, remedy=remedy)
