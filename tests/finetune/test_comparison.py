"""Bundles side by side, with numbers that can be told by heart."""

import pytest

from monai_attention.finetune.comparison import comparison, table
from monai_attention.finetune.evaluation import Evaluation, ScoredCase

CLASSES = {1: "liver", 2: "spleen"}


def scored(*dice, lacks=(), refused=()):
    """An evaluation of cases a, b, c, ... of as many people, with these Dice of liver and spleen."""
    meant = {name: () if name in lacks else (name,) for name in CLASSES.values()}
    cases = []
    for name, values in zip("abcdef", dice, strict=False):
        scores = {
            one: {"dice": value, "surface_dice": value, "hd95_mm": 1.0, "where": None}
            for one, value in zip(CLASSES.values(), values, strict=True)
            if meant[one]
        }
        cases.append(ScoredCase(name, name, scores))
    told = tuple({"case_id": name, "code": "E-MODALITY", "message": "", "remedy": ""} for name in refused)
    return Evaluation("one 0.1.0", "data", None, CLASSES, meant, tuple(cases), told)


NEW = scored((0.9, 0.5), (0.8, 0.7), (0.7, 0.6))


def test_differences_are_paired_and_a_class_that_one_lacks_has_none():
    told = comparison({"new": NEW, "old": scored((0.6, 0), (0.6, 0), (0.6, 0), lacks=["spleen"])}, {})
    liver = told["differences"]["old"]["dice"]["liver"]
    assert liver["estimate"]["mean"] == pytest.approx(0.2)
    assert (liver["higher"], liver["lower"]) == (3, 0)
    assert told["differences"]["old"]["dice"]["spleen"]["estimate"]["mean"] is None
    heading, first, second, mean = table(told)
    assert heading == ("class", "new", "old", "new less old")
    assert first[0] == "liver"
    assert first[3].startswith("+0.200 (")
    assert first[3].endswith("higher in 3, lower in 0")
    assert second[2:] == ("no such class", "n/a")
    assert mean[0] == "mean over classes"
    assert mean[2].endswith(", of 1")


def test_who_scored_no_case_of_the_first_is_lacking_and_why():
    told = comparison({"new": NEW, "old": scored(refused="ab")}, {"other": "it has no such class"})
    assert list(told["contenders"]) == ["new"]
    assert told["lacking"] == {
        "other": "it has no such class",
        "old": "no case has scores of both: 2 refused, E-MODALITY",
    }
    assert table(told)[0] == ("class", "new")
