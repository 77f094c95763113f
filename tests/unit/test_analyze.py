"""Analysis: what its numbers mean, whatever the model; laws, and what counting by hand gives."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from data_pipeline.kinds import kind_named
from hrm_dist.evaluation.intervals import Interval
from tools.analyze.analysis import mean_of_logs, names_of, over_seeds, plain
from tools.analyze.difficulty import MOST_BINS, bins
from tools.analyze.dimensions import (
    Gram,
    Moments,
    by_number,
    participation_ratio,
    population,
    quotient_interval,
    ratio_interval,
)
from tools.analyze.halting import calibration
from tools.analyze.paths import paths
from tools.analyze.pictures import _residuals
from tools.analyze.residuals import residuals
from tools.analyze.staying import staying
from tools.analyze.watch import StateSeries

SEEDS = st.integers(0, 2**32 - 1)


def moments(states: NDArray[np.floating]) -> Moments:
    """Those of states [N, K, D], all there."""
    return Moments.of(states.astype(np.float32), np.ones(states.shape[:2], dtype=bool))


def random_states(seed: int, shape: tuple[int, int, int] = (6, 5, 4)) -> NDArray[np.float64]:
    """States [N, K, D] whose directions differ in how far they spread."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) * rng.uniform(0.2, 3, shape[-1])


def rotation(seed: int, size: int) -> NDArray[np.float64]:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


# Participation ratio


@given(rank=st.integers(1, 6), more=st.integers(0, 3), scale=st.floats(0.01, 100), seed=SEEDS)
def test_states_that_spread_alike_in_k_directions_have_ratio_k(
    rank: int, more: int, scale: float, seed: int
) -> None:
    directions = rotation(seed, rank + more)[:rank]
    states = scale * np.concatenate([directions, -directions])[:, None] + 0.5 * scale
    assert participation_ratio(moments(states)) == pytest.approx(rank, rel=1e-3)


@given(seed=SEEDS, scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_rotation_scale_and_shift_do_not_change_the_ratio(seed: int, scale: float, shift: float) -> None:
    states = random_states(seed)
    moved = scale * (states @ rotation(seed + 1, states.shape[-1]) + shift)
    assert participation_ratio(moments(moved)) == pytest.approx(
        participation_ratio(moments(states)), rel=1e-3
    )


@given(seed=SEEDS, num=st.integers(2, 5), size=st.integers(1, 7))
def test_the_ratio_is_between_1_and_the_rank(seed: int, num: int, size: int) -> None:
    ratio = participation_ratio(moments(random_states(seed, (num, 1, size))))
    assert 1 - 1e-4 <= ratio <= min(num - 1, size) + 1e-4


@given(seed=SEEDS)
def test_the_ratio_is_that_of_the_variances_that_pca_explains(seed: int) -> None:
    from sklearn.decomposition import PCA

    states = random_states(seed)
    variances = PCA().fit(states.reshape(-1, states.shape[-1])).explained_variance_
    expected = variances.sum() ** 2 / (variances**2).sum()
    assert participation_ratio(moments(states)) == pytest.approx(expected, rel=1e-3)


@given(
    seed=SEEDS, weights=arrays(np.int64, 6, elements=st.integers(0, 3)).filter(lambda w: (w > 0).sum() > 1)
)
def test_a_resample_has_the_ratio_of_its_puzzles_put_together(seed: int, weights: NDArray[np.int64]) -> None:
    states = random_states(seed)
    found = moments(states).ratios(weights[None].astype(np.float64))[0]
    assert found == pytest.approx(participation_ratio(moments(states.repeat(weights, axis=0))), rel=1e-3)


def test_states_that_are_not_there_do_not_count() -> None:
    states = random_states(0).astype(np.float32)
    is_there = np.random.default_rng(1).random(states.shape[:2]) < 0.6
    some = states[is_there][None]
    found = participation_ratio(Moments.of(states, is_there))
    assert found == pytest.approx(participation_ratio(moments(some)), rel=1e-4)


def test_states_that_are_all_the_same_have_no_ratio() -> None:
    assert np.isnan(participation_ratio(moments(np.ones((3, 2, 4)))))
    assert np.isnan(ratio_interval(moments(np.ones((3, 2, 4)))).low)


@given(st.integers(0, 99), st.floats(-3, 3))
def test_one_state_again_and_again_has_no_ratio_though_its_numbers_are_rounded(
    seed: int, exponent: float
) -> None:
    both = moments(random_states(seed, (2, 1, 16)) * 10**exponent)
    assert not np.isnan(participation_ratio(both))
    assert np.isnan(both.ratios(np.array([[3.0, 0.0], [0.0, 2.0]]))).all()


def test_of_so_few_puzzles_that_resamples_have_one_alone_there_is_no_interval() -> None:
    value, low, high = ratio_interval(moments(random_states(0, (3, 1, 4))))
    assert value >= 1
    assert np.isnan([low, high]).all()


def test_an_interval_is_around_the_ratio_and_of_one_puzzle_there_is_none() -> None:
    value, low, high = ratio_interval(moments(random_states(0, (40, 10, 4))))
    assert 1 <= low < value < high
    assert np.isnan(ratio_interval(moments(random_states(0, (1, 10, 4)))).low)


def test_an_interval_is_narrower_of_more_puzzles() -> None:
    few, many = (ratio_interval(moments(random_states(0, (num, 10, 4)))) for num in (10, 160))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_the_quotient_of_a_state_with_itself_is_1_for_certain() -> None:
    of = moments(random_states(0))
    assert quotient_interval(of, of) == pytest.approx((1, 1, 1))


def test_more_trajectories_end_with_all_of_them() -> None:
    of = moments(random_states(0, (25, 3, 4)))
    found = by_number(of)
    assert [one.trajectories for one in found] == [10, 20, 25]
    assert found[-1].low == found[-1].high == pytest.approx(participation_ratio(of))
    assert all(one.low <= one.mean <= one.high for one in found)


def test_populations_are_of_the_states_that_their_names_say() -> None:
    rng = np.random.default_rng(0)
    cells = rng.standard_normal((4, 6, 3, 5)).astype(np.float32)
    is_cell = rng.random((4, 3)) < 0.7
    of = StateSeries("z", 2, True, cells, is_cell, cells.mean(axis=2), np.zeros((4, 3, 2), np.float32))
    expected = {
        "cells, trajectory": [
            update[there] for puzzle, there in zip(cells, is_cell, strict=True) for update in puzzle
        ],
        "cells, end": [puzzle[-1][there] for puzzle, there in zip(cells, is_cell, strict=True)],
        "means, trajectory": [*of.means],
        "means, end": [puzzle[-1:] for puzzle in of.means],
    }
    for name, states in expected.items():
        by_hand = participation_ratio(moments(np.concatenate(states)[None]))
        found = population(of, name)
        assert found is not None
        assert participation_ratio(found) == pytest.approx(by_hand, rel=1e-4), name
    assert population(of, "whole, end") is None
    whole = population(of._replace(is_cell=np.ones_like(is_cell)), "whole, end")
    assert whole is not None
    by_hand = participation_ratio(moments(cells[:, -1].reshape(1, 4, -1)))
    assert participation_ratio(whole) == pytest.approx(by_hand, rel=1e-4)


@given(
    seed=SEEDS, weights=arrays(np.int64, 6, elements=st.integers(0, 3)).filter(lambda w: (w > 0).sum() > 1)
)
def test_products_of_states_give_the_ratio_of_their_covariance(seed: int, weights: NDArray[np.int64]) -> None:
    states = random_states(seed, (6, 1, 9))
    [found] = Gram.of(states[:, 0].astype(np.float32)).ratios(weights[None].astype(np.float64))
    [expected] = moments(states).ratios(weights[None].astype(np.float64))
    assert found == pytest.approx(expected, rel=1e-3)


# Paths and residuals


def series(means: NDArray[np.float32], changes: NDArray[np.float32], updates: int) -> StateSeries:
    nothing = np.zeros((len(means), 0, 0, 0), np.float32)
    return StateSeries("z", updates, False, nothing, np.zeros((len(means), 0), bool), means, changes)


def test_paths_in_a_plane_are_explained_in_full() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((3, 4, 2)).astype(np.float32)
    found = paths(series(points @ rotation(0, 5)[:2].astype(np.float32), np.zeros((3, 2, 2), np.float32), 2))
    assert sum(found.explained) == pytest.approx(1)
    before, after = (np.linalg.norm(of[0, 0] - of[2, 3]) for of in (points, found.points))
    assert after == pytest.approx(before, rel=1e-4)


def test_a_residual_that_overflows_after_the_training_leaves_a_gap_in_its_picture() -> None:
    from matplotlib.figure import Figure

    found = {"segments": [1, 2, 3], "median": [2, 1, None], "low": [1, 0.5, None], "high": [3, 2, None]}
    axes = Figure().subplots()
    _residuals(axes, {"residuals": {"z_H": found}, "trained_segments": 2})
    assert axes.get_yscale() == "log"
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, False, True]


def test_a_state_that_starts_again_with_each_cycle_has_spikes() -> None:
    means = np.zeros((3, 6, 1), np.float32)
    falls = np.tile(np.array([0.4, 0.2, 0.1], np.float32), (3, 1, 2))
    found = residuals(series(means, falls, 6), 1, 3)
    assert found.spike == pytest.approx(4)
    settles = np.tile(2.0 ** -np.arange(6, dtype=np.float32), (3, 1, 1))
    assert residuals(series(means, settles, 6), 1, 3).spike == pytest.approx(0.5)
    assert residuals(series(means, settles, 6), 1, 1).spike is None


def test_residuals_are_placed_where_their_segments_end() -> None:
    changes = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    found = residuals(series(np.zeros((1, 4, 1), np.float32), changes, 4), 2, 2)
    assert found.segments[3::4] == [1, 2, 3]
    assert (found.first_segment, found.last_segment) == (3, 7)
    assert found.low == found.median == found.high == changes.reshape(-1).tolist()


# Calibration


def test_estimates_that_come_true_as_often_as_they_say_have_no_error() -> None:
    q = np.repeat([0.25, 0.75], 4)
    found = calibration(q, np.array([1, 0, 0, 0, 1, 1, 1, 0], dtype=bool))
    assert found.expected_error == pytest.approx(0)
    assert found.brier == pytest.approx(0.1875)
    assert found.auc == pytest.approx(0.75)
    assert (found.num, found.num_right, found.bin_num) == (8, 4, [4, 4])


def test_of_right_answers_alone_there_is_no_auc() -> None:
    found = calibration(np.array([0.5, 1.0]), np.ones(2, dtype=bool))
    assert found.auc is None
    assert found.expected_error == pytest.approx(0.25)


@given(data=st.data(), num=st.integers(1, 40))
def test_the_expected_error_is_that_counted_by_hand(data: st.DataObject, num: int) -> None:
    q = data.draw(arrays(np.float64, num, elements=st.floats(0, 1)))
    is_right = data.draw(arrays(np.bool_, num))
    error, edges = 0.0, np.linspace(0, 1, 11)
    for low, high in pairwise(edges.tolist()):
        chosen = (q <= high) & ((q > low) | (low == 0))
        if chosen.any():
            error += chosen.mean() * abs(q[chosen].mean() - is_right[chosen].mean())
    found = calibration(q, is_right)
    assert found.expected_error == pytest.approx(error)
    assert found.brier == pytest.approx(((q - is_right) ** 2).mean())
    assert sum(found.bin_num) == num


# Staying


@given(data=st.data(), num=st.integers(1, 6), segments=st.integers(1, 7), trained=st.integers(1, 9))
def test_what_is_gained_and_lost_is_what_counting_by_hand_gives(
    data: st.DataObject, num: int, segments: int, trained: int
) -> None:
    is_right = data.draw(arrays(np.bool_, (num, segments)))
    found = staying(is_right, trained)
    gained, lost = [0] * segments, [0] * segments
    ever_right = ever_left = lost_since = gained_since = 0
    for of_puzzle in is_right.tolist():
        was, left = False, False
        for n, now in enumerate(of_puzzle):
            gained[n] += now and not was
            lost[n] += was and not now
            left |= was and not now
            was = now
        ever_right += any(of_puzzle)
        ever_left += left
        at = of_puzzle[min(trained, segments) - 1]
        lost_since += at and not of_puzzle[-1]
        gained_since += of_puzzle[-1] and not at
    assert (found.gained, found.lost) == (gained, lost)
    assert (found.ever_right, found.ever_left) == (ever_right, ever_left)
    assert (found.lost_since, found.gained_since) == (lost_since, gained_since)
    assert found.num_right == (np.cumsum(gained) - np.cumsum(lost)).tolist()
    assert (found.left_share is None) == (ever_right == 0)


def test_a_solved_puzzle_that_stays_solved_never_left() -> None:
    found = staying(np.array([[False, True, True, True]]), 2)
    assert (found.ever_left, found.lost_since, found.right_in_training) == (0, 0, 1)


# Difficulty


@given(data=st.data(), num=st.integers(1, 60))
def test_bins_hold_every_puzzle_once_and_no_value_is_in_two(data: st.DataObject, num: int) -> None:
    values = data.draw(arrays(np.int64, num, elements=st.integers(0, 40)))
    is_right = data.draw(arrays(np.bool_, num))
    found = bins(values, is_right)
    assert len(found) <= MOST_BINS
    assert sum(one.num for one in found) == num
    assert sum(one.right for one in found) == is_right.sum()
    assert all(one.high < after.low for one, after in pairwise(found))
    for one in found:
        assert one.num == ((values >= one.low) & (values <= one.high)).sum()


# Images


@pytest.mark.parametrize(("name", "check"), [("maze", "optimal_path"), ("maze-unique", "optimal_path")])
def test_images_of_mazes_have_the_images_of_their_answers(name: str, check: str) -> None:
    kind = kind_named(name)
    maze = np.array([[3, 2, 1], [1, 2, 1], [1, 2, 4]], dtype=np.uint8)
    answer = np.where(maze == 2, 5, maze).astype(np.uint8)
    examples = np.stack([maze.reshape(-1), answer.reshape(-1)])[None].repeat(8, axis=0)
    assert kind.images is not None
    turned = kind.images(examples, np.arange(8), np.arange(8))
    np.testing.assert_array_equal(turned[0], examples[0])
    assert len(np.unique(turned[:, 0], axis=0)) == 8
    assert kind.checks[check](turned[:, 0], turned[:, 1]).all()


def test_images_of_sudokus_have_the_images_of_their_answers() -> None:
    kind = kind_named("sudoku")
    solution = np.array([2, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 2], dtype=np.uint8)
    inputs = np.where(np.arange(16) % 3, solution, 1).astype(np.uint8)
    examples = np.stack([inputs, solution])[None].repeat(8, axis=0)
    assert kind.images is not None
    turned = kind.images(examples, np.zeros(8, np.int64), np.arange(8))
    np.testing.assert_array_equal(turned[0], examples[0])
    assert len(np.unique(turned[:, 0], axis=0)) > 1
    assert kind.checks["valid_accuracy"](turned[:, 0], turned[:, 1]).all()


def test_arc_tasks_have_no_images_of_single_puzzles() -> None:
    assert kind_named("arc").images is None


# What is written


def test_plain_values_have_names_for_fields_and_none_for_what_is_no_number() -> None:
    interval = ratio_interval(moments(np.ones((3, 2, 4))))
    assert plain({"a": (interval, np.arange(2)), 3: float("inf")}) == {
        "a": [{"value": None, "low": None, "high": None}, [0, 1]],
        "3": None,
    }


def test_means_over_seeds_are_of_logarithms() -> None:
    found = mean_of_logs([2.0, 8.0])
    assert found["value"] == pytest.approx(4)
    assert found["low"] < 2
    assert found["low"] * found["high"] == pytest.approx(16)


def checkpoint(seed: int, quotient: float, *, settings: str = "a", step: int = 10) -> dict[str, object]:
    of = {"quotient": {"cells": Interval(quotient, 0.1, 10)}}
    return {
        "name": f"seed{seed}",
        "seed": seed,
        "step": step,
        "settings_sha256": settings,
        "states": ["z_H", "z_L"],
        "dimensions": {"trained": of, "initial": of},
    }


def test_only_checkpoints_that_differ_in_their_seed_alone_have_a_mean() -> None:
    [found] = over_seeds([checkpoint(0, 2.0), checkpoint(1, 8.0)]).values()
    assert found["num"] == 2
    assert found["trained"]["cells"]["value"] == pytest.approx(4)
    assert found["change"]["cells"] == pytest.approx({"value": 1, "low": 1, "high": 1})
    assert over_seeds([checkpoint(0, 2.0), checkpoint(0, 8.0)]) == {}
    assert over_seeds([checkpoint(0, 2.0), checkpoint(1, 8.0, settings="b")]) == {}
    assert over_seeds([checkpoint(0, 2.0), checkpoint(1, 8.0, step=20)]) == {}
    assert over_seeds([checkpoint(0, 2.0)]) == {}


def test_names_tell_checkpoints_apart() -> None:
    one, best, other = (
        Path(f"runs/{name}") for name in ("a/checkpoints/latest", "a/checkpoints/best", "b/c/latest")
    )
    assert names_of([one, other]) == ["a", "b"]
    assert names_of([one, best]) == ["a/latest", "a/best"]
