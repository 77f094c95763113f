"""Intervals: what they cover, and that they are those of the textbooks."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from hrm_dist.evaluation.intervals import (
    difference_interval,
    difference_text,
    interval_text,
    mean_interval,
    share_interval,
    task_intervals,
)

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(st.integers(1, 1000).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num))))
def test_shares_have_the_interval_of_scipy(counts: tuple[int, int]) -> None:
    found = share_interval(*counts)
    expected = stats.binomtest(*counts).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high), atol=1e-9)


@given(st.integers(1, 1000))
def test_bounds_at_the_ends_are_exact(num: int) -> None:
    assert share_interval(0, num).low == 0
    assert share_interval(num, num).high == 1


def test_half_a_point_counts_between_its_neighbours() -> None:
    """A task of two test inputs may be half solved."""
    assert share_interval(3, 10).low < share_interval(3.5, 10).low < share_interval(4, 10).low


@pytest.mark.parametrize("counts", [(0, 0), (5, 4), (-1, 4)])
def test_a_share_of_nothing_is_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is no share"):
        share_interval(*counts)


@given(VALUES)
def test_means_have_the_interval_of_scipy(values: list[float]) -> None:
    found = mean_interval(values)
    error = float(stats.sem(values))
    if error > 1e-12:
        expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-6)


def test_one_seed_has_no_interval() -> None:
    found = mean_interval([0.5])
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert interval_text(found) == "50.0 %"


@given(VALUES, st.floats(-1, 1))
def test_a_constant_gain_is_certain_however_seeds_differ(values: list[float], gain: float) -> None:
    found = difference_interval([value + gain for value in values], values)
    np.testing.assert_allclose(tuple(found), gain, atol=1e-12)


def test_settings_of_other_seeds_are_not_paired() -> None:
    with pytest.raises(ValueError, match="shorter"):
        difference_interval([0.1, 0.2], [0.1])


def test_intervals_are_spelled_in_percent() -> None:
    assert interval_text(share_interval(8, 69)) == "11.6 % [6.0, 21.2]"


def test_differences_are_spelled_with_their_sign_in_points() -> None:
    assert difference_text(difference_interval([0.5, 0.7], [0.4, 0.6])) == "+10.0 points [10.0, 10.0]"
    assert difference_text(difference_interval([0.4], [0.5])) == "-10.0 points"
    assert difference_text(difference_interval([3.0], [1.0]), percent=False) == "+2.0"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
@example([0.9524887081828142] * 3)
def test_an_interval_over_tasks_holds_their_mean_and_no_more_than_their_range(shares: list[float]) -> None:
    [interval] = task_intervals([shares])
    assert interval.value == pytest.approx(np.mean(shares))
    assert min(shares) - 1e-9 <= interval.low <= interval.value <= interval.high <= max(shares) + 1e-9
    assert [interval] == task_intervals([shares])


def test_an_interval_over_many_tasks_is_that_of_their_standard_error() -> None:
    shares = (np.arange(400) % 5 == 0).astype(float)
    [interval] = task_intervals([shares.tolist()])
    half = 1.96 * shares.std() / 20
    assert interval == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=0.005)


def test_scores_of_the_same_tasks_are_resampled_together() -> None:
    first, second = task_intervals([[0, 0, 1, 1], [1, 1, 2, 2]])
    assert tuple(second) == pytest.approx([bound + 1 for bound in first])


def test_a_single_task_has_no_interval() -> None:
    [interval] = task_intervals([[0.5]])
    assert interval.value == 0.5
    assert np.isnan([interval.low, interval.high]).all()
