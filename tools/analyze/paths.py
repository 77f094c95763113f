"""The paths that states take, in the plane of their two largest principal components (figure 3 of arXiv 2506.21734).

A point is the mean of a state over the cells of a puzzle after an update, in the segments of training. The components
are those of all puzzles' points together. Where all states begin is not among them: the way from there would be most
of the variance.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.analyze.watch import StateSeries

NUM_SHOWN = 6
"""Puzzles whose paths are kept."""


class Paths(NamedTuple):
    """Of one state."""

    explained: list[float]
    """Shares of the variance of both components."""
    points: NDArray[np.float64]  # [shown puzzles, U, 2]
    updates_per_segment: int


def paths(series: StateSeries) -> Paths:
    """Project the paths of the first puzzles, of two at least."""
    from sklearn.decomposition import PCA

    points = series.means.reshape(-1, series.means.shape[-1]).astype(np.float64)
    pca = PCA(n_components=2, svd_solver="full").fit(points)
    shown = pca.transform(points).reshape(*series.means.shape[:2], 2)[:NUM_SHOWN]
    return Paths(pca.explained_variance_ratio_.tolist(), shown, series.updates_per_segment)
