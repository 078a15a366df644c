"""FAULTS.md, the published fault matrix, agrees with the tests and with the source."""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
ROWS = 60
CLAIMED = {*range(1, 54), 55, 57, 58, 59, 60}
CODE = r"[EFRI]-[A-Z0-9]+(?:-[A-Z0-9]+)*"


def table(heading):
    """Cells of the rows of the table below a heading, without the table's own head."""
    text = (TESTS / "FAULTS.md").read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


MATRIX = {
    int(row): (fault, answer, set(re.findall(r"`([^`]+)`", tests)))
    for row, fault, answer, tests in table("# The fault matrix")
}


def rows_of(name):
    """test_row_17_and_31_... -> 17, 31; test_rows_26_27_28_... -> 26, 27, 28."""
    named = re.match(r"test_rows?_(\d\d(?:_(?:and_)?\d\d)*)_", name)
    return {int(row) for row in re.findall(r"\d\d", named[1])} if named else set()


@functools.cache
def all_tests():
    """Ids of all tests, as pytest takes them."""
    return {
        f"{path.relative_to(ROOT).as_posix()}::{node.name}"
        for path in TESTS.rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def codes_in_source():
    files = (ROOT / "monai_attention").rglob("*.py")
    return {code for file in files for code in re.findall(rf"[\"']({CODE})[\"']", file.read_text(encoding="utf-8"))}


def test_every_row_is_there_once_and_in_order():
    assert [int(row) for row, *_ in table("# The fault matrix")] == list(range(1, ROWS + 1))


@pytest.mark.parametrize("row", MATRIX)
def test_a_row_names_its_tests_or_says_not_yet(row):
    fault, answer, named = MATRIX[row]
    there = all_tests()
    assert fault
    assert named <= there, "FAULTS.md names tests that are not there"
    assert {test for test in there if row in rows_of(test.partition("::")[2])} <= named, "tests missing in FAULTS.md"
    assert answer.startswith("not yet") != bool(named)
    assert named or row not in CLAIMED


def test_codes_are_those_of_the_source():
    listed = [re.fullmatch(f"`({CODE})`", code)[1] for code, _ in table("## Codes")]
    assert listed == sorted(listed)
    assert set(listed) == codes_in_source()
    named = {code for _, answer, _ in MATRIX.values() for code in re.findall(f"`({CODE})`", answer)}
    assert named <= set(listed)
