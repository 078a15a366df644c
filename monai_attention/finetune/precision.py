"""Whether training in bfloat16 is faster than in float32."""

from __future__ import annotations

from typing import Any

import torch

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names of what a processor needs, as torch reports it for Intel's and AMD's, and for ARM's."""


def bfloat16_is_fast(device: torch.device) -> bool:
    """True where the device multiplies numbers in bfloat16, False where torch would only imitate it.

    GPUs that have no such instructions are not told apart. A processor without them takes several times as long as in
    float32.

    Args:
        device: where the network trains.
    """
    if device.type != "cpu":
        return True
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # there since torch 2.11
    return any(capabilities.get(name) for name in _INSTRUCTIONS)
