"""Cases as the network will see them, on disk: read once through the gate, prepared once, cut into crops many times."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from monai_attention.cohort import ledger
from monai_attention.errors import Refusal
from monai_attention.finetune.labelled import LabelledCase
from monai_attention.finetune.labelled import listed as names_of
from monai_attention.finetune.load import load
from monai_attention.finetune.places import classes_in, write_places
from monai_attention.inference.predict import prepare
from monai_attention.io.read import DEFAULTS
from monai_attention.io.volume import ReadOptions
from monai_attention.io.write import nifti_header, sweep_leftovers, write_json, write_planes

CASES = "cases.json"
"""The list of them, in their folder."""

Preprocessing = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Of a bundle, see `monai_attention.bundles.LoadedBundle`."""


def write_prepared(
    cases: Sequence[LabelledCase],
    folder: str | Path,
    preprocessing: Preprocessing,
    *,
    classes: Sequence[int],
    channels: int,
    folds: Mapping[str, int],
    recipe: Any,
    options: ReadOptions = DEFAULTS,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Prepare cases and list them in `cases.json`.

    Each gets `<id>.image.nii` (float32, all channels, as preprocessing leaves it) and `<id>.label.nii` (uint8, class
    numbers on the same grid); not compressed, so that crops are read without reading the rest; and `<id>.places.npz`,
    see `places`. Cases that are there already, made of the same files by the same recipe, are kept.

    Args:
        cases: usable ones, see `preflight`.
        folder: made if needed.
        preprocessing: spatial and of intensities, without randomness.
        classes: values of the label maps, in the order of class numbers 1, 2, ...
        channels: of each image.
        folds: by id, see `folds.folds_of`; cases that are not in it are left out.
        recipe: plain JSON that changes whenever preprocessing does.
        options: the user's choices about what cannot be read unambiguously.
        progress: show a bar on standard error.

    Returns:
        What `cases.json` lists: `id`, `fold`, `image`, `label` and `places` (file names in the folder).

    Raises:
        Refusal: what reading a case, or writing, raises.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(folder)
    listed = []
    choices = {key: value for key, value in asdict(options).items() if key != "max_memory"}
    settled = {"classes": list(classes), "recipe": recipe, "options": choices}
    for case in tqdm(cases, desc="preparing", unit="case", disable=not progress):
        names = {kind: f"{case.id}.{kind}.nii" for kind in ("image", "label")} | {"places": f"{case.id}.places.npz"}
        made_of = ledger.fingerprint([*case.images, case.label], settled)
        receipt = folder / f"{case.id}.json"
        if not _is_made(receipt, made_of, [folder / name for name in names.values()]):
            receipt.unlink(missing_ok=True)
            image, labels, affine = _prepared(case, preprocessing, classes, channels, options)
            _write(folder / names["image"], image, affine)
            _write(folder / names["label"], labels[None], affine)
            write_places(folder / names["places"], image, labels)
            write_json(receipt, {"made_of": made_of})
        if case.id in folds:
            listed.append({"id": case.id, "fold": folds[case.id], **names})
    write_json(folder / CASES, listed)
    return listed


def expect_labelled(listed: Sequence[Mapping[str, Any]], folder: str | Path, fold: int, *, alone: bool) -> None:
    """Refuse a fold that leaves nothing to learn from, or nothing to judge by.

    Args:
        listed: see `write_prepared`.
        folder: of the prepared cases.
        fold: held out.
        alone: whether no other fold is held out in its turn; else the scores tell that it is empty.

    Raises:
        Refusal: E-FOLD, no case that is held out, or none of the others, has a labelled voxel as the network sees it.
    """
    for held_out, told in ((True, "held out"), (False, "trained on")) if alone else ((False, "trained on"),):
        cases = [entry for entry in listed if (entry["fold"] == fold) == held_out]
        if not any(_classes_of(Path(folder) / entry["places"]) for entry in cases):
            named = names_of(entry["id"] for entry in cases)
            message = f"nothing is labelled in the {len(cases)} cases that are {told} with fold {fold}: {named}"
            remedy = "hold out another --fold, divide into fewer --folds, or label more cases"
            raise Refusal("E-FOLD", message, path=Path(folder), remedy=remedy)


def _classes_of(path: Path) -> list[int]:
    with np.load(path) as places:
        return classes_in(places)


def _prepared(
    case: LabelledCase, preprocessing: Preprocessing, classes: Sequence[int], channels: int, options: ReadOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (C, *S), class numbers (*S) on the same grid, and its affine."""
    from monai.data import MetaTensor
    from monai.transforms import SpatialResample

    loaded = load(case, channels, classes=classes, options=options)
    image, affine = prepare(loaded.image, preprocessing)
    table = np.zeros(256, np.uint8)
    table[list(classes)] = np.arange(1, len(classes) + 1)
    labels = MetaTensor(
        torch.from_numpy(table[loaded.labels])[None].float(), affine=torch.from_numpy(loaded.image.affine)
    )
    resample = SpatialResample(mode="nearest", padding_mode="zeros", dtype=np.float32)
    found = resample(labels, dst_affine=torch.from_numpy(affine), spatial_size=tuple(image.shape[1:]))
    if not bool(image.isfinite().all()):
        remedy = "look at its intensities with `monai-attention check --labels`"
        raise Refusal(
            "E-NONFINITE", "preprocessing made NaN or infinity of the image", path=case.images[0], remedy=remedy
        )
    return image.numpy(), found.as_tensor()[0].byte().numpy(), affine


def _write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """An array (C, X, Y, Z) as NIfTI (X, Y, Z, C), or (X, Y, Z) of one channel."""
    shape = (*array.shape[1:], len(array)) if len(array) > 1 else array.shape[1:]
    planes = (channel[:, :, z] for channel in array for z in range(channel.shape[2]))
    write_planes(path, nifti_header(shape, array.dtype, affine), planes)


def _is_made(receipt: Path, made_of: str, files: Sequence[Path]) -> bool:
    if not receipt.is_file() or not all(file.is_file() for file in files):
        return False
    return json.loads(receipt.read_text(encoding="utf-8")) == {"made_of": made_of}
