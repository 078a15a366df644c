"""Attention networks for 3-D medical volumes in MONAI.

Importing this package imports neither torch nor monai: the public names below load on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
DEFAULT_BUNDLE = "brain_mri_tissue_flexunetr"

_PUBLIC = {
    "FlexSwinUNETR": "monai_attention.networks.flex_swin_unetr",
    "FlexUNETR": "monai_attention.networks.flex_unetr",
    "MBANet": "monai_attention.networks.mbanet",
    "NNFormer": "monai_attention.networks.nnformer",
    "Refusal": "monai_attention.errors",
    "RegistrationModel": "monai_attention.registration.model",
    "TransMorph": "monai_attention.networks.transmorph",
    "accelerate": "monai_attention.acceleration",
    "evaluate": "monai_attention.finetune.evaluate",
    "register": "monai_attention.registration.register",
    "segment": "monai_attention.inference.segment",
}

__all__ = [
    "DEFAULT_BUNDLE",
    "FlexSwinUNETR",
    "FlexUNETR",
    "MBANet",
    "NNFormer",
    "Refusal",
    "RegistrationModel",
    "TransMorph",
    "__version__",
    "accelerate",
    "evaluate",
    "register",
    "segment",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
