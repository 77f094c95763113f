"""Sudokus, mazes and whatever else has one answer: a run's answers beside the stored ones.

All puzzles are scored first, of which a few bytes each stay in memory; then a few of them are looked up to be shown.
"""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.base.progress import progress_bar
from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist.evaluation.given_folders import GivenFolders
from hrm_dist.evaluation.predictions import Predictions, prediction_files, read_predictions
from hrm_dist.evaluation.puzzle_scores import ALL_PUZZLES, Labels, summary
from tools.report.answered import Answered, Block, Starts
from tools.report.column import Shown
from tools.report.grids import puzzle_id
from tools.report.payload import Status
from tools.report.runs import Run
from tools.report.scores import puzzle_scores
from tools.report.trajectories import answers_of, read_segments
from tools.vote import refuse_other_dataset


class Answers:
    """A run's answers; see `Column`."""

    def __init__(self, run: Run) -> None:
        """Read and score all answers. Raise InputError for those of another dataset."""
        from data_pipeline.reader import TestReader  # loads torch, which takes seconds

        if run.info is None or run.data is None:
            raise InputError(
                f"{run.given}: {run.kind.name} puzzles need a whole dataset; give its folder with --data."
            )
        self._run, self._info = run, run.info
        known = run.evaluation
        max_groups = known.max_groups if known else None
        self._reader: TestReader = TestReader(run.data, max_groups, known.num_aug if known else None)
        self._folders = GivenFolders(run.predictions)
        refuse_other_dataset(self._folders.evaluations, run.data)
        self.statuses: dict[str, Status | None] = {}
        found = summary(self._scored(), run.info, max_groups)
        self.scores = puzzle_scores(found["scores"][ALL_PUZZLES], found["intervals"][ALL_PUZZLES])
        self.warnings = self._folders.unanswered()

    def _scored(self) -> Iterator[tuple[Predictions, Labels]]:
        """Yield predictions with the stored answers, and note the statuses on the way."""
        is_answered = np.zeros(len(self._reader), dtype=bool)
        with progress_bar("score", "puzzle", len(self._reader), shown=True) as progress:
            for block in self._blocks():
                self._folders.add(block.predictions)
                _note_answered(is_answered, block.predictions)
                for row, asked in enumerate(block.asked()):
                    self.statuses.setdefault(puzzle_id(self._info.kind, asked), block.status(row))
                yield block.predictions, block.labels
                progress.update(len(block.labels))

    def _blocks(self) -> Iterator[Block]:
        for predictions in read_predictions(prediction_files(self._run.predictions)):
            yield self._block(predictions)

    def _block(self, predictions: Predictions) -> Block:
        labels = self._labels(predictions)
        counted = labels != IGNORE_LABEL_ID
        num_cells = counted.sum(axis=1)
        num_right = (counted & (predictions.preds == labels)).sum(axis=1)
        checks = [check(predictions.inputs, predictions.preds) for check in self._run.kind.checks.values()]
        return Block(
            predictions,
            labels,
            predictions.inputs.reshape(-1, self._info.canvas, self._info.canvas),
            self._info.pad_id,
            is_right=(num_right == num_cells) & (num_cells > 0),
            cells_right=np.where(num_cells > 0, num_right / np.maximum(num_cells, 1), np.nan),
            is_good=np.logical_and.reduce(checks) if checks else np.zeros(len(labels), dtype=bool),
        )

    def _labels(self, predictions: Predictions) -> Labels:
        """Return the stored answers. Raise InputError for predictions of other puzzles."""
        rows, where = predictions.rows, predictions.source
        if rows is None:
            raise InputError(
                f"{where}: has no rows, which say which of the dataset's inputs are answered; evaluate again with "
                "tools.evaluate."
            )
        theirs = f"so it was made from another dataset than {self._run.data}; give that with --data."
        if rows.max(initial=-1) >= len(self._reader):
            raise InputError(
                f"{where}: answers row {rows.max()}, but the test split has {len(self._reader):,} rows, {theirs}"
            )
        stored = self._reader.take(rows.astype(np.int64))
        if not np.array_equal(stored["inputs"].numpy(), predictions.inputs):
            raise InputError(f"{where}: its inputs are not those of the test split, {theirs}")
        most, size = int(predictions.preds.max(initial=0)), self._info.vocab_size
        if most >= size:
            raise InputError(
                f"{where}: preds holds token {most}, but {self._info.kind} has tokens 0 to {size - 1}; remove it and "
                "evaluate again."
            )
        return stored["labels"].numpy()

    def shown(self, ids: Collection[str]) -> dict[str, Shown]:
        """Return these puzzles, as far as the run has them."""
        found: dict[str, Shown] = {}
        with progress_bar("look up", "puzzle", len(self._reader), shown=True) as progress:
            for block in self._blocks():
                rows: dict[str, int] = {}
                for row, asked in enumerate(block.asked()):
                    key = puzzle_id(self._info.kind, asked)
                    if key in ids and key not in found:
                        rows.setdefault(key, row)
                if rows:
                    found |= _shown(block, rows)
                progress.update(len(block.labels))
        return found


def _note_answered(is_answered: NDArray[np.bool_], predictions: Predictions) -> None:
    """Note which rows a file answers. Raise InputError for one that is answered twice, which would count twice."""
    assert predictions.rows is not None
    rows, numbers = np.unique(predictions.rows, return_counts=True)
    twice = rows[(numbers > 1) | is_answered[rows]]
    if len(twice):
        raise InputError(
            f"{predictions.source}: answers row {twice[0]}, which is answered before; give the files of one evaluation."
        )
    is_answered[rows] = True


def _shown(block: Block, rows: Mapping[str, int]) -> dict[str, Shown]:
    """Return puzzles of a block by id, whose rows there are given."""
    all_starts = _starts(block, list(rows.values()))
    found: dict[str, Shown] = {}
    for (key, row), starts in zip(rows.items(), all_starts, strict=True):
        one = Answered(block, row, starts)
        found[key] = Shown(one.puzzle(key), one.result())
    return found


def _starts(block: Block, rows: list[int]) -> list[Starts] | list[None]:
    """Return the starts of each row; None where their segments were not kept."""
    segments = read_segments(block.predictions)
    if segments is None:
        return [None] * len(rows)
    num = segments.num_starts
    entries = [row * num + start for row in rows for start in range(num)]
    steps: NDArray[np.uint8] = answers_of(segments, entries)
    return [Starts(segments, steps[:, n * num : (n + 1) * num]) for n in range(len(rows))]
