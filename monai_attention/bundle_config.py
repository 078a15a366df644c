"""A bundle's configuration as data: JSON with line numbers, ids, references, overrides. Nothing here runs anything.

An id names a place in the tree, keys and list indices joined by `::`, as in MONAI: `preprocessing::transforms::2`.
"""

from __future__ import annotations

import ast
import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_attention.errors import Refusal

REFERENCE = re.compile(r"@\w+(?:::\w+)*")
TARGET, DISABLED = "_target_", "_disabled_"

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+|\n')
_MAX_BYTES = 4_000_000
_MAX_DEPTH = 60


@dataclass(frozen=True)
class Config:
    """One JSON file of a bundle.

    Args:
        source: the file.
        tree: its content.
        lines: id -> line in the file, counted from 1.
    """

    source: Path
    tree: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)

    def where(self, id: str) -> str:
        """A place as a reader finds it: file, id, line (of the nearest enclosing entry that is in the file)."""
        near = id
        while near and near not in self.lines:
            near = near.rpartition("::")[0]
        return f"{self.source.name}: {id}" + (f" (line {self.lines[near]})" if near else "")


def read_config(path: str | Path) -> Config:
    """Read a JSON file whose top level is an object.

    Raises:
        Refusal: `E-BUNDLE-INCOMPLETE` if it is not there; `E-BUNDLE-CONFIG` if it is not JSON, too large, nested too
            deep, or names a key twice (readers differ in which of the two they take).
    """
    path = Path(path)
    if not path.is_file():
        raise Refusal("E-BUNDLE-INCOMPLETE", "the bundle lacks this file", path=path)
    if path.stat().st_size > _MAX_BYTES:
        raise Refusal("E-BUNDLE-CONFIG", f"a configuration must be smaller than {_MAX_BYTES} bytes", path=path)
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise Refusal("E-BUNDLE-CONFIG", f"nested deeper than {_MAX_DEPTH} levels", path=path) from None
    except ValueError as error:  # JSON syntax, encoding, a key that is there twice
        raise Refusal("E-BUNDLE-CONFIG", f"not a valid JSON configuration: {error}", path=path) from error
    if not isinstance(tree, dict):
        raise Refusal("E-BUNDLE-CONFIG", f"expected a JSON object, got {type(tree).__name__}", path=path)
    lines, depth = _lines(text)
    if depth > _MAX_DEPTH:
        raise Refusal("E-BUNDLE-CONFIG", f"nested deeper than {_MAX_DEPTH} levels", path=path)
    return Config(path, tree, lines)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, each key once."""
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"key {twice[0]!r} appears more than once in one object")
    return dict(pairs)


def _lines(text: str) -> tuple[dict[str, int], int]:
    """The line of every id in a valid JSON text, and how deep it is nested."""
    lines: dict[str, int] = {}
    path: list[str | int] = []  # the key or index we are at in each open object or array
    line, deepest, key_comes = 1, 0, False
    for token in _TOKEN.findall(text):
        if token == "\n":
            line += 1
        elif token in "}]":
            path.pop()
            key_comes = False
        elif token == ",":
            if isinstance(path[-1], int):
                path[-1] += 1
            else:
                key_comes = True
        elif token != ":":
            if key_comes:
                path[-1], key_comes = json.loads(token), False
                lines[join(path)] = line
                continue
            if path and isinstance(path[-1], int):
                lines[join(path)] = line
            if token in "{[":
                path.append("" if token == "{" else 0)
                key_comes = token == "{"
                deepest = max(deepest, len(path))
    return lines, deepest


# Ids


def join(keys: list[str | int]) -> str:
    """The id made of keys and indices."""
    return "::".join(str(key) for key in keys)


def child(id: str, key: str | int) -> str:
    """The id of an entry below another."""
    return f"{id}::{key}" if id else str(key)


def children(value: Any) -> Iterator[tuple[str | int, Any]]:
    """Keys or indices, and values, of an object or array; nothing for other values."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def walk(value: Any, id: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of a tree with its id, parents first."""
    yield id, value
    for key, below in children(value):
        yield from walk(below, child(id, key))


def lookup(tree: Any, id: str) -> Any:
    """The value at an id; `KeyError` if there is none."""
    value = tree
    for key in id.split("::"):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise KeyError(id) from None
    return value


def references(value: Any) -> list[str]:
    """The ids that a string refers to: all of `$@a + @b`, one for `@a`, none for other values."""
    if not isinstance(value, str) or value[:1] not in ("@", "$"):
        return []
    return [match[1:] for match in REFERENCE.findall(value.replace("#", "::"))]


def is_component(value: Any) -> bool:
    """Whether a value describes an object to make (`_target_`)."""
    return isinstance(value, dict) and TARGET in value


def reachable(tree: dict[str, Any], ids: tuple[str, ...]) -> set[str]:
    """The ids that making `ids` touches: what they contain and refer to, without components that are disabled."""
    found: set[str] = set()
    todo = list(ids)
    while todo:
        id = todo.pop()
        if id in found:
            continue
        try:
            value = lookup(tree, id)
        except KeyError:
            continue  # the builder refuses a reference to nothing, with its place
        if is_component(value) and value.get(DISABLED) is True:
            continue
        found.add(id)
        todo += [child(id, key) for key, _ in children(value)] + references(value)
    return found


# Overrides


def parse_override(text: str) -> tuple[str, Any]:
    """`inferer::overlap=0.5` -> ("inferer::overlap", 0.5); a value that is neither JSON nor Python is text.

    Raises:
        Refusal: `E-OVERRIDE` without `=` or without a key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise Refusal(
            "E-OVERRIDE", f"a setting reads key=value; got {text!r}", remedy="for example inferer::overlap=0.5"
        )
    for read in (json.loads, ast.literal_eval):
        try:
            return key.strip(), read(value)
        except (ValueError, SyntaxError):
            continue
    return key.strip(), value


def override(tree: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree with literal values put at ids (`a::b`, or `a#b` as older MONAI wrote).

    An id must exist already, so that a misspelt one is noticed; only a component may be given a further argument.

    Raises:
        Refusal: `E-OVERRIDE`, saying what there is instead.
    """
    tree = copy.deepcopy(tree)
    for key, value in overrides.items():
        above, _, last = key.replace("#", "::").rpartition("::")
        value = plain_value(key, value)
        try:
            parent = lookup(tree, above) if above else tree
            if not is_component(parent):
                lookup(parent, last)
        except KeyError:
            raise Refusal("E-OVERRIDE", f"there is no setting {key!r}", remedy=_nearby(tree, above)) from None
        if isinstance(parent, list):
            parent[int(last)] = value
        else:
            parent[last] = value
    return tree


def plain_value(key: str, value: Any) -> Any:
    """The value of a setting as JSON would hold it.

    Raises:
        Refusal: `E-OVERRIDE` if it cannot: references and expressions, sets, NaN and infinity.
    """
    if isinstance(value, (list, tuple)):
        return [plain_value(key, item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain_value(key, item) for name, item in value.items()}
    refers = isinstance(value, str) and value[:1] in "$@%" and value
    endless = isinstance(value, float) and not math.isfinite(value)
    if refers or endless or not isinstance(value, (str, int, float, bool, type(None))):
        raise Refusal("E-OVERRIDE", f"{key} may be set to a plain value only; got {value!r}")
    return value


def _nearby(tree: dict[str, Any], above: str) -> str:
    """What could have been meant: the entries of the nearest place that exists."""
    while above:
        try:
            value = lookup(tree, above)
        except KeyError:
            value = None
        if isinstance(value, (dict, list)):
            return f"{above} has: {', '.join(str(key) for key, _ in children(value))}"
        above = above.rpartition("::")[0]
    return f"there are: {', '.join(tree)}"
