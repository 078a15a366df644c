"""The device that was asked for, or a refusal that says which there are."""

from __future__ import annotations

import torch

from monai_attention.errors import Refusal


def device_of(name: str | None, *, float64: bool = False) -> torch.device:
    """A torch device by its name; None is CUDA if there is one, else the CPU.

    Args:
        name: for example `cuda:1`.
        float64: whether it must know numbers of that precision (Apple's do not).

    Raises:
        Refusal: E-DEVICE.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name, dtype=torch.float64 if float64 else torch.float32).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch's ways of saying that there is no such device
        remedy = "leave --device away, or name one this computer has: cpu, cuda, cuda:1, mps"
        raise Refusal("E-DEVICE", f"there is no device {name!r} to compute on", remedy=remedy) from error
