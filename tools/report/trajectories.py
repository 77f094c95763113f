"""What the model answered after each segment, as frames of a player.

Shape legend: E entries of a file, K starts of an input, M segments, S cells of an answer.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from hrm_dist.evaluation.predictions import Predictions
from hrm_dist.evaluation.trajectories import Trajectories, read_trajectories, segments_file
from tools.report.payload import Grid, Trajectory


def has_segments(predictions: Path) -> bool:
    """Return whether the segments of a file of predictions were kept."""
    return segments_file(predictions).parent.is_dir()


def read_segments(predictions: Predictions) -> Trajectories | None:
    """Return the segments of a file of predictions; None where they were not kept.

    Raise InputError for segments that are damaged, missing or of other predictions.
    """
    if not has_segments(Path(predictions.source)):
        return None
    path = segments_file(Path(predictions.source))
    found = read_trajectories(path)
    rows = predictions.rows
    if (
        rows is None
        or not np.array_equal(rows, found.rows[:: found.num_starts])
        or found.num_cells != predictions.preds.shape[1]
    ):
        raise InputError(
            f"{path}: is not of the inputs of {predictions.source}; evaluate again into a new folder, or remove "
            f"{path.parent} to have a report without segments."
        )
    return found


def answers_of(found: Trajectories, entries: Sequence[int]) -> NDArray[np.uint8]:
    """Return what some entries answered after each segment, [M, E, S]; one that has run fewer keeps its last."""
    chosen = np.array(entries, dtype=np.int64)
    steps = [answers[chosen] for answers in found.answers()]
    return np.array(steps, dtype=np.uint8).reshape(-1, len(chosen), found.num_cells)


def last_answers_of(found: Trajectories, entries: Sequence[int]) -> NDArray[np.uint8]:
    """Return in what some entries ended, [E, S]."""
    chosen = np.array(entries, dtype=np.int64)
    last = np.zeros((len(found.rows), found.num_cells), dtype=np.uint8)
    for answers in found.answers():
        last = answers
    return last[chosen]


def last_q_halt_logits(found: Trajectories, row: int) -> NDArray[np.float32]:
    """Return what each start of a row said in the end, [K]."""
    first, end = row * found.num_starts, (row + 1) * found.num_starts
    ends = found.num_segments[:end].cumsum(dtype=np.int64)
    return found.q_halt_logits[ends[first:] - 1]


def answering_start(found: Trajectories, predictions: Predictions, row: int, ends: NDArray[np.uint8]) -> int:
    """Return which start of a row gave its answer: of those alike in answer, q and number of segments the first.

    ends: the answers in which the row's starts ended, [K, S].
    """
    said, q_halt_logit = last_q_halt_logits(found, row), predictions.q_halt_logits[row]
    gave_it = (ends == predictions.preds[row]).all(axis=1)
    has_its_q = (said == q_halt_logit) | (np.isnan(said) & np.isnan(q_halt_logit))
    likeness = 4 * gave_it + 2 * has_its_q
    if predictions.num_segments is not None:
        first = row * found.num_starts
        num_segments = found.num_segments[first : first + found.num_starts]
        likeness = likeness + (num_segments == predictions.num_segments[row])
    return int(likeness.argmax())


def trajectory(
    label: str,
    found: Trajectories,
    entry: int,
    answers: NDArray[np.uint8],
    grids_of: Callable[[NDArray[np.uint8]], Sequence[Grid]],
) -> Trajectory:
    """Return an entry's segments; answers: those of this entry, [M, S]; grids_of: answers as grids of the puzzle."""
    num = int(found.num_segments[entry])
    first = int(found.num_segments[:entry].sum(dtype=np.int64))
    grids = grids_of(answers[:num])
    return Trajectory(
        label=label,
        frames=[grids[0], *(new if new != old else None for old, new in pairwise(grids))],
        q=[sigmoid(value) for value in found.q_halt_logits[first : first + num].tolist()],
        residuals=[rounded(value) for value in found.residuals[first : first + num].tolist()],
    )


def replay(frames: Sequence[Grid | None]) -> list[Grid]:
    """Return the grid after each segment."""
    grids: list[Grid] = []
    for frame in frames:
        grids.append(grids[-1] if frame is None else frame)
    return grids


def sigmoid(logit: float) -> float | None:
    """Return the estimate that a q_halt_logit stands for; None where it was lost."""
    return rounded(1 / (1 + np.exp(-np.clip(logit, -500, 500))))


def rounded(value: float) -> float | None:
    """Return a number with as many digits as anybody looks at; None where it was lost."""
    return round(float(value), 4) if np.isfinite(value) else None
