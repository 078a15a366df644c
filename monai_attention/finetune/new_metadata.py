"""What the metadata of a new bundle says: the source's, with what is the cohort's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from monai_attention import __version__
from monai_attention.bundle_config import Config
from monai_attention.finetune.preflight import Preflight
from monai_attention.io.volume import Requirements

ENOUGH = 5
"""Cases that must have had a class before anything is said of how large it is and how far it reaches."""


def metadata_of(
    source: Config, found: Preflight, name: str, begun: str, requirements: Requirements | None
) -> dict[str, Any]:
    """`metadata.json` of a new bundle, without its weights.

    Args:
        source: that of the source.
        found: the cohort.
        name: of the new bundle.
        begun: from what, in words.
        requirements: what the source accepts; None: the training is from scratch.
    """
    tree = json.loads(json.dumps(source.tree))
    classes = dict(enumerate(("background", *found.classes.values())))
    gate = _gate(requirements, found)
    tree |= {
        "name": name,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"{begun} by monai_attention {__version__}"},
        "task": f"Segmentation of {', '.join(found.classes.values())}",
        "description": f"{begun[0].upper()}{begun[1:]} on a cohort of {len(found.usable)} labelled cases.",
        "authors": "",
        "copyright": "",
        "data_source": f"{len(found.usable)} cases of the user's",
        "image_classes": f"{', '.join(found.data.channels)}; intensities as inference.json prepares them",
        "pred_classes": f"{len(classes)} channels of logits, background first",
        "label_values": {name: value for value, name in found.classes.items()},
        "plausible_ml": _plausible(found.volumes_ml(), len(found.usable)),
        "within_mm": _within(found.reach_mm()),
        "gate": gate,
        "weights": {},
    }
    tree.pop("eval_metrics", None)
    image = tree["network_data_format"]["inputs"]["image"]
    image |= {"num_channels": len(found.data.channels), "channel_def": dict(enumerate(found.data.channels))}
    image["modality"] = "/".join(gate["modalities"]) or "n/a"
    tree["network_data_format"]["outputs"]["pred"] |= {"num_channels": len(classes), "channel_def": classes}
    return tree


def _gate(source: Requirements | None, found: Preflight) -> dict[str, Any]:
    """What the source accepts, widened to what it is now trained on; from scratch, twice as much either way as that.

    Modalities are those seen, where files tell them; where they do not, intensities alone tell what is not alike.
    """
    seen = [one.statistics for one in found.usable if one.statistics]
    spacings = [mm for one in seen for mm in one.spacing_mm]
    extents = [n * mm for one in seen for n, mm in zip(one.shape, one.spacing_mm, strict=True)]
    low = min(channel.low for one in seen for channel in one.intensities)
    high = max(channel.high for one in seen for channel in one.intensities)
    finest, coarsest, shortest = (
        (min(spacings) / 2, max(spacings) * 2, min(extents) / 2)
        if source is None
        else (
            min(source.spacing_mm[0], *spacings),
            max(source.spacing_mm[1], *spacings),
            min(source.min_extent_mm, *extents),
        )
    )
    return {
        "modalities": sorted({one.verdict.modality for one in found.usable if one.verdict.modality}),
        "channels": len(found.data.channels),
        "spacing_mm": [round(finest, 3), round(coarsest, 3)],
        "min_extent_mm": math.floor(shortest * 1000) / 1000,
        "needs_orientation": source is None or source.needs_orientation,
        "value_range": [low - (high - low), high + 3 * (high - low)],
    }


def _plausible(volumes: Mapping[str, list[float]], cases: int) -> dict[str, list[float]]:
    """Half the smallest to twice the largest that was seen; from 0 if not all cases had the class."""
    return {
        name: [round(0.5 * min(ml), 3) if len(ml) == cases else 0.0, round(2 * max(ml), 3)]
        for name, ml in volumes.items()
        if len(ml) >= ENOUGH
    }


def _within(reaches: Mapping[str, list[float]]) -> dict[str, float]:
    """One and a half times the farthest that was seen, rounded up to 5 mm."""
    return {
        name: 5.0 * math.ceil(1.5 * max(mm) / 5) for name, mm in reaches.items() if len(mm) >= ENOUGH and max(mm) > 0
    }
