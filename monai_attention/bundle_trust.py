"""What a bundle's configuration may ask for: the allow-list, whole, and the scan that holds a configuration against it.

MONAI evaluates every `$` expression of a configuration and calls whatever a `_target_` names. Here nothing is
evaluated: the expressions listed below are interpreted by us, and a `_target_` must turn out to be a class that lives
in one of `ROOTS`. Entries that we make (the network, the preprocessing, the inferer and what they refer to) are
held to the stricter half of the list; the rest of the file is never made by us, only by MONAI if the user runs the
bundle with it, and still has to look harmless.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_attention.bundle_config import REFERENCE, TARGET, Config, child, is_component, walk

# Where a class may live. `RUN_ROOTS`: for entries that only MONAI makes, when the user runs the bundle with it.
ROOTS = (
    "monai.transforms",
    "monai.networks",
    "monai.inferers",
    "monai.losses",
    "monai.data",
    "torch.nn",
    "monai_attention",
)
RUN_ROOTS = (*ROOTS, "monai.engines", "monai.handlers")

# Where MONAI finds a class that is named without its module.
_SHORT_NAME_MODULES = (
    "monai.transforms",
    "monai.networks.nets",
    "monai.networks.blocks",
    "monai.networks.layers",
    "monai.inferers",
    "monai.losses",
    "monai.data",
    "monai.engines",
    "monai.handlers",
)

# Classes (with their subclasses and dictionary twins) that do more than compute.
REFUSED = {
    "Lambda": "calls what it is given",
    "DatasetFunc": "calls what it is given",
    "TorchVision": "imports by name",
    "RandTorchVision": "imports by name",
    "TorchIO": "imports by name",
    "RandTorchIO": "imports by name",
    "CuCIM": "imports by name",
    "PatchInferer": "imports by name",
    "FlexUNetEncoderRegister": "imports by name",
    "PersistentDataset": "unpickles files",
    "NPZDictItemDataset": "unpickles files",
    "WriteFileMapping": "writes files",
    "CSVSaver": "writes files",
    "SaveClassification": "writes files",
    "ImageWriter": "writes files",
    "DatasetSummary": "writes files",
    "TrtCompiler": "writes files",
    "DataStats": "prints voxel values",
    "CellSamWrapper": "downloads weights",
    "EfficientNetBN": "downloads weights",
    "EfficientNetBNFeatures": "downloads weights",
    "FCN": "downloads weights",
    "MILModel": "downloads weights",
    "ResNetFeatures": "downloads weights",
    "PerceptualLoss": "downloads weights",
    "MedicalNetPerceptualSimilarity": "downloads weights",
    "RadImageNetPerceptualSimilarity": "downloads weights",
    "TorchvisionModelPerceptualSimilarity": "downloads weights",
    "TextEncoder": "downloads weights",
    "TorchVisionFCModel": "downloads weights",
    "BertPreTrainedModel": "downloads weights",
    "Transchex": "downloads weights",
}
# Reading and writing images is the program's business; a bundle may mention them for when MONAI runs it.
_ONLY_RUN = {"LoadImage": "reads files", "SaveImage": "writes files", "SaveField": "writes files"}

_READERS_AND_WRITERS = (
    *("ITKReader", "NibabelReader", "NrrdReader", "PILReader", "PydicomReader"),
    *("ITKWriter", "NibabelWriter", "PILWriter"),
)

# Expressions


@dataclass(frozen=True)
class Expression:
    """A form that `$...` may take.

    Args:
        pattern: matches the whole text after the `$`.
        evaluate: (match, value of an id) -> value; None: never evaluated by us, only allowed to stand there.
    """

    pattern: str
    evaluate: Callable[[re.Match[str], Callable[[str], Any]], Any] | None = None


_ID = r"@\w+(?:(?:::|#)\w+)*"
_TEXT = r"(?:'[^'\"\\]*'|\"[^'\"\\]*\")"
_JOINED = rf"(?:{_ID}|{_TEXT})(?:\s*\+\s*(?:{_ID}|{_TEXT}))*"
_DEVICE = r"['\"](?:cpu|cuda(?::\d+)?)['\"]"
_DTYPES = r"float16|bfloat16|float32|float64|uint8|int8|int16|int32|int64|bool"
_FILES = rf"(?:glob\.glob\(|os\.path\.join\(|sorted\(|list\(|{_ID}|{_TEXT}|\s|[+,)])+"
_MODULES = r"(?:glob|os|json|pathlib|numpy|torch|monai|monai_attention|ignite)"


def _joined(match: re.Match[str], value_of: Callable[[str], Any]) -> Any:
    """`@a`, or references and texts joined by `+`."""
    parts = [value_of(part) if part[0] == "@" else part[1:-1] for part in re.findall(rf"{_ID}|{_TEXT}", match[0])]
    if len(parts) > 1 and not all(isinstance(part, str) for part in parts):
        raise ValueError("only texts can be joined")
    return "".join(parts) if len(parts) > 1 else parts[0]


def _device(match: re.Match[str], _: Callable[[str], Any]) -> Any:
    import torch

    names = re.findall(_DEVICE, match[0])
    return torch.device((names[0] if len(names) == 1 or torch.cuda.is_available() else names[1])[1:-1])


def _cuda(_: re.Match[str], __: Callable[[str], Any]) -> bool:
    import torch

    return torch.cuda.is_available()


def _dtype(match: re.Match[str], _: Callable[[str], Any]) -> Any:
    module = importlib.import_module("torch" if match[1] == "torch" else "numpy")
    return getattr(module, match[2])


def _choice(match: re.Match[str], value_of: Callable[[str], Any]) -> Any:
    return ast.literal_eval(match["yes"] if value_of(match["test"]) else match["no"])


EXPRESSIONS = (
    Expression(_JOINED, _joined),
    Expression(rf"not (?P<id>{_ID})", lambda match, value_of: not value_of(match["id"])),
    Expression(rf"torch\.device\({_DEVICE}(?: if torch\.cuda\.is_available\(\) else {_DEVICE})?\)", _device),
    Expression(r"torch\.cuda\.is_available\(\)", _cuda),
    Expression(rf"(torch|np|numpy)\.({_DTYPES})", _dtype),
    Expression(rf"(?P<yes>{_TEXT}|[-\d.,\[\]() ]+) if (?P<test>{_ID}) else (?P<no>{_TEXT}|[-\d.,\[\]() ]+)", _choice),
    # From here on: what a bundle needs when MONAI runs it.
    Expression(rf"import {_MODULES}(?:\.\w+)*(?: as \w+)?"),
    Expression(rf"from {_MODULES}(?:\.\w+)* import \w+"),
    Expression(_FILES),
    Expression(rf"\[\{{{_TEXT}: (\w+)\}} for \1 in {_ID}\]"),
    Expression(rf"monai\.data\.load_decathlon_datalist\((?:(?:\w+=)?(?:{_ID}|{_TEXT}|True|False)(?:, )?)*\)"),
    Expression(rf"{_ID}\.to\({_ID}\)"),
    Expression(rf"torch\.load\({_ID}(?:, map_location={_ID})?, weights_only=True\)"),
    Expression(rf"{_ID}\({_ID}\)"),  # a handler attached to an engine
    Expression(rf"{_ID}\.run\(\)"),
    Expression(
        rf"\[\{{{_TEXT}: (\w+), {_TEXT}: (\w+)\}} for \1, \2 in zip\({_ID}, {_ID}, strict=True\)\]",  # pairs of images
    ),
    Expression(r"monai\.utils\.set_determinism\((?:seed=)?\d*\)"),
    Expression(r"setattr\(torch\.backends\.cudnn, 'benchmark', (?:True|False)\)"),
)


def expression_for(text: str) -> tuple[Expression, re.Match[str]] | None:
    """The listed form of an expression (with its `$`), or None. A Python literal is a form too."""
    body = text[1:].strip()
    if len(body) > 1000:
        return None
    for form in EXPRESSIONS:
        if match := re.fullmatch(form.pattern, body):
            return form, match
    try:
        value = ast.literal_eval(body)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    match = re.fullmatch(r".*", body, re.DOTALL)
    assert match is not None
    return Expression(".*", lambda *_: value), match


# Classes


def allowed_class(name: str, *, make: bool) -> type:
    """The class that a `_target_` names.

    Args:
        name: `<module>.<Class>`, or `<Class>` where MONAI finds it by itself. No other attribute is ever followed.
        make: whether we are to make the object, not only MONAI.

    Raises:
        ValueError: why it is not allowed.
    """
    roots = ROOTS if make else RUN_ROOTS
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name, re.ASCII):
        raise ValueError(f"{name!r} is not the name of a class")
    if "__" in name:
        raise ValueError(f"{name} is no public class")  # importing __main__ runs the program
    module, _, short = name.rpartition(".")
    if module and not _under(module, roots):
        raise ValueError(f"{name} is outside {', '.join(roots)}")
    for candidate in [module] if module else _SHORT_NAME_MODULES:
        try:
            found = getattr(importlib.import_module(candidate), short, None)
        except ImportError:
            continue
        if inspect.isclass(found) and _under(found.__module__, roots):
            break
    else:
        raise ValueError(f"{name} is not a class of {', '.join(roots)}")
    refused = REFUSED | _ONLY_RUN if make else REFUSED
    for base in found.__mro__:
        if reason := refused.get(base.__name__) or refused.get(base.__name__.removesuffix("d")):
            raise ValueError(f"{name} {reason}")
    if make and not issubclass(found, _kinds()):
        raise ValueError(f"{name} is neither a network, a transform nor an inferer")
    return found


def _under(module: str, roots: Collection[str]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def _kinds() -> tuple[type, ...]:
    from monai.inferers import Inferer
    from monai.transforms import Transform
    from torch import nn

    return nn.Module, Transform, Inferer


# The scan


@dataclass(frozen=True)
class Finding:
    """An entry of a configuration that is not on the list.

    Args:
        source: the file.
        where: its name, the id and the line.
        problem: what it asks for.
    """

    source: Path
    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


def scan(config: Config, made: Collection[str] = ()) -> list[Finding]:
    """Hold every entry of a configuration against the list, making nothing.

    Args:
        config: the file.
        made: ids of the entries that we would make; see `monai_attention.bundle_config.reachable`.
    """
    findings = []
    for id, value in walk(config.tree):
        problems: list[tuple[str, str]] = []
        if isinstance(value, str) and (problem := _text_problem(value, make=id in made)):
            problems.append((id, problem))
        if is_component(value):
            problems += [(child(id, key), problem) for key, problem in _component_problems(id, value, make=id in made)]
        findings += [Finding(config.source, config.where(place), problem) for place, problem in problems]
    return findings


def _text_problem(text: str, *, make: bool) -> str | None:
    """What is wrong with a string to which MONAI gives a meaning."""
    if text.startswith("%"):
        return f"macros are not supported: {text[:80]!r}"
    if make and text.startswith("@") and not REFERENCE.fullmatch(text.replace("#", "::")):
        return f"not a plain reference: {text[:80]!r}"
    if text.startswith("$"):
        form = expression_for(text)
        if form is None:
            return f"expression is not on the list: {text[:80]!r}"
        if make and form[0].evaluate is None:
            return f"expression may stand here only for MONAI to run: {text[:80]!r}"
    return None


def _component_problems(id: str, component: dict[str, Any], *, make: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with a `_target_` and the arguments that can change what is run."""
    target = component[TARGET]
    if not isinstance(target, str):
        yield TARGET, "must be the name of a class"
    else:
        try:
            cls = allowed_class(target, make=make)
        except ValueError as error:
            yield TARGET, str(error)
        else:
            if _ONLY_RUN.get(cls.__name__.removesuffix("d")) == "writes files" and not id.startswith("postprocessing"):
                yield TARGET, f"{target} writes files outside the postprocessing"
    for key, value in component.items():
        if key == "_debug_" or (key == "_mode_" and value not in ("default", "callable")):
            yield key, "would start the debugger"
        elif key.startswith("pretrained") and value not in (False, None):
            yield key, "would fetch weights from the network"
        elif key in ("reader", "writer") and not _known(value):
            yield key, f"would import {value!r}"


def _known(value: Any) -> bool:
    """Whether a reader or writer is one of MONAI's by its plain name; any other name would be imported and called."""
    return value is None or (isinstance(value, str) and value in _READERS_AND_WRITERS)
