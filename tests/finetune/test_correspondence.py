from pathlib import Path

import pytest

from monai_attention.errors import Refusal
from monai_attention.finetune.correspondence import corresponding

BUNDLE = {0: "background", 1: "Liver", 2: "left kidney", 3: "right kidney"}


def match(classes, **names):
    return corresponding(classes, BUNDLE, {key.replace("_", " "): value for key, value in names.items()}, Path("data"))


def test_names_decide_and_never_numbers():
    assert match({7: "LIVER", 1: "spleen", 4: "Left_Kidney"}) == {7: (1,), 1: (), 4: (2,)}


def test_several_of_the_bundle_may_mean_one():
    found = match({1: "kidney", 2: "liver"}, left_kidney="Kidney", right_kidney="kidney")
    assert found == {1: (2, 3), 2: (1,)}


def test_what_is_given_comes_first():
    assert match({1: "liver", 2: "class_2"}, liver="class_2") == {1: (), 2: (1,)}


@pytest.mark.parametrize(
    ("classes", "names", "said"),
    [
        ({1: "class_1"}, {}, "no class corresponds"),
        ({1: "background"}, {}, "no class corresponds"),
        ({1: "liver"}, {"liver": "hepar"}, "no class hepar"),
        ({1: "liver"}, {"spleen": "liver"}, "no class spleen"),
        ({1: "liver", 2: "Liver"}, {}, "two classes"),
    ],
)
def test_what_cannot_be_is_refused_with_both_lists(classes, names, said):
    with pytest.raises(Refusal, match="E-CLASSES") as refused:
        match(classes, **names)
    assert said in refused.value.message
    assert refused.value.remedy


def test_a_dataset_without_a_class_has_nothing_to_correspond():
    assert match({}) == {}
