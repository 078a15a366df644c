"""Which classes of a bundle are which of a dataset: by their names, or as the user says; never by their numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from monai_attention.errors import Refusal
from monai_attention.finetune.labelled import listed, same_name


def corresponding(
    classes: Mapping[int, str], bundle: Mapping[int, str], names: Mapping[str, str], source: Path
) -> dict[int, tuple[int, ...]]:
    """For every class of a dataset, the bundle's labels that mean it: none where the bundle has no such class.

    Args:
        classes: of the dataset, value -> name without background.
        bundle: label -> name; 0 is background.
        names: class of the bundle -> class of the dataset, where these are not called alike; several may mean one.
            Spellings are the same here and in comparing, see `labelled.same_name`.
        source: of the dataset, for messages.

    Raises:
        Refusal: E-CLASSES, no class corresponds, a given name is no class, or a name means several classes.
    """
    whole = f"the bundle has {_listed(bundle)}; the dataset has {listed(classes.values())}"
    remedy = 'say which are which: --map "name in the bundle=name in the dataset,..."'
    values: dict[str, int] = {}
    for value, name in classes.items():
        if values.setdefault(same_name(name), value) != value:
            message = f"two classes of the dataset are called {name}, if spellings are the same"
            raise Refusal("E-CLASSES", message, path=source, remedy="give each a name of its own")
    given = {same_name(theirs): same_name(ours) for theirs, ours in names.items()}
    unknown = [one for one in given if one not in {same_name(name) for label, name in bundle.items() if label}]
    unknown += [one for one in given.values() if one not in values]
    if unknown:
        raise Refusal("E-CLASSES", f"there is no class {listed(unknown)}: {whole}", path=source, remedy=remedy)
    found: dict[int, tuple[int, ...]] = defaultdict(tuple)
    for label, name in sorted(bundle.items()):
        ours = given.get(same_name(name), same_name(name))
        if label and ours in values:
            found[values[ours]] += (label,)
    if classes and not found:
        raise Refusal("E-CLASSES", f"no class corresponds by its name: {whole}", path=source, remedy=remedy)
    return {value: found.get(value, ()) for value in classes}


def _listed(bundle: Mapping[int, str]) -> str:
    return listed(name for label, name in sorted(bundle.items()) if label) or "no class"
