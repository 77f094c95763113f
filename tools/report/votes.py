"""ARC tasks: what the vote makes of a run's predictions."""

import hashlib
import json
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.arc.sources import BUNDLED, bundled
from data_pipeline.schema import DatasetInfo
from hrm_dist.evaluation.voting import Candidate as Voted
from hrm_dist.evaluation.voting import attempts, grid_key
from tools.report.attempts import Played
from tools.report.column import CLOSE, SHOWN_CANDIDATES, Shown
from tools.report.grids import number_of_cells, number_wrong, spelled
from tools.report.payload import (
    Answer,
    Asked,
    Attempt,
    Candidate,
    Grid,
    Puzzle,
    Result,
    Status,
    Trajectory,
)
from tools.report.runs import Run
from tools.report.scores import NUM_ATTEMPTS, vote_scores
from tools.report.trajectories import rounded
from tools.vote import (
    ignored,
    notes,
    run_vote,
)


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
        self.scores = vote_scores(self._result)
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
        played = Played(self._run, self._args, self._result, set(tasks.values()))
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

    def _result_of(self, key: str, task: str, played: "Played") -> Result | None:
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
