from pathlib import Path

import pytest

from monai_attention.finetune.folds import folds_of
from monai_attention.finetune.labelled import LabelledCase
from tests.refusals import refusal


def cases(groups, splits=None):
    return [
        LabelledCase(f"case{i:02}", (Path("i"),), Path("l"), group, splits[i] if splits else None)
        for i, group in enumerate(groups)
    ]


def test_people_stay_together_and_folds_are_even():
    found = folds_of(cases("aaabbcdefghi"), 3)
    assert len({found[f"case{i:02}"] for i in range(3)}) == 1
    assert len({found[f"case{i:02}"] for i in (3, 4)}) == 1
    assert sorted(list(found.values()).count(k) for k in range(3)) == [4, 4, 4]


def test_the_order_of_cases_does_not_matter_and_numbers_are_not_dealt_out_in_turn():
    given = cases("abcdefghijklmno")
    found = folds_of(given, 5)
    assert folds_of(given[::-1], 5) == found
    assert [found[case.id] for case in given] != [i % 5 for i in range(15)]


@pytest.mark.parametrize("count", [4, 9])
def test_too_few_people_are_refused(count):
    assert refusal(folds_of, cases("aabbcc"), count).code == "E-TOO-FEW"


def test_the_datasets_own_splits_are_kept():
    splits = ["train", "train", "validation"]
    assert folds_of(cases("abc", splits)) == {"case00": 1, "case01": 1, "case02": 0}
    assert sorted(folds_of(cases("ab", ["train", "train"]), 2).values()) == [0, 1]  # who is for validation, nobody says
    assert refusal(folds_of, cases("ab", ["validation", "validation"])).code == "E-TOO-FEW"
