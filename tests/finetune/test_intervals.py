"""Intervals by person, and honest about what is not there."""

import numpy as np
import pytest

from monai_attention.finetune.intervals import differences, estimates

N = np.nan


def test_a_mean_lies_in_its_interval_and_the_same_seed_gives_the_same():
    values = np.random.default_rng(0).beta(12, 2, (30, 2))
    people = [f"p{i}" for i in range(30)]
    (first, second), overall = estimates(values, people)
    for one, mean in ((first, values[:, 0].mean()), (second, values[:, 1].mean()), (overall, values.mean())):
        low, high = one.interval
        assert low < one.mean < high
        assert one.mean == pytest.approx(mean)
        assert (one.cases, one.people) == (30, 30)
    assert estimates(values, people) == ([first, second], overall)
    error = values[:, 0].std(ddof=1) / np.sqrt(30)
    assert first.interval == pytest.approx((first.mean - 2.05 * error, first.mean + 2.05 * error), abs=0.2 * error)


def test_cases_of_one_person_are_no_further_evidence():
    values = np.random.default_rng(1).beta(12, 2, (10, 1))
    ((once,), _) = estimates(values, list("abcdefghij"))
    ((often,), _) = estimates(np.repeat(values, 5, axis=0), [c for c in "abcdefghij" for _ in range(5)])
    assert often.interval == pytest.approx(once.interval)
    assert (often.cases, often.people) == (50, 10)


def test_row_35_a_class_that_cases_lack_is_a_mean_over_those_that_have_it():
    values = np.array([[0.8, N, N], [0.6, 0.5, N], [0.7, N, N], [0.9, 0.3, N]])
    (full, some, none), overall = estimates(values, list("abcd"))
    assert (full.mean, full.cases) == (pytest.approx(0.75), 4)
    assert (some.mean, some.interval, some.cases, some.people) == (pytest.approx(0.4), None, 2, 2)
    assert (none.mean, none.interval, none.cases) == (None, None, 0)
    assert (overall.mean, overall.interval, overall.cases) == (pytest.approx((0.75 + 0.4) / 2), None, 4)


@pytest.mark.parametrize("people", [[], ["a"], ["a", "b"], ["a", "b", "b"]])
def test_fewer_than_three_people_have_no_interval(people):
    ((one,), overall) = estimates(np.full((len(people), 1), 0.5), people)
    assert one.interval is overall.interval is None
    assert one.mean == (0.5 if people else None)


def test_differences_are_paired():
    """Cases differ a lot, the change hardly: only pairs can see it."""
    before = np.random.default_rng(2).uniform(0.2, 0.9, (20, 1))
    after = before + np.random.default_rng(3).normal(0.02, 0.01, (20, 1))
    people = [str(i) for i in range(20)]
    ((change,), overall) = differences(before, after, people)
    assert change.estimate.mean == pytest.approx((after - before).mean())
    assert 0 < change.estimate.interval[0] < change.estimate.interval[1] < 0.04
    assert (change.higher, change.lower) == ((after > before).sum(), (after < before).sum())
    assert overall == change
    ((a,), _), ((b,), _) = estimates(before, people), estimates(after, people)
    assert b.interval[0] < a.interval[1]  # unpaired intervals overlap


def test_cases_with_one_number_only_are_counted_and_left_out():
    before, after = np.array([[0.5, N], [0.5, 0.2], [N, N]]), np.array([[0.7, 0.0], [N, 0.2], [N, 0.9]])
    (first, second), overall = differences(before, after, list("abc"))
    assert (first.estimate.mean, first.higher, first.lower, first.only_one) == (pytest.approx(0.2), 1, 0, 1)
    assert (second.estimate.mean, second.higher, second.lower, second.only_one) == (0, 0, 0, 2)
    assert (overall.higher, overall.lower, overall.only_one) == (1, 0, 1)
