"""Accuracy by how hard a puzzle is, as its kind measures it.

Of Sudokus that is the number of givens (fewer are harder, mostly), of mazes the length of the path, of ARC the longer
side of inputs and outputs. Ratings that a source may have had are not kept in a dataset.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.kind import Look
from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist.evaluation.intervals import Interval, share_interval
from tools.analyze.watch import Puzzles

MOST_BINS = 8


class Bin(NamedTuple):
    """Puzzles that are about as hard."""

    low: int
    high: int
    num: int
    right: int
    accuracy: Interval
    """With Wilson's interval."""


def by_difficulty(
    puzzles: Puzzles, is_right: NDArray[np.bool_], is_known: NDArray[np.bool_], look: Look, pad_id: int
) -> dict[str, list[Bin]]:
    """Return accuracy by each thing that is measured; is_right, is_known: [N]."""
    side = int(puzzles.inputs.shape[1] ** 0.5)
    labels = np.where(puzzles.labels == IGNORE_LABEL_ID, pad_id, puzzles.labels).astype(np.uint8)
    boards = (array[is_known].reshape(-1, side, side) for array in (puzzles.inputs, labels))
    found = {}
    for name, values in look.measure(*boards).items():
        if len(values):
            found[f"{look.measured}{f', {name}' if name else ''}"] = bins(values, is_right[is_known])
    return found


def bins(values: NDArray[np.int64], is_right: NDArray[np.bool_]) -> list[Bin]:
    """Return accuracy by value, or by ranges of values that hold about as many puzzles each."""
    different = np.unique(values)
    if len(different) > MOST_BINS:
        # No value is in two ranges.
        cuts = np.quantile(values, np.linspace(0, 1, MOST_BINS + 1)[1:-1], method="inverted_cdf")
        numbers = np.searchsorted(np.unique(cuts), values, side="left")
    else:
        numbers = np.searchsorted(different, values)
    found = []
    for number in np.unique(numbers):
        chosen = numbers == number
        num, right = int(chosen.sum()), int(is_right[chosen].sum())
        low, high = int(values[chosen].min()), int(values[chosen].max())
        found.append(Bin(low, high, num, right, share_interval(right, num)))
    return found
