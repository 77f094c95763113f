"""What every segment's answer is worth, and what a rule that stops earlier makes of it.

Shape legend: N inputs, E entries, which are the starts of inputs, M segments, S cells of an answer.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.tokens import crop_sizes
from data_pipeline.base.errors import InputError
from data_pipeline.base.progress import Progress
from data_pipeline.kind import Kind
from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestReader
from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist.evaluation.halting import HaltingRule, Said
from hrm_dist.evaluation.predictions import Predictions, prediction_files, read_prediction_file
from hrm_dist.evaluation.proof import digests
from hrm_dist.evaluation.trajectories import Trajectories, read_trajectories, segments_file

REPEATS = (1, 2, 3, 4)
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Of what all inputs have after each segment: the limits that are tried of q_halt_logits and residuals."""


class Outcomes(NamedTuple):
    """Of all starts of all inputs of an evaluation, in the order of its files, after each segment."""

    is_right: NDArray[np.bool_]  # [E, M] in every cell, and not lost; of no meaning where the truth is hidden
    cells_right: NDArray[np.float32]  # [E, M] share
    answers: NDArray[np.uint64]  # [E, M] a digest of what is answered
    q_halt_logits: NDArray[np.float32]  # [E, M]
    q_continue_logits: NDArray[np.float32]  # [E, M]
    residuals: NDArray[np.float32]  # [E, M]
    checks: NDArray[np.bool_]  # [E, M, C] by what the kind of puzzle checks, in its order
    is_known: NDArray[np.bool_]  # [E] whether the truth is

    @property
    def num_entries(self) -> int:
        return len(self.is_right)

    @property
    def num_segments(self) -> int:
        return self.is_right.shape[1]

    def of_first_starts(self, num_starts: int) -> Self:
        """Return those of start 0 of each input."""
        return self._make(field[::num_starts] for field in self)


class Taken(NamedTuple):
    """Which answer is taken of each input."""

    entries: NDArray[np.int64]  # [N]
    stop: NDArray[np.int64]  # [N] after how many segments of that entry
    segments: NDArray[np.int64]  # [N] that are run for it, of all starts of the input

    @classmethod
    def of_first_starts(cls, stop: NDArray[np.int64], num_starts: int = 1) -> Self:
        """Return those of start 0 of each input, run alone, after so many segments, [N]."""
        return cls(np.arange(len(stop)) * num_starts, stop, stop)


class Point(NamedTuple):
    """The answers taken, scored on inputs whose truth is known."""

    segments: float
    """That are run, mean over all inputs."""
    num: int
    right: int
    cell_accuracy: float
    checked: list[int]
    """How many pass each check of the kind, in its order."""
    differing: int
    """Of all inputs, how many are answered otherwise than by start 0 after all segments."""
    gained: int
    """Right, and wrong by start 0 after all segments."""
    lost: int
    """Wrong, and right by start 0 after all segments."""


class _File(NamedTuple):
    """A prediction file and its segments."""

    predictions: Predictions
    trajectories: Trajectories


def read_outcomes(folder: Path, reader: TestReader, progress: Progress, num_starts: int = 1) -> Outcomes:
    """Read and score an evaluation of every segment.

    Raises InputError where segments are missing, or not all inputs have as many starts and have run as many segments.
    """
    parts = []
    for file in prediction_files([folder]):
        parts.append(_outcomes(_read(file, num_starts), reader))
        progress.update(len(parts[-1].is_right) // num_starts)
    different = {part.num_segments for part in parts}
    if len(different) > 1:
        raise InputError(
            f"{folder}: files are of {', '.join(map(str, sorted(different)))} segments; evaluate again into a new "
            "folder."
        )
    return Outcomes(*map(np.concatenate, zip(*parts, strict=True)))


def halting_rules(outcomes: Sequence[Outcomes]) -> list[HaltingRule]:
    """Return the rules to try on evaluations, the same for all."""
    rules = [HaltingRule("none"), HaltingRule("learned")]
    rules += [HaltingRule("q", limit) for limit in _limits([of.q_halt_logits for of in outcomes])]
    rules += [HaltingRule("unchanged", num) for num in REPEATS]
    # None is 0: no state is below that.
    rules += [HaltingRule("residual", limit) for limit in _limits([of.residuals for of in outcomes]) if limit]
    return rules


def _limits(values: Sequence[NDArray[np.float32]]) -> list[float]:
    """Return quantiles of what is finite, in few digits."""
    finite = np.concatenate([some[np.isfinite(some)] for some in values])
    limits = np.quantile(finite, QUANTILES).tolist() if len(finite) else []
    return list(dict.fromkeys(float(f"{limit:.2g}") for limit in limits))


def stops(rule: HaltingRule, outcomes: Outcomes) -> NDArray[np.int64]:
    """Return after how many segments a rule takes each entry's answer, [E], as an evaluation applies it."""
    most = outcomes.num_segments
    stop = np.full(outcomes.num_entries, most)
    num_unchanged = np.zeros(outcomes.num_entries, dtype=np.int32)
    for n in range(most):
        is_repeated = outcomes.answers[:, n] == outcomes.answers[:, n - 1] if n else False
        num_unchanged = np.where(is_repeated, num_unchanged + 1, 0).astype(np.int32)
        said = Said(
            outcomes.q_halt_logits[:, n],
            outcomes.q_continue_logits[:, n],
            num_unchanged,
            outcomes.residuals[:, n],
        )
        stop[rule.halts(said) & (stop == most)] = n + 1
    return stop


def point(outcomes: Outcomes, taken: Taken, num_starts: int = 1) -> Point:
    """Return what is gained and lost if these answers are taken."""
    known = outcomes.is_known[taken.entries]
    at, last = (taken.entries, taken.stop - 1), (taken.entries // num_starts * num_starts, -1)
    right, right_at_last = (outcomes.is_right[which][known] for which in (at, last))
    return Point(
        segments=float(taken.segments.mean()),
        num=int(known.sum()),
        right=int(right.sum()),
        cell_accuracy=float(outcomes.cells_right[at][known].mean(dtype=np.float64)),
        checked=outcomes.checks[at][known].sum(axis=0).tolist(),
        differing=int((outcomes.answers[at] != outcomes.answers[last]).sum()),
        gained=int((right & ~right_at_last).sum()),
        lost=int((~right & right_at_last).sum()),
    )


def predictions_at(folder: Path, taken: Taken, num_starts: int = 1) -> Iterator[Predictions]:
    """Yield the predictions of a folder's files as if these answers had been taken."""
    first = 0
    for file in prediction_files([folder]):
        predictions, trajectories = _read(file, num_starts)
        inputs = slice(first, first + len(predictions.preds))
        entries, stop = taken.entries[inputs] - first * num_starts, taken.stop[inputs]
        first = inputs.stop
        preds = np.empty_like(predictions.preds)
        for n, answers in enumerate(trajectories.answers(), 1):
            preds[stop == n] = answers[entries[stop == n]]
        q_halt_logits = trajectories.by_segment("q_halt_logits")[entries, stop - 1]
        yield predictions._replace(preds=preds, q_halt_logits=q_halt_logits)


def _read(file: Path, num_starts: int) -> _File:
    predictions, trajectories = read_prediction_file(file), read_trajectories(segments_file(file))
    rows, num_segments = predictions.rows, trajectories.num_segments
    if trajectories.num_starts != num_starts:
        raise InputError(
            f"{segments_file(file)}: has {trajectories.num_starts} starts of each input, not {num_starts}; give "
            f"--starts {trajectories.num_starts}, or another --out."
        )
    if rows is None or not np.array_equal(rows, trajectories.rows[::num_starts]):
        raise InputError(
            f"{segments_file(file)}: rows are not those of {file}; evaluate again into a new folder."
        )
    if len(np.unique(num_segments)) > 1:
        raise InputError(
            f"{segments_file(file)}: num_segments goes from {num_segments.min()} to {num_segments.max()}, so some "
            "inputs have halted early; evaluate with --halting none into a new folder."
        )
    if trajectories.num_cells != predictions.preds.shape[1]:
        raise InputError(
            f"{segments_file(file)}: num_cells is {trajectories.num_cells}, but {file} has "
            f"{predictions.preds.shape[1]}; evaluate again into a new folder."
        )
    return _File(predictions, trajectories)


def _outcomes(file: _File, reader: TestReader) -> Outcomes:
    predictions, trajectories = file
    assert predictions.rows is not None
    kind, num_starts = kind_named(reader.info.kind), trajectories.num_starts
    outcomes = score_segments(
        kind,
        predictions.inputs.repeat(num_starts, axis=0),
        _labels(reader, predictions.rows).repeat(num_starts, axis=0),
        trajectories.answers(),
        *(trajectories.by_segment(name) for name in ("q_halt_logits", "q_continue_logits", "residuals")),
    )
    chosen = digests(_spelled(predictions.preds, has_grids=kind.scorer == "votes"))
    if not (chosen[:, None] == outcomes.answers[:, -1].reshape(-1, num_starts)).any(axis=1).all():
        raise InputError(
            f"{predictions.source}: preds are not the last answers of its segments; evaluate again into a new folder."
        )
    return outcomes


def score_segments(
    kind: Kind,
    inputs: NDArray[np.uint8],
    labels: NDArray[np.int32],
    answers: Iterable[NDArray[np.uint8]],
    q_halt_logits: NDArray[np.float32],
    q_continue_logits: NDArray[np.float32],
    residuals: NDArray[np.float32],
) -> Outcomes:
    """Score the answers [E, S] after each segment; inputs and labels are [E, S], all others [E, M]."""
    asked = labels != IGNORE_LABEL_ID
    num_asked = asked.sum(1)
    is_right, cells_right, digests_of, checks = [], [], [], []
    for preds in answers:
        num_right = (asked & (preds == labels)).sum(1)
        is_right.append(num_right == num_asked)
        cells_right.append((num_right / np.maximum(num_asked, 1)).astype(np.float32))
        checks.append([check(inputs, preds) for check in kind.checks.values()])
        digests_of.append(digests(_spelled(preds, has_grids=kind.scorer == "votes")))
    num_entries, most = len(labels), len(is_right)
    # The answers of what overflowed mean nothing, even one that happens to be right.
    is_sound = ~np.isnan(q_halt_logits)
    return Outcomes(
        is_right=np.stack(is_right, axis=1) & is_sound,
        cells_right=np.stack(cells_right, axis=1) * is_sound,
        answers=np.stack(digests_of, axis=1),
        q_halt_logits=q_halt_logits,
        q_continue_logits=q_continue_logits,
        residuals=residuals,
        checks=np.array(checks, dtype=bool).reshape(most, -1, num_entries).transpose(2, 0, 1)
        & is_sound[:, :, None],
        is_known=num_asked > 0,
    )


def _spelled(answers: NDArray[np.uint8], *, has_grids: bool) -> NDArray[np.uint8]:
    """Return rows of which two are equal if they answer the same: of canvases what their grids spell."""
    if not has_grids:
        return answers
    heights, widths = crop_sizes(answers)
    side = np.arange(math.isqrt(answers.shape[1]))
    inside = (side < heights[:, None])[:, :, None] & (side < widths[:, None])[:, None]
    return np.where(inside.reshape(answers.shape), answers, 0)


def _labels(reader: TestReader, rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the labels [N, S] of rows of the test split."""
    if rows.max(initial=-1) >= len(reader):
        raise InputError(
            f"row {rows.max()} was predicted, but the dataset's test split has {len(reader)}; give --data, "
            "--max-groups and --num-aug as the evaluation had them."
        )
    return reader.take(rows.astype(np.int64))["labels"].numpy()
