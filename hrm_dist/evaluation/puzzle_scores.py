"""Scores of predictions beside the stored answers: exact, by cell, and by what the kind of puzzle checks.

All are shares of the examples whose answer is known. By name, as in metrics.jsonl after `eval/`:
  examples                   how many these are
  exact_accuracy             every cell as in the stored answer
  cell_accuracy              mean over examples of the share of cells that are as in the stored answer
and the `checks` of the kind (data_pipeline/kind.py), each a share of the same examples:
  valid_accuracy             Sudoku: a complete grid that obeys the rules and keeps the givens
  valid_path, optimal_path   maze: the marks are one path from S to G; it is as short as any
A Sudoku with several solutions may be valid without being exact, a maze with several shortest paths optimal.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.kind import Check
from data_pipeline.kinds import kind_named
from data_pipeline.schema import IGNORE_LABEL_ID, DatasetInfo
from hrm_dist.evaluation.intervals import Interval, interval_text, share_interval
from hrm_dist.evaluation.predictions import Predictions
from hrm_dist.evaluation.scores import SHARES_OF_EXAMPLES, Scores, count_examples

ALL_PUZZLES = "all puzzles"
MEANINGS = {
    "exact_accuracy": "share of puzzles with every cell as in the stored answer",
    "cell_accuracy": "mean over puzzles of the share of cells that are as in the stored answer",
    "valid_accuracy": "share of puzzles whose answer is a complete grid that obeys the rules and keeps the givens",
    "valid_path": "share of puzzles whose marks are one path from start to goal",
    "optimal_path": "share of puzzles whose marks are a shortest path from start to goal",
}
"""What the scores by these names say."""

Labels = NDArray[np.int32]  # [N, cells], IGNORE_LABEL_ID where ignored: everywhere, if the answer is hidden


def scores(blocks: Iterable[tuple[Predictions, Labels]], kind: str) -> dict[str, float]:
    """Return the scores by name, none if no answer is known. Raise InputError if the kind is unknown."""
    checks = kind_named(kind).checks
    names = ("examples", "exact_accuracy", "cell_accuracy", *checks)
    examples, *sums = sum((_sums(*block, checks) for block in blocks), np.zeros(len(names))).tolist()
    return dict(zip(names, (examples, *(one / examples for one in sums)), strict=True)) if examples else {}


def _sums(predictions: Predictions, labels: Labels, checks: Mapping[str, Check]) -> NDArray[np.float64]:
    """Sum over the examples whose answer is known: [examples, exact, share of cells right, each check's]."""
    counted = labels != IGNORE_LABEL_ID
    num_cells = counted.sum(axis=1)
    known = num_cells > 0
    num_right = (counted & (predictions.preds == labels)).sum(axis=1)
    exact, cells = (num_right == num_cells)[known], num_right[known] / num_cells[known]
    good = (check(predictions.inputs[known], predictions.preds[known]) for check in checks.values())
    return np.array([known.sum(), exact.sum(), cells.sum(), *(some.sum() for some in good)])


def summary(
    blocks: Iterable[tuple[Predictions, Labels]], info: DatasetInfo, max_groups: int | None = None
) -> dict[str, Any]:
    """Return the scores with Wilson's intervals, in the form of a vote's summary.

    The accuracy of cells has no interval, since the cells of a puzzle are not right or wrong independently.
    max_groups: the predictions are of so many of the first held-out groups.
    """
    found = scores(blocks, info.kind)
    bounds = {name: (interval.low, interval.high) for name, interval in _intervals(found).items()}
    return {
        "evaluated_on": info.evaluated(max_groups) or None,
        "trained_on": info.subset("train") or None,
        "scores": {ALL_PUZZLES: found},
        "intervals": {ALL_PUZZLES: {name: [round(bound, 6) for bound in of] for name, of in bounds.items()}},
    }


def _intervals(found: Scores) -> dict[str, Interval]:
    counts = {name: count_examples(found, name) for name in SHARES_OF_EXAMPLES}
    return {name: share_interval(count.right, count.num) for name, count in counts.items() if count}


def summary_text(summary: Mapping[str, Any]) -> str:
    """Return what a summary says, in words."""
    found: Scores = summary["scores"][ALL_PUZZLES]
    if not found:
        return "no answer is known, so nothing is scored"
    parts = [
        f"{name.replace('_', ' ')} {interval_text(interval)} ({interval.value * found['examples']:.0f} of "
        f"{found['examples']:.0f} puzzles{' right in every cell' * (name == 'exact_accuracy')})"
        for name, interval in _intervals(found).items()
    ]
    parts.append(f"cell accuracy {found['cell_accuracy']:.1%}")
    subset = summary["evaluated_on"]
    return ", ".join(parts) + (f", on {subset}" if subset else "")
