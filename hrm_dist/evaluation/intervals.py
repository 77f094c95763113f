"""Intervals of scores: over inputs, over seeds, and of the difference between two settings.

All are two-sided at 95 %. An interval over inputs says what other test inputs might have given with the same weights;
one over tasks what other tasks might have, each with all of its test inputs; one over seeds what other initial weights
and orders of the data might have given on the same test inputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 9_999


class Interval(NamedTuple):
    """An estimate and the bounds of its interval; of too few values to tell, the bounds are NaN."""

    value: float
    low: float
    high: float


def share_interval(num_right: float, num: int) -> Interval:
    """Return the share of `num` inputs that are right, with Wilson's interval.

    Raise ValueError where nothing was evaluated, or more are right than there are.
    """
    from scipy.stats import norm  # a second to load

    if num < 1 or not 0 <= num_right <= num:
        raise ValueError(f"{num_right} of {num} is no share")
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    share = num_right / num
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * (share * (1 - share) / num + z * z / (4 * num * num)) ** 0.5
    # At the ends both terms are the same number, but not to the last bit.
    low = max(0.0, centre - half) if num_right else 0.0
    high = min(1.0, centre + half) if num_right < num else 1.0
    return Interval(share, low, high)


def task_intervals(shares: Sequence[Sequence[float]]) -> list[Interval]:
    """Return the mean of each sequence of shares, a task each, with the percentiles of a bootstrap over tasks.

    The sequences are of the same tasks, and resampled together. The draws have a fixed seed, so that the same shares
    give the same bounds; of a single task there are none.
    """
    from scipy.stats import bootstrap

    values = np.array(shares, dtype=np.float64)
    means = values.mean(axis=-1).tolist()
    if values.shape[-1] < 2:
        return [Interval(mean, float("nan"), float("nan")) for mean in means]
    resampled = bootstrap(
        (values,),
        np.mean,
        axis=-1,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        batch=1_000,  # at a time, which bounds the memory
        random_state=np.random.default_rng(0),  # pyright: ignore[reportCallIssue] -- `rng` came with scipy 1.15
    )
    lows, highs = (np.atleast_1d(bound).tolist() for bound in resampled.confidence_interval)
    # Means of equal shares differ in the last bit, by the order in which they are summed.
    return [
        Interval(mean, min(low, mean), max(high, mean))
        for mean, low, high in zip(means, lows, highs, strict=True)
    ]


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of one value per seed, with Student's interval; a single value tells nothing of the spread."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def difference_interval(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Return the mean difference of two settings, trained with the same seeds in the same order.

    Pairs by seed have the order of the data and the draws in common, so their differences spread less than the values.
    """
    return mean_interval([value - other for value, other in zip(values, baseline, strict=True)])


def interval_text(interval: Interval, *, percent: bool = True) -> str:
    """Spell an interval for people, such as `11.6 % [6.0, 21.2]`; without bounds the value alone."""
    value, low, high = (100 * number if percent else number for number in interval)
    unit = " %" if percent else ""
    return f"{value:.1f}{unit}" + ("" if low != low else f" [{low:.1f}, {high:.1f}]")


def difference_text(interval: Interval, *, percent: bool = True) -> str:
    """Spell a difference with its sign, such as `+4.2 points [1.0, 7.4]`: of two shares in points of percent."""
    text = interval_text(interval, percent=percent).replace(" %", " points")
    return text if text.startswith("-") else f"+{text}"
