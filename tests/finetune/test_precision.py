"""Where training in bfloat16 pays."""

import pytest
import torch

from monai_attention.finetune.precision import bfloat16_is_fast


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"neon": True, "bf16": True}, True),
    ],
)
def test_a_processor_needs_instructions_for_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert bfloat16_is_fast(torch.device("cpu")) is expected
    assert bfloat16_is_fast(torch.device("cuda"))
