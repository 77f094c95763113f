"""Forward residuals: how much each update changes its state (figure 3 of arXiv 2506.21734).

The paper's figure has HRM's H settle slowly, and its L settle within each cycle and start again with the next one, in
spikes, where a plain recurrent stack comes to rest at once. A residual is the root mean square of the change, over
computed positions and width; of states, whose own is about 1, since every block ends in a normalisation.
"""

from typing import NamedTuple

import numpy as np

from tools.analyze.watch import StateSeries

QUANTILES = (0.1, 0.5, 0.9)


class Residuals(NamedTuple):
    """Of one state, in order of its updates over all segments."""

    segments: list[float]
    """When an update is over, in segments."""
    median: list[float]
    """Over puzzles."""
    low: list[float]
    """Quantiles over puzzles, 10 and 90 %."""
    high: list[float]
    first_segment: float
    """Of the last update of the first segment, the median over puzzles."""
    last_segment: float
    """Of the last update of the last segment of training."""
    spike: float | None
    """How many times an update is that begins a cycle, of the update before it, in the segments of training: the median
    over cycles. Above 1 the state starts again with each cycle. None where a cycle has one update."""


def residuals(series: StateSeries, trained_segments: int, updates_per_cycle: int) -> Residuals:
    """Return what the updates of a state change; updates_per_cycle: 1 where they have no cycles within a segment."""
    num, num_segments, updates = series.residuals.shape
    low, median, high = np.quantile(series.residuals.reshape(num, -1), QUANTILES, axis=0)
    num_trained = min(trained_segments, num_segments) * updates
    begins = np.arange(updates_per_cycle, num_trained, updates_per_cycle)
    spike = None
    if updates_per_cycle > 1 and len(begins) and (median[begins - 1] > 0).all():
        spike = float(np.median(median[begins] / median[begins - 1]))
    return Residuals(
        segments=((1 + np.arange(num_segments * updates)) / updates).tolist(),
        median=median.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        first_segment=float(median[updates - 1]),
        last_segment=float(median[num_trained - 1]),
        spike=spike,
    )
