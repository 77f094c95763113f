"""Participation ratio: in how many directions a model's states spread (arXiv 2506.21734, section 4 and figure 8).

    PR = (sum of l)^2 / (sum of l^2),   l the eigenvalues of the covariance matrix of states

It is 1 where all states lie on a line, and the width D where they spread alike in all directions. The paper takes
"neural states gathered across" 10 to 100 trajectories of solving Sudokus and does not say of which positions. Here a
state is the vector of D numbers at one cell of a puzzle (no prefix, no padding), and a population is

  cells, trajectory   after every update in the segments of training, at cells drawn at random: what is shown first
  cells, end          after the last of these segments
  means, ...          the same, of the mean over all cells of the puzzle in place of single cells
  whole, end          after the last segment, all cells of a puzzle as one vector: where all puzzles fill the canvas and
                      all cells were kept. Of N puzzles no ratio is above N - 1

An interval is at 95 %, from the standard error of a bootstrap over puzzles, each with all of its states, on the
logarithm of the ratio. It says what as many other puzzles might have given. Percentiles would lie too low, as resamples
have fewer different puzzles, and so fewer dimensions. Ratios cannot be below 1.

Shape legend: N puzzles, K states of each, D hidden_size, R resamples.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_dist.evaluation.intervals import CONFIDENCE, Interval
from tools.analyze.watch import StateSeries

RESAMPLES = 999
NUMBERS = (10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
"""Of trajectories, for which the ratio is told; the paper goes from 10 to 100."""
DRAWS = 30
"""Subsets of each number of trajectories."""
POPULATIONS = ("cells, trajectory", "cells, end", "means, trajectory", "means, end", "whole, end")
_MAX_BYTES = 64 * 2**20
_LEAST_SPREAD = 1e-6
"""Least variance of states that are not all the same, as a share of their mean square."""
Weights = NDArray[np.float64]  # [R, N], how often a resample has each puzzle


class Moments(NamedTuple):
    """What the covariance of any choice of puzzles follows from."""

    num: NDArray[np.float64]  # [N] states
    sums: NDArray[np.float64]  # [N, D]
    squares: NDArray[np.float32]  # [N, D, D] sums of outer products

    @classmethod
    def of(cls, states: NDArray[np.float32], is_there: NDArray[np.bool_]) -> "Moments":
        """Take them of states [N, K, D], those that are there [N, K]."""
        # Around the mean of all: sums of squares of numbers far from 0 would lose what is small.
        centred = states - states[is_there].mean(axis=0, dtype=np.float64).astype(np.float32)
        centred[~is_there] = 0
        squares = np.matmul(centred.transpose(0, 2, 1), centred)
        return cls(is_there.sum(1).astype(np.float64), centred.sum(1, dtype=np.float64), squares)

    @property
    def num_puzzles(self) -> int:
        return len(self.num)

    def ratios(self, weights: Weights) -> NDArray[np.float64]:
        """Return the participation ratio of each resample, [R]; NaN where all of its states are the same."""
        size = self.squares.shape[1]
        at_a_time = max(1, _MAX_BYTES // (4 * size * size))
        found = [
            self._ratios(weights[first : first + at_a_time]) for first in range(0, len(weights), at_a_time)
        ]
        return np.concatenate(found)

    def _ratios(self, weights: Weights) -> NDArray[np.float64]:
        num = weights @ self.num
        means = weights @ self.sums / num[:, None]
        squares = np.tensordot(weights.astype(np.float32), self.squares, 1) / num[:, None, None]
        covariance = squares - means[:, :, None] * means[:, None, :]
        total = np.trace(covariance, axis1=1, axis2=2)
        # Of states that are all the same, what rounding leaves is no covariance.
        is_spread = total > _LEAST_SPREAD * np.trace(squares, axis1=1, axis2=2)
        # The sum of squared eigenvalues of a symmetric matrix is that of its entries.
        of_squares = np.square(covariance).sum(axis=(1, 2))
        return np.square(total) / np.where(is_spread, of_squares, np.nan)


class Gram(NamedTuple):
    """The same of one state for each puzzle, which may be wider than there are puzzles."""

    products: NDArray[np.float64]  # [N, N] of states, around the mean of all

    @classmethod
    def of(cls, states: NDArray[np.float32]) -> "Gram":
        """Take them of states [N, D]."""
        centred = states - states.mean(axis=0, dtype=np.float64)
        return cls(centred @ centred.T)

    @property
    def num_puzzles(self) -> int:
        return len(self.products)

    def ratios(self, weights: Weights) -> NDArray[np.float64]:
        """Return the participation ratio of each resample, [R]; NaN where all of its states are the same."""
        at_a_time = max(1, _MAX_BYTES // (8 * self.products.size))
        found = [
            self._ratios(weights[first : first + at_a_time]) for first in range(0, len(weights), at_a_time)
        ]
        return np.concatenate(found)

    def _ratios(self, weights: Weights) -> NDArray[np.float64]:
        shares = weights / weights.sum(axis=1, keepdims=True)
        with_mean = shares @ self.products
        of_mean = (shares * with_mean).sum(axis=1)
        # Around the mean of the resample; the covariance has the eigenvalues of these products, weighted.
        products = self.products - with_mean[:, :, None] - with_mean[:, None, :] + of_mean[:, None, None]
        total = (shares * np.diagonal(products, axis1=1, axis2=2)).sum(axis=1)
        of_squares = np.einsum("ri,rij,rj->r", shares, np.square(products), shares)
        with np.errstate(invalid="ignore"):
            return np.square(total) / np.where(of_squares > 0, of_squares, np.nan)


Spread = Moments | Gram


def participation_ratio(moments: Spread) -> float:
    """Return the ratio of all puzzles."""
    return float(moments.ratios(np.ones((1, moments.num_puzzles)))[0])


def ratio_interval(moments: Spread, *, seed: int = 0) -> Interval:
    """Return the ratio of all puzzles with its interval."""
    value, low, high = _bootstrapped(moments.ratios, moments.num_puzzles, seed)
    return Interval(value, *np.maximum(1.0, (low, high)).tolist())  # NaN stays NaN


def quotient_interval(above: Spread, below: Spread, *, seed: int = 0) -> Interval:
    """Return how many times the ratio of one state is that of another, of the same puzzles, with its interval."""
    return _bootstrapped(
        lambda weights: above.ratios(weights) / below.ratios(weights), above.num_puzzles, seed
    )


def _bootstrapped(statistic: Callable[[Weights], NDArray[np.float64]], num: int, seed: int) -> Interval:
    """Return a positive statistic of puzzles with the interval of its logarithm."""
    from scipy.stats import DegenerateDataWarning, bootstrap, norm

    value = float(statistic(np.ones((1, num)))[0])
    if num < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan)

    def of_indices(indices: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        flat = indices.reshape(-1, indices.shape[-1])
        weights = np.zeros((len(flat), num))
        np.add.at(weights, (np.arange(len(flat))[:, None], flat), 1)
        return np.log(statistic(weights)).reshape(indices.shape[:-1])

    with warnings.catch_warnings():
        # Of few puzzles some resamples have one alone, and so no ratio; then there is no interval.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        error = bootstrap(
            (np.arange(num),),
            of_indices,
            vectorized=True,
            method="percentile",
            n_resamples=RESAMPLES,
            batch=100,
            random_state=np.random.default_rng(seed),  # pyright: ignore[reportCallIssue] -- `rng` came with scipy 1.15
        ).standard_error
    factor = math.exp(norm.ppf((1 + CONFIDENCE) / 2) * float(error))
    return Interval(value, value / factor, value * factor)


class ByNumber(NamedTuple):
    """The ratio of some trajectories, over subsets of them."""

    trajectories: int
    mean: float
    low: float
    """Quantiles of the subsets, 2.5 and 97.5 %."""
    high: float


def by_number(moments: Spread, *, seed: int = 0) -> list[ByNumber]:
    """Return the ratio of more and more trajectories, each of subsets drawn without replacement."""
    total, rng, found = moments.num_puzzles, np.random.default_rng(seed), []
    for number in sorted({*(n for n in NUMBERS if n < total), total}):
        if number < 2:
            continue
        chosen = rng.random((DRAWS if number < total else 1, total)).argsort(1).argsort(1) < number
        ratios = moments.ratios(chosen.astype(np.float64))
        low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        found.append(ByNumber(number, float(ratios.mean()), float(low), float(high)))
    return found


def population(series: StateSeries, name: str) -> Spread | None:
    """Return how a state spreads in one of POPULATIONS; None where there is none."""
    of, when = name.split(", ")
    if of == "whole":
        has_all = series.has_all_cells and series.is_cell.all()
        return Gram.of(series.cells[:, -1].reshape(len(series.cells), -1)) if has_all else None
    states, is_there = series.means[:, :, None], np.ones((*series.means.shape[:2], 1), dtype=bool)
    if of == "cells":
        states, is_there = series.cells, np.repeat(series.is_cell[:, None], series.cells.shape[1], axis=1)
    updates = slice(-1 if when == "end" else 0, None)
    num, size = len(states), states.shape[-1]
    return Moments.of(states[:, updates].reshape(num, -1, size), is_there[:, updates].reshape(num, -1))


def by_update(series: StateSeries) -> list[float]:
    """Return the ratio of the states at cells after each update."""
    return [participation_ratio(Moments.of(states, series.is_cell)) for states in series.cells.swapaxes(0, 1)]


def by_segment(series: StateSeries, *, seed: int = 0) -> list[Interval]:
    """Return the ratio of the states at cells after each segment."""
    ends = series.cells[:, series.updates_per_segment - 1 :: series.updates_per_segment]
    return [ratio_interval(Moments.of(states, series.is_cell), seed=seed) for states in ends.swapaxes(0, 1)]


def measured(all_series: Sequence[StateSeries], *, seed: int = 0) -> dict[str, Any]:
    """Return all of it for a model, as analysis.json has it under `trained` and `initial`."""
    found: dict[str, Any] = {
        series.name: {
            "populations": {},
            "by_number": {},
            "by_segment": by_segment(series, seed=seed),
            "by_update": by_update(series),
            "updates_per_segment": series.updates_per_segment,
        }
        for series in all_series
    }
    quotients = {}
    # One at a time, as moments are large.
    for name in POPULATIONS:
        spreads = [of for series in all_series if (of := population(series, name)) is not None]
        for series, of in zip(all_series, spreads, strict=False):
            found[series.name]["populations"][name] = ratio_interval(of, seed=seed)
            found[series.name]["by_number"][name] = by_number(of, seed=seed)
        if len(spreads) == 2:
            quotients[name] = quotient_interval(*spreads, seed=seed)
    return found | ({"quotient": quotients} if quotients else {})
