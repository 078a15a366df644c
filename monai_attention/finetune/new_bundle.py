"""A new bundle from a source bundle and a cohort: configurations, first weights, prepared data; not trained yet."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils.misc import ensure_tuple_rep
from torch import nn

from monai_attention import bundles
from monai_attention.bundle_build import Builder
from monai_attention.bundle_config import Config, reachable, read_config
from monai_attention.bundles import LoadedBundle
from monai_attention.cohort.device import device_of
from monai_attention.errors import Refusal
from monai_attention.finetune.adapt import Named, adapt
from monai_attention.finetune.ends import Ends, find_ends, make_from, takes
from monai_attention.finetune.labelled import same_name
from monai_attention.finetune.lora import adaptable
from monai_attention.finetune.new_metadata import metadata_of
from monai_attention.finetune.plan import RATES, SHARE, Costs, Plan, as_long, measured, planned
from monai_attention.finetune.preflight import Preflight
from monai_attention.finetune.prepared import write_prepared
from monai_attention.finetune.preprocessing import planned_preprocessing
from monai_attention.finetune.recipe import inference_config, train_config
from monai_attention.io.read import DEFAULTS
from monai_attention.io.volume import ReadOptions
from monai_attention.io.write import replacing, write_json

INITIAL = "models/initial.pt"
"""Weights that the training begins with."""


@dataclass(frozen=True)
class Wishes:
    """What a user may want of a training.

    Args:
        method: `full`, `lora` or `head`; or `scratch`, which takes the source's architecture, but no weights.
        epochs: of the training; None: by `seconds`, or a rule, see `plan`.
        seconds: that the training may take.
        device: to train on; None takes CUDA if there is one.
    """

    method: str = "full"
    epochs: int | None = None
    seconds: float | None = None
    device: str | None = None


@dataclass(frozen=True)
class NewBundle:
    """What was made.

    Args:
        folder: of the bundle.
        plan: what its training will do.
        weights: what became of the source's, a line each.
        costs: of a training step, as measured.
        device: that they were measured on, and the training is planned for.
    """

    folder: Path
    plan: Plan
    weights: list[str]
    costs: Costs
    device: str


def make_bundle(
    found: Preflight,
    folder: Path,
    source: str | Path,
    wishes: Wishes,
    *,
    own_preprocessing: bool = False,
    like: NewBundle | None = None,
    fold: int | None = 0,
    data: str = "data",
) -> NewBundle:
    """Write a bundle that is ready to be trained: all but its data, see `write_data`.

    Args:
        found: the cohort.
        folder: of the new bundle; made if needed.
        source: bundle whose architecture, weights and preprocessing are taken; see `bundles.find`.
        wishes: of the user.
        own_preprocessing: plan it by the cohort; else it is the source's, which its weights were learned with.
        like: a bundle for the same cohort; the training will be as long as its.
        fold: held out; see `recipe.train_config`.
        data: folder of the prepared cases, from the bundle's.

    Raises:
        Refusal: the source cannot be loaded, or not be adapted; E-METHOD, nothing of it can be trained by `lora`;
            E-MEMORY, a crop does not fit into the device's memory.
    """
    place = device_of(wishes.device)
    loaded = bundles.load(source)
    origin = bundles.find(source)
    names = ("background", *found.classes.values())
    channels = len(found.data.channels)
    config = bundles.configurations(origin, {})[1]
    for name in ("models", "configs", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    network, trained, lines = _first_weights(
        config, loaded, names, found.data.channels, bundles.info(origin).channels, fresh=wishes.method == "scratch"
    )
    if wishes.method == "lora" and not adaptable(network, train=trained):
        message = f"{type(network).__name__} has no layer below its head that low-rank adapters could be put beside"
        raise Refusal("E-METHOD", message, path=origin, remedy="train all of it, --method full, or --method head")
    with replacing(folder / INITIAL) as temporary:
        torch.save(network.state_dict(), temporary)
    roi_size = _window(loaded)
    inference = inference_config(read_config(origin / "configs/inference.json"), channels=channels, classes=len(names))
    if own_preprocessing:
        inference["spacing"], inference["preprocessing"] = planned_preprocessing(found, roi_size)
    if like is None:
        costs, in_training = _costs(network, config, channels, len(names), roi_size, place)
        plan = planned(
            wishes.method,
            roi_size,
            names[1:],
            costs,
            place,
            oriented=_oriented(inference),
            network=in_training,
            epochs=wishes.epochs,
            seconds=wishes.seconds,
        )
    else:
        costs, plan = like.costs, as_long(like.plan, wishes.method)
    write_json(folder / "configs/inference.json", inference)
    own = {name: round(rate / plan.learning_rate, 4) for name, rate in trained.items()}
    recipe = train_config(inference, plan, trained=own, fold=fold, data=data)
    write_json(folder / "configs/train.json", recipe)
    made_from = f"{loaded.name} {loaded.version}"
    begun = (
        f"trained from scratch, built like {made_from},"
        if wishes.method == "scratch"
        else f"fine-tuned from {made_from}"
    )
    requirements = None if wishes.method == "scratch" else loaded.requirements
    old = read_config(origin / "configs/metadata.json")
    write_json(folder / "configs/metadata.json", metadata_of(old, found, folder.name, begun, requirements))
    for name in ("LICENSE", "configs/logging.conf"):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    return NewBundle(folder, plan, lines, costs, _told(place))


def _told(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )


def _costs(
    network: nn.Module, config: Config, channels: int, classes: int, roi_size: Sequence[int], device: torch.device
) -> tuple[Costs, dict[str, bool]]:
    """What a step costs, and the arguments that the network gets in training only: checkpointing where it must."""
    in_training = {"deep_supervision": True} if takes(network, "deep_supervision") else {}
    try:
        costs = measured(network, channels, roi_size, device)
        tight = costs.saved_bytes > SHARE * costs.free_bytes
    except Refusal:  # it does not fit at all
        if not takes(network, "use_checkpoint"):
            raise
        tight = True
    if tight and takes(network, "use_checkpoint"):
        network.to("cpu")
        in_training["use_checkpoint"] = True
        costs = measured(make_from(config, in_training)(channels, classes), channels, roi_size, device)
    return costs, in_training


def for_fold(folder: Path, target: Path) -> Path:
    """A copy of a new bundle, as it is now, that can hold the weights of one fold."""
    for name in ("LICENSE", "configs/inference.json", "configs/metadata.json"):
        if target != folder and (folder / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(target / name) as temporary:
                shutil.copyfile(folder / name, temporary)
    return target


def _first_weights(
    config: Config,
    loaded: LoadedBundle,
    names: tuple[str, ...],
    channels: tuple[str, ...],
    known: tuple[str, ...],
    *,
    fresh: bool,
) -> tuple[nn.Module, dict[str, float], list[str]]:
    """The network with them, what every method trains (see `recipe.train_config`), and what became of the source's."""
    make = make_from(config)
    torch.manual_seed(0)
    network = make(len(channels), len(names))
    try:
        ends = find_ends(make, len(channels), len(names))
    except Refusal as refused:
        if not fresh or refused.code != "E-WEIGHTS-MISMATCH":
            raise
        ends = Ends({}, {})  # of a network that takes weights of no other; it can learn its own
    if fresh:
        return network, dict.fromkeys([*ends.inputs, *ends.heads], RATES["scratch"]), ["all weights initialised afresh"]
    adaptation = adapt(
        network,
        loaded.network.state_dict(),
        ends,
        source=Named(tuple(loaded.classes.values()), _told_apart(known)),
        target=Named(names, _named_alike(channels, known)),
    )
    changed = {one.name for one in adaptation.changed}
    trained = {name: RATES["full"] for name in ends.inputs if name in changed} | dict.fromkeys(
        ends.heads, RATES["head"]
    )
    return network, trained, [*adaptation.lines(), *_in_order(channels, known)]


def _named_alike(channels: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The channels that the source has by name; the others are taken in order, and have none."""
    there = {same_name(name) for name in _told_apart(known)}
    return tuple(name if same_name(name) in there else "" for name in _told_apart(channels))


def _told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Names, empty where another is the same."""
    same = [same_name(name) for name in names]
    return tuple(name if same.count(one) == 1 else "" for name, one in zip(names, same, strict=True))


def _in_order(channels: Sequence[str], known: Sequence[str]) -> list[str]:
    """What is to be said of channels whose names the source does not have."""
    named = _named_alike(channels, known)
    others = [name for name, alike in zip(channels, named, strict=True) if not alike]
    if len(known) == 1 or not others:
        return []
    source = ", ".join(name or f"channel {i}" for i, name in enumerate(known))
    how = "taken in their order" if len(channels) == len(known) else "sharing what is left of them"
    return [f"not named like the source's channels ({source}), and {how}: {', '.join(others)}"]


def write_data(
    found: Preflight,
    folder: Path,
    folds: Mapping[str, int],
    *,
    options: ReadOptions = DEFAULTS,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Prepare the cohort's usable cases in `data/` of a new bundle, as its own preprocessing does.

    Args:
        found: the cohort.
        folder: of the bundle.
        folds: by the name of a case, see `folds.folds_of`.
        options: choices about inputs that cannot be read unambiguously.
        progress: show a bar on standard error.

    Raises:
        Refusal: what reading a case, or writing, raises.
    """
    return write_prepared(
        [one.case for one in found.usable],
        folder / "data",
        Builder(bundles.configurations(folder, {})[1]).make("preprocessing"),
        classes=list(found.classes),
        channels=len(found.data.channels),
        folds=folds,
        recipe=preparation(folder),
        options=options,
        progress=progress,
    )


def preparation(folder: Path) -> dict[str, Any]:
    """The part of a bundle's `inference.json` that decides how cases are prepared, as it is now."""
    inference = read_config(folder / "configs/inference.json").tree
    needed = {id.partition("::")[0] for id in reachable(inference, ("preprocessing",))}
    return {key: inference[key] for key in sorted(needed)}


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
