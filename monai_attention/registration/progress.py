"""How a search tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

OnStep = Callable[[str, int], None]
"""Called after each step with the name of the stage and its steps in all."""


def untold(stage: str, total: int) -> None:
    """The `OnStep` of those who do not look."""
