"""Make objects from a bundle's configuration by interpreting it; `eval` is never called.

The meaning of the configuration is MONAI's: `@id` is the object made for that id (one object however often it is
referred to), `_disabled_` components vanish from their list, `_requires_` is made first.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_attention.bundle_config import (
    DISABLED,
    TARGET,
    Config,
    child,
    children,
    is_component,
    lookup,
    reachable,
    references,
)
from monai_attention.bundle_trust import allowed_class, expression_for
from monai_attention.errors import Refusal

MADE = {
    "segment": ("network_def", "preprocessing", "inferer"),
    "register": ("network_def", "registration_def"),
}
"""What is made of a bundle, by what it is for; nothing else ever is."""

_NO_ARGUMENTS = {TARGET, DISABLED, "_requires_", "_desc_", "_mode_"}
_LOADING = ("LoadImage", "EnsureChannelFirst")
_UNFINISHED = object()


def without_loading(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of the configuration whose preprocessing does not load images: the gate has done that."""
    tree = copy.deepcopy(tree)
    for id in reachable(tree, ("preprocessing",)):
        value = lookup(tree, id)
        if is_component(value) and isinstance(value[TARGET], str):
            name = value[TARGET].rpartition(".")[2]
            if any(name in (one, f"{one}d", f"{one}D", f"{one}Dict") for one in _LOADING):
                value[DISABLED] = True
    return tree


class Builder:
    """Makes the objects of one configuration, each once.

    Args:
        config: the configuration; `allowed_class` and `expression_for` decide about every part of it once more.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._made: dict[str, Any] = {}

    def make(self, id: str) -> Any:
        """The object at an id.

        Raises:
            Refusal: `E-BUNDLE-CONFIG`, naming file, id and line.
        """
        if id not in self._made:
            try:
                value = lookup(self.config.tree, id)
            except KeyError:
                raise self._refusal(id, "needed, but not there") from None
            self._made[id] = _UNFINISHED
            try:
                self._made[id] = self._interpret(id, value)
            except Refusal:
                raise
            except Exception as error:  # whatever a constructor raises, the user learns which entry asked for it
                raise self._refusal(id, f"{type(error).__name__}: {error}") from error
        if self._made[id] is _UNFINISHED:
            raise self._refusal(id, "refers to itself")
        return self._made[id]

    def _interpret(self, id: str, value: Any) -> Any:
        if is_component(value):
            return self._component(id, value)
        if isinstance(value, dict):
            return {key: self.make(child(id, key)) for key, _ in self._enabled(id, value)}
        if isinstance(value, list):
            return [self.make(child(id, key)) for key, _ in self._enabled(id, value)]
        if isinstance(value, str) and value.startswith("$"):
            form = expression_for(value)
            if form is None or form[0].evaluate is None:
                raise ValueError(f"expression is not on the list: {value!r}")
            return form[0].evaluate(form[1], lambda text: self.make(references(text)[0]))
        if isinstance(value, str) and value.startswith("@"):
            return self.make(references(value)[0])
        return value

    def _component(self, id: str, component: dict[str, Any]) -> Any:
        if self._disabled(id, component):
            return None
        if "_requires_" in component:
            self.make(child(id, "_requires_"))
        cls = allowed_class(component[TARGET], make=True)
        arguments = {k: self.make(child(id, k)) for k, _ in self._enabled(id, component) if k not in _NO_ARGUMENTS}
        if component.get("_mode_", "default") == "callable":
            return functools.partial(cls, **arguments) if arguments else cls
        return cls(**arguments)

    def _enabled(self, id: str, value: Any) -> Iterator[tuple[Any, Any]]:
        """The entries of an object or array, without components that are switched off."""
        for key, below in children(value):
            if not (is_component(below) and self._disabled(child(id, key), below)):
                yield key, below

    def _disabled(self, id: str, component: dict[str, Any]) -> bool:
        flag = self.make(child(id, DISABLED)) if DISABLED in component else False
        return flag.strip().lower() == "true" if isinstance(flag, str) else bool(flag)

    def _refusal(self, id: str, message: str) -> Refusal:
        remedy = "the bundle may have been made for another version of MONAI"
        return Refusal("E-BUNDLE-CONFIG", f"{self.config.where(id)}: {message}", path=self.config.source, remedy=remedy)


def make_trusted(config: Config, folder: Path, ids: tuple[str, ...]) -> dict[str, Any]:
    """Make some objects as MONAI does, running whatever the configuration says; only for bundles the user trusts."""
    from monai.bundle import ConfigParser

    with _importable(folder):
        parser = ConfigParser(copy.deepcopy(config.tree))
        return {name: parser.get_parsed_content(name) for name in ids}


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """A trusted bundle's own modules (`scripts.net`) can be imported inside."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
