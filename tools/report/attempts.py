"""Which prediction stands for each attempt at an ARC task, and its segments.

Shape legend: N predictions of a file, M segments, S cells.
"""

from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.augment import AugmentationTable, parse_names
from data_pipeline.base.progress import progress_bar
from hrm_dist.evaluation.predictions import Predictions, prediction_files, read_prediction_file
from hrm_dist.evaluation.trajectories import Trajectories
from hrm_dist.evaluation.voting import Undo, grid_key, grid_of
from tools.report.grids import spelled
from tools.report.payload import Grid, Trajectory
from tools.report.runs import Run
from tools.report.scores import NUM_ATTEMPTS
from tools.report.trajectories import (
    answering_start,
    answers_of,
    has_segments,
    last_answers_of,
    read_segments,
    trajectory,
)
from tools.vote import VoteResult, data_file, read_identifiers

AS_IT_IS = "the input as it is"

InputKey = tuple[str, bytes]
"""A task, and the key of one of its test inputs."""


class _Place(NamedTuple):
    """A prediction that voted."""

    q: float
    file: Path
    row: int
    name: str
    """Of its puzzle, which tells the augmentation."""


class Played:
    """The segments of the predictions that stand for the attempts at some tasks.

    Of those that voted for an attempt it is the one of highest q; beside them stands that of the input as it is.
    """

    def __init__(self, run: Run, args: Namespace, result: VoteResult, tasks: Collection[str]) -> None:
        self._names = read_identifiers(data_file(args, "identifiers", "identifiers.json"))
        self._tasks = tasks
        self._attempts = _attempt_keys(result, tasks)
        self._best: dict[tuple[InputKey, bytes], _Place] = {}
        self._own: dict[InputKey, _Place] = {}
        self._found: dict[tuple[Path, int], Trajectory] = {}
        self.num_segments: dict[str, list[int]] = {}
        """Of the predictions of each task."""
        files = prediction_files(run.predictions)
        with progress_bar("look up", "file", len(files), shown=True) as progress:
            for file in files:
                self._look_up(file)
                progress.update()
        self._play()

    def _look_up(self, file: Path) -> None:
        """Find predictions of a file that stand for attempts."""
        block = read_prediction_file(file)
        names = [self._names[number] for number in block.puzzle_identifiers.tolist()]
        tasks, augmentations = parse_names(names)
        rows = [row for row, task in enumerate(tasks) if task in self._tasks]
        if block.num_segments is not None:
            for row in rows:
                self.num_segments.setdefault(tasks[row], []).append(int(block.num_segments[row]))
        if not rows or not has_segments(file):
            return
        undo = _undo(augmentations, rows)
        keys = zip(rows, undo.keys(block.inputs[rows]), undo.keys(block.preds[rows]), strict=True)
        for row, asked, answer in keys:
            one = (tasks[row], asked)
            place = _Place(float(block.q_halt_logits[row]), file, row, names[row])
            if np.isnan(place.q):
                continue
            if answer in self._attempts.get(one, ()):
                known = self._best.get((one, answer))
                if known is None or place.q > known.q:
                    self._best[one, answer] = place
            if names[row] == tasks[row]:
                self._own[one] = place

    def _play(self) -> None:
        """Read the segments of all that were found, file by file."""
        rows_of: dict[Path, dict[int, str]] = {}
        for place in (*self._best.values(), *self._own.values()):
            rows_of.setdefault(place.file, {})[place.row] = place.name
        with progress_bar("segments", "file", len(rows_of), shown=True) as progress:
            for file, rows in rows_of.items():
                predictions = read_prediction_file(file)
                segments = read_segments(predictions)
                assert segments is not None  # or nothing of it would have been looked up
                for row, found in _play(predictions, segments, rows):
                    self._found[file, row] = found
                progress.update()

    def trajectories(self, one: InputKey) -> list[Trajectory]:
        """Return the segments of each attempt and of the input as it is; none where they were not kept."""
        labels: dict[tuple[Path, int], list[str]] = {}
        for number, key in enumerate(self._attempts.get(one, ()), start=1):
            if (one, key) in self._best:
                place = self._best[one, key]
                labels.setdefault((place.file, place.row), []).append(f"attempt {number}")
        if one in self._own:
            labels.setdefault((self._own[one].file, self._own[one].row), []).append(AS_IT_IS)
        return [
            self._found[place].model_copy(update={"label": ", ".join(texts)})
            for place, texts in labels.items()
        ]


def _attempt_keys(result: VoteResult, tasks: Collection[str]) -> dict[InputKey, list[bytes]]:
    """Return the grids of the attempts at each test input."""
    return {
        (task, grid_key(pair["input"])): [one.key for one in candidates[:NUM_ATTEMPTS] if one.key is not None]
        for task in tasks
        for pair, candidates in zip(result.test_puzzles[task]["test"], result.votes.tasks[task], strict=True)
    }


def _undo(augmentations: AugmentationTable, rows: Sequence[int]) -> Undo:
    return Undo(AugmentationTable(*(column[list(rows)] for column in augmentations)))


def _play(
    predictions: Predictions, segments: Trajectories, names: Mapping[int, str]
) -> Iterator[tuple[int, Trajectory]]:
    """Yield rows of a file with their segments, in the original's colours and orientation.

    names: of the puzzles, by row.
    """
    entries = _entries(predictions, segments, list(names))
    steps = answers_of(segments, entries)
    for n, (row, name) in enumerate(names.items()):
        _, augmentations = parse_names([name])

        def grids_of(answers: NDArray[np.uint8], table: AugmentationTable = augmentations) -> list[Grid]:
            undo = Undo(AugmentationTable(*(column.repeat(len(answers), axis=0) for column in table)))
            return [spelled(grid_of(key)) for key in undo.keys(answers)]

        yield row, trajectory("", segments, entries[n], steps[:, n], grids_of)


def _entries(predictions: Predictions, segments: Trajectories, rows: Sequence[int]) -> list[int]:
    """Return the entry of the start that answered, of each row."""
    num = segments.num_starts
    if num == 1:
        return list(rows)
    ends = last_answers_of(segments, [row * num + start for row in rows for start in range(num)])
    return [
        row * num + answering_start(segments, predictions, row, ends[n * num : (n + 1) * num])
        for n, row in enumerate(rows)
    ]
