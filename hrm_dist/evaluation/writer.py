"""Answers, which come in any order, to prediction files, each written as soon as it is complete."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.reader import TestReader
from hrm_dist.evaluation.continuous import Finished
from hrm_dist.evaluation.predictions import Predictions, write_predictions
from hrm_dist.evaluation.trajectories import segments_file, write_trajectories

_NOBODY = -1


class PredictionWriter:
    """Collect the answers of files, given the rows of each; no row is in two."""

    def __init__(
        self,
        reader: TestReader,
        files: Mapping[Path, NDArray[np.int64]],
        checkpoint_id: str,
        *,
        keeps_trajectories: bool = False,
    ) -> None:
        self._reader, self._checkpoint_id, self._keeps_trajectories = (
            reader,
            checkpoint_id,
            keeps_trajectories,
        )
        self._paths = list(files)
        self._rows = list(files.values())
        self._file_of_row = np.full(len(reader), _NOBODY, dtype=np.int64)
        for number, rows in enumerate(self._rows):
            self._file_of_row[rows] = number
        self._num_pending = [len(rows) for rows in self._rows]
        self._answered: dict[int, list[Finished]] = {}  # of files that are not complete

    def add(self, finished: Finished) -> int:
        """Take answers, and write the files that they complete; return how many are of these files."""
        num_rows = 0
        for number, rows in self._by_file(finished.rows):
            self._answered.setdefault(number, []).append(finished.of_rows(rows))
            self._note(number, len(rows))
            num_rows += len(rows)
        return num_rows

    def leave_out(self, rows: NDArray[np.int64]) -> int:
        """Note that these rows will not be answered; return how many are of these files."""
        num_rows = 0
        for number, of_file in self._by_file(rows):
            self._note(number, len(of_file))
            num_rows += len(of_file)
        return num_rows

    def _by_file(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        numbers = self._file_of_row[rows]
        for number in np.unique(numbers[numbers != _NOBODY]).tolist():
            yield number, rows[numbers == number]

    def _note(self, number: int, num_rows: int) -> None:
        """Count rows of which nothing more is to come, and write a file when there are no others."""
        self._num_pending[number] -= num_rows
        if not self._num_pending[number] and (parts := self._answered.pop(number, None)):
            self._write(self._paths[number], Finished.joined(parts).of_rows(self._rows[number]))

    def _write(self, path: Path, answers: Finished) -> None:
        rows, batch = answers.rows.astype(np.int32), self._reader.take(answers.rows)
        puzzle_identifiers, example_index = (
            batch[name].numpy() for name in ("puzzle_identifiers", "example_index")
        )
        if self._keeps_trajectories:
            # First, since a prediction file that is there is complete.
            keys, num_cells = (rows, puzzle_identifiers, example_index), answers.preds.shape[1]
            write_trajectories(segments_file(path), *keys, answers.trajectories, num_cells)
        predictions = Predictions(
            puzzle_identifiers,
            batch["inputs"].numpy(),
            answers.preds,
            answers.q_halt_logits,
            example_index,
            self._checkpoint_id,
            rows=rows,
            num_segments=answers.num_segments,
            log_probs=answers.log_probs,
        )
        write_predictions(path, predictions)
