"""ARC tasks: what the vote makes of a run's predictions, and which prediction stands for each attempt.

Shape legend: N predictions of a file, M segments, S cells.
"""

import hashlib
import json
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.augment import AugmentationTable, parse_names
from data_pipeline.arc.sources import BUNDLED, bundled
from data_pipeline.base.progress import progress_bar
from data_pipeline.schema import DatasetInfo
from hrm_dist.evaluation.intervals import share_interval, task_intervals
from hrm_dist.evaluation.predictions import Predictions, prediction_files, read_prediction_file
from hrm_dist.evaluation.trajectories import Trajectories
from hrm_dist.evaluation.voting import Candidate as Voted
from hrm_dist.evaluation.voting import Undo, attempts, grid_key, grid_of, task_shares
from tools.report.answers import CLOSE, SHOWN_CANDIDATES
from tools.report.column import Shown
from tools.report.grids import number_of_cells, number_wrong, spelled
from tools.report.payload import (
    Answer,
    Asked,
    Attempt,
    Candidate,
    Grid,
    Puzzle,
    Result,
    Score,
    Status,
    Trajectory,
)
from tools.report.runs import Run
from tools.report.trajectories import answers_of, has_segments, read_segments, rounded, trajectory
from tools.vote import (
    ALL_TASKS,
    SCORE_MEANINGS,
    VoteResult,
    data_file,
    ignored,
    notes,
    pass_columns,
    read_identifiers,
    run_vote,
)

NUM_ATTEMPTS = 2
AS_IT_IS = "the input as it is"

InputKey = tuple[str, bytes]
"""A task, and the key of one of its test inputs."""


class TaskVotes:
    """A run's votes; see `Column`."""

    def __init__(self, run: Run, args: Namespace, seen: dict[str, str]) -> None:
        """Vote and score. Raise InputError for what cannot be voted on.

        seen: which test inputs the tasks of earlier runs have, to which those of this run are added.
        """
        self._args = Namespace(**{**vars(args), "predictions": run.predictions, "data": run.data})
        self._run = run
        self._result = run_vote(self._args)
        self._task_of: dict[str, str] = {}
        for task, puzzle in self._result.test_puzzles.items():
            digest = _digest(puzzle)
            # Releases have changed tasks and kept their names.
            own = seen.setdefault(task, digest) == digest
            self._task_of[task if own else f"{task}-{digest}"] = task
        self.statuses: dict[str, Status | None] = {
            key: self._status(task) for key, task in self._task_of.items()
        }
        self.scores = _scores(self._result)
        self.warnings = [*ignored(self._result), *notes(self._result)]

    # Of a task

    def _status(self, task: str) -> Status | None:
        inputs = list(self._inputs(task))
        if not any(candidates for _, candidates in inputs):
            return None
        judged = [
            [_attempt(candidates, n, truth) for n in range(NUM_ATTEMPTS)]
            for truth, candidates in inputs
            if truth is not None
        ]
        if not judged:
            return "unknown"
        is_solved = [any(one.is_right for one in pair) for pair in judged]
        if all(is_solved):
            return "solved"
        near = any(_share(one) >= CLOSE for pair in judged for one in pair)
        return "close" if any(is_solved) or near else "unsolved"

    def _inputs(self, task: str) -> Iterator[tuple[Grid | None, list[Voted]]]:
        """Yield the truth and the candidates of each test input."""
        tests = self._result.test_puzzles[task]["test"]
        for pair, candidates in zip(tests, self._result.votes.tasks[task], strict=True):
            yield _truth(pair), candidates

    # What is shown

    def shown(self, ids: Collection[str]) -> dict[str, Shown]:
        """Return these tasks, as far as the run has them."""
        tasks = {key: task for key, task in self._task_of.items() if key in ids}
        played = _Played(self._run, self._args, self._result, set(tasks.values()))
        splits = _splits(self._run.info)
        return {
            key: Shown(self._puzzle(key, task, splits), self._result_of(key, task, played))
            for key, task in tasks.items()
        }

    def _puzzle(self, key: str, task: str, splits: Mapping[str, str]) -> Puzzle:
        puzzle = self._result.test_puzzles[task]
        grids = [
            grid
            for pair in puzzle["train"] + puzzle["test"]
            for grid in (pair["input"], pair.get("output"))
            if grid is not None
        ]
        return Puzzle(
            id=key,
            title=task,
            split=splits.get(task, ""),
            subsets=[name for name, tasks in self._result.subsets.items() if task in tasks],
            height=max(map(len, grids)),
            width=max(len(grid[0]) for grid in grids),
            demonstrations=[(_grid(pair["input"]), _grid(pair["output"])) for pair in puzzle["train"]],
            inputs=[Asked(grid=_grid(pair["input"]), truth=_truth(pair)) for pair in puzzle["test"]],
            results=[],
        )

    def _result_of(self, key: str, task: str, played: "_Played") -> Result | None:
        status = self.statuses[key]
        if status is None:
            return None
        inputs = list(self._inputs(task))
        asked = [(task, grid_key(pair["input"])) for pair in self._result.test_puzzles[task]["test"]]
        answers = [
            _answer(candidates, truth, played.trajectories(one))
            for one, (truth, candidates) in zip(asked, inputs, strict=True)
        ]
        best = [
            max(map(_share, answer.attempts))
            for answer, (truth, _) in zip(answers, inputs, strict=True)
            if truth is not None
        ]
        agreement = [
            candidates[0].count / sum(one.count for one in candidates)
            for _, candidates in inputs
            if candidates
        ]
        return Result(
            status=status,
            cells_right=_mean(best),
            agreement=_mean(agreement),
            num_segments=_mean(played.num_segments.get(task, ())),
            answers=answers,
        )


def _digest(puzzle: Mapping[str, Any]) -> str:
    """Return what tells a task's test inputs from others under its name."""
    inputs = [pair["input"] for pair in puzzle["test"]]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:6]


def _grid(cells: Any) -> Grid:
    return spelled(np.asarray(cells, dtype=np.uint8))


def _truth(pair: Mapping[str, Any]) -> Grid | None:
    return None if pair.get("output") is None else _grid(pair["output"])


def _mean(values: Collection[float]) -> float | None:
    return rounded(sum(values) / len(values)) if values else None


def _splits(info: DatasetInfo | None) -> dict[str, str]:
    """Return where tasks of the releases come from: of several also which release."""
    names = [source.name for source in info.sources if source.name in BUNDLED] if info else []
    found: dict[str, str] = {}
    for name in names:
        for task in bundled(name):
            split = "evaluation" if task.held_out else "training"
            found.setdefault(task.id, split if len(names) == 1 else f"{name} {split}")
    return found


def _answer(candidates: Sequence[Voted], truth: Grid | None, trajectories: list[Trajectory]) -> Answer:
    shown: list[Candidate] = []
    truth_key = None if truth is None else _key(truth)
    note = "" if truth is None or not candidates else "the truth got no vote"
    for rank, one in enumerate(candidates, start=1):
        is_right = None if truth_key is None else one.key == truth_key
        if is_right:
            note = f"the truth is candidate {rank}"
        if rank <= SHOWN_CANDIDATES or is_right:
            shown.append(
                Candidate(
                    rank=rank,
                    grid=spelled(one.grid),
                    votes=one.count,
                    q=rounded(one.mean_q),
                    is_right=is_right,
                )
            )
    return Answer(
        attempts=[_attempt(candidates, n, truth) for n in range(NUM_ATTEMPTS)],
        candidates=shown,
        num_votes=sum(one.count for one in candidates),
        num_candidates=len(candidates),
        note=note,
        trajectories=trajectories,
    )


def _key(grid: Grid) -> bytes:
    return grid_key([[int(cell) for cell in row] for row in grid.split("/")])


def _attempt(candidates: Sequence[Voted], number: int, truth: Grid | None) -> Attempt:
    """Return an attempt as submitted, with how far it is from the truth."""
    grid = _grid(attempts(candidates)[number])
    voted = spelled(candidates[min(number, len(candidates) - 1)].grid) if candidates else None
    # Judged by what was voted for, as the scores are: the filler of an empty entry is never right.
    is_right = None if truth is None else voted == truth
    num_wrong = None if truth is None else number_wrong(grid, truth)
    if not candidates:
        note = "no prediction"
    elif number >= len(candidates):
        note = "only one candidate"
    elif is_right is None or truth is None:
        note = ""
    elif is_right:
        note = "right"
    else:
        note = "wrong size" if num_wrong is None else f"{num_wrong} of {number_of_cells(truth)} cells wrong"
    return Attempt(grid=grid, is_right=is_right, num_wrong=num_wrong, note=note)


def _share(attempt: Attempt) -> float:
    """Return the share of an attempt's cells that are right, 0 where its size is wrong."""
    if attempt.num_wrong is None:
        return 0.0
    return 1 - attempt.num_wrong / number_of_cells(attempt.grid)


# Which predictions stand for the attempts


class _Place(NamedTuple):
    """A prediction that voted."""

    q: float
    file: Path
    row: int
    name: str
    """Of its puzzle, which tells the augmentation."""


class _Played:
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
    entries = [_entry(predictions, segments, row) for row in names]
    steps = answers_of(segments, entries)
    for n, (row, name) in enumerate(names.items()):
        _, augmentations = parse_names([name])

        def grids_of(answers: NDArray[np.uint8], table: AugmentationTable = augmentations) -> list[Grid]:
            undo = Undo(AugmentationTable(*(column.repeat(len(answers), axis=0) for column in table)))
            return [spelled(grid_of(key)) for key in undo.keys(answers)]

        yield row, trajectory("", segments, entries[n], steps[:, n], grids_of)


def _entry(predictions: Predictions, segments: Trajectories, row: int) -> int:
    """Return which start of a row answered: the first that ended with its q."""
    first = row * segments.num_starts
    lasts = segments.num_segments[: first + segments.num_starts].cumsum(dtype=np.int64)[first:] - 1
    return first + int((segments.q_halt_logits[lasts] == predictions.q_halt_logits[row]).argmax())


# Scores


def _scores(result: VoteResult) -> list[Score]:
    """Return the scores of all tasks and of each subset; none where no truth is known."""
    found: list[Score] = []
    for subset, values in result.scores.items():
        columns = pass_columns(values)
        if not columns:
            continue
        shares = task_shares(result.votes, result.test_puzzles, tasks=result.subsets.get(subset))
        of_tasks = dict(zip(shares, task_intervals(list(shares.values())), strict=True))
        for column in columns:
            for kind, meaning in SCORE_MEANINGS.items():
                num = values["inputs" if kind == "input" else "tasks"]
                value = values[f"{kind}/{column}"]
                # The mean over tasks has no whole number of right ones.
                bounds = (
                    of_tasks[f"task/{column}"]
                    if kind == "task"
                    else share_interval(round(value * num), int(num))
                )
                found.append(
                    Score(
                        name=f"{kind.replace('_', ' ')} {column}",
                        meaning=f"{meaning}; {_counts_as_right(column)}",
                        subset=subset,
                        value=value,
                        low=None if np.isnan(bounds.low) else bounds.low,
                        high=None if np.isnan(bounds.high) else bounds.high,
                        right=rounded(value * num),
                        num=num,
                        what="test inputs" if kind == "input" else "tasks",
                        is_headline=(subset, column) == (ALL_TASKS, f"pass@{NUM_ATTEMPTS}"),
                    )
                )
    return found


def _counts_as_right(column: str) -> str:
    if column == "oracle":
        return "right is what any candidate is"
    first = column.removeprefix("pass@")
    return (
        "right is what the first candidate is"
        if first == "1"
        else f"right is what one of the first {first} is"
    )
