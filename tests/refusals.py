"""Refusals, for tests that ask what one says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from monai_attention.errors import Refusal


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call(*args, **kwargs)
    return caught.value
