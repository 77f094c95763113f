"""Sudokus, mazes and whatever else has one answer: the stored answers, a run's, and its scores.

The numbers of all puzzles are read first, some bytes of each; then all that there is to show of a few.

Shape legend: N predictions of a file, K starts, S cells.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.base.progress import progress_bar
from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist.evaluation.given_folders import GivenFolders
from hrm_dist.evaluation.predictions import Predictions, prediction_files, read_predictions
from hrm_dist.evaluation.puzzle_scores import ALL_PUZZLES, MEANINGS, Labels, summary
from hrm_dist.evaluation.scores import count_examples
from hrm_dist.evaluation.trajectories import Trajectories
from tools.report.column import Shown
from tools.report.grids import number_of_cells, number_wrong, puzzle_id, shape, spelled
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
from tools.report.trajectories import answers_of, read_segments, rounded, trajectory
from tools.vote import refuse_other_dataset

if TYPE_CHECKING:
    pass

CLOSE = 0.9
"""Share of cells from which on an answer is close."""
SHOWN_CANDIDATES = 6


class _Block(NamedTuple):
    """A file of predictions with what is known of its puzzles."""

    predictions: Predictions
    labels: Labels
    is_right: NDArray[np.bool_]  # [N] where the truth is known
    cells_right: NDArray[np.float64]  # [N] share; NaN where the truth is hidden
    is_good: NDArray[np.bool_]  # [N] passes a check of its kind that no wrong answer should pass

    def status(self, row: int) -> Status:
        if np.isnan(self.cells_right[row]):
            return "unknown"
        if self.is_right[row]:
            return "solved"
        return "close" if self.is_good[row] or self.cells_right[row] >= CLOSE else "unsolved"


class Answers:
    """A run's answers; see `Column`."""

    def __init__(self, run: Run) -> None:
        """Read and score all answers. Raise InputError for those of another dataset."""
        from data_pipeline.reader import TestReader  # loads torch, which takes seconds

        if run.info is None or run.data is None:
            raise InputError(
                f"{run.given}: --data has to be a whole dataset for {run.kind.name} puzzles; give the dataset's folder."
            )
        self._run, self._info = run, run.info
        known = run.evaluation
        self._max_groups = known.max_groups if known else None
        self._reader: TestReader = TestReader(run.data, self._max_groups, known.num_aug if known else None)
        self._folders = GivenFolders(run.predictions)
        refuse_other_dataset(self._folders.evaluations, run.data)
        self.statuses: dict[str, Status | None] = {}
        found = summary(self._scored(), run.info, self._max_groups)
        self.scores = _scores(found["scores"][ALL_PUZZLES], found["intervals"][ALL_PUZZLES])
        self.warnings = self._folders.unanswered()

    def _scored(self) -> Iterator[tuple[Predictions, Labels]]:
        with progress_bar("score", "puzzle", len(self._reader), shown=True) as progress:
            for block in self._blocks():
                self._folders.add(block.predictions)
                for row, asked in enumerate(self._asked(block)):
                    self.statuses.setdefault(puzzle_id(self._info.kind, asked), block.status(row))
                yield block.predictions, block.labels
                progress.update(len(block.labels))

    def _asked(self, block: _Block) -> Iterator[Grid]:
        """Yield the inputs of a block."""
        for board in self._boards(block.predictions.inputs):
            yield spelled(self._cropped(board, board))

    def _boards(self, tokens: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return tokens.reshape(*tokens.shape[:-1], self._info.canvas, self._info.canvas)

    def _cropped(self, board: NDArray[np.uint8], asked: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the part of a board that the puzzle takes, which is where its input is not padded."""
        is_cell = asked != self._info.pad_id
        if is_cell.all() or not is_cell.any():
            return board
        rows, columns = (np.flatnonzero(is_cell.any(axis=axis)) for axis in (1, 0))
        return np.ascontiguousarray(board[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])

    def _blocks(self) -> Iterator[_Block]:
        for predictions in read_predictions(prediction_files(self._run.predictions)):
            yield self._block(predictions)

    def _block(self, predictions: Predictions) -> _Block:
        labels = self._labels(predictions)
        counted = labels != IGNORE_LABEL_ID
        num_cells = counted.sum(axis=1)
        num_right = (counted & (predictions.preds == labels)).sum(axis=1)
        share = np.where(num_cells > 0, num_right / np.maximum(num_cells, 1), np.nan)
        checks = list(self._run.kind.checks.values())
        # The last is the strictest: of mazes the first only asks for some path.
        is_good = (
            checks[-1](predictions.inputs, predictions.preds) if checks else np.zeros(len(labels), dtype=bool)
        )
        return _Block(predictions, labels, (num_right == num_cells) & (num_cells > 0), share, is_good)

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

    # What is shown

    def shown(self, ids: Collection[str]) -> dict[str, Shown]:
        """Return these puzzles, as far as the run has them."""
        found: dict[str, Shown] = {}
        with progress_bar("look up", "puzzle", len(self._reader), shown=True) as progress:
            for block in self._blocks():
                keys = [puzzle_id(self._info.kind, asked) for asked in self._asked(block)]
                rows = {
                    key: row
                    for row, key in reversed(list(enumerate(keys)))
                    if key in ids and key not in found
                }
                if rows:
                    found |= self._results(block, rows)
                progress.update(len(keys))
        return found

    def _results(self, block: _Block, rows: Mapping[str, int]) -> dict[str, Shown]:
        """Return puzzles of a block, whose rows there are given."""
        segments = read_segments(block.predictions)
        num_starts = 1 if segments is None else segments.num_starts
        entries = [row * num_starts + k for row in rows.values() for k in range(num_starts)]
        steps = None if segments is None else answers_of(segments, entries)
        found: dict[str, Shown] = {}
        for n, (key, row) in enumerate(rows.items()):
            own = slice(n * num_starts, (n + 1) * num_starts)
            starts = None if steps is None else steps[:, own]
            found[key] = Shown(self._puzzle(key, block, row), self._result(block, row, segments, starts))
        return found

    def _grid(self, block: _Block, row: int, tokens: NDArray[np.integer]) -> Grid:
        boards = self._boards(np.stack([tokens.astype(np.uint8), block.predictions.inputs[row]]))
        return spelled(self._cropped(boards[0], boards[1]))

    def _truth(self, block: _Block, row: int) -> Grid | None:
        labels = block.labels[row]
        is_known = labels != IGNORE_LABEL_ID
        return (
            self._grid(block, row, np.where(is_known, labels, self._info.pad_id)) if is_known.any() else None
        )

    def _puzzle(self, key: str, block: _Block, row: int) -> Puzzle:
        assert block.predictions.rows is not None
        asked = self._grid(block, row, block.predictions.inputs[row])
        height, width = shape(asked)
        return Puzzle(
            id=key,
            title=f"test {block.predictions.rows[row]}",
            split="test",
            subsets=[],
            height=height,
            width=width,
            demonstrations=[],
            inputs=[Asked(grid=asked, truth=self._truth(block, row))],
            results=[],
        )

    def _result(
        self, block: _Block, row: int, segments: Trajectories | None, steps: NDArray[np.uint8] | None
    ) -> Result:
        """Return what a row comes to; steps: the answers of its starts after each segment, [M, K, S]."""
        predictions = block.predictions
        truth = self._truth(block, row)
        answer = self._grid(block, row, predictions.preds[row])
        q = _sigmoid(float(predictions.q_halt_logits[row]))
        candidates = [Candidate(rank=1, grid=answer, votes=1, q=q, is_right=_is(answer, truth))]
        trajectories: list[Trajectory] = []
        agreement = None
        if segments is not None and steps is not None:
            num_starts = steps.shape[1]
            lasts = [self._grid(block, row, last) for last in steps[-1]] if len(steps) else []
            qs = segments.q_halt_logits[segments.num_segments.cumsum(dtype=np.int64) - 1]
            logits = qs[row * num_starts : (row + 1) * num_starts]
            chosen = _chosen(lasts, logits, answer, predictions.q_halt_logits[row])
            if num_starts > 1:
                agreement = lasts.count(answer) / num_starts
                candidates = _candidates(lasts, logits, truth)
            label = "answer" if num_starts == 1 else f"start {chosen}, which was chosen"
            entry = row * num_starts + chosen
            trajectories = [
                trajectory(
                    label, segments, entry, steps[:, chosen],
                    lambda answers: [self._grid(block, row, one) for one in answers],
                )
            ]  # fmt: skip
        num_segments = predictions.num_segments
        share = float(block.cells_right[row])
        return Result(
            status=block.status(row),
            cells_right=rounded(share),
            agreement=rounded(agreement) if agreement is not None else None,
            num_segments=None if num_segments is None else float(num_segments[row]),
            answers=[
                Answer(
                    attempts=[self._attempt(block, row, answer, truth)],
                    candidates=candidates[:SHOWN_CANDIDATES],
                    num_votes=sum(candidate.votes for candidate in candidates),
                    num_candidates=len(candidates),
                    note="the model's numbers were lost (NaN)" if q is None else "",
                    trajectories=trajectories,
                )
            ],
        )

    def _attempt(self, block: _Block, row: int, answer: Grid, truth: Grid | None) -> Attempt:
        if truth is None:
            note = ""
        elif block.is_right[row]:
            note = "right"
        else:
            num_wrong = number_wrong(answer, truth)
            note = f"{num_wrong} of {number_of_cells(truth)} cells wrong"
            if block.is_good[row]:
                note = f"another answer that obeys the rules: {num_wrong} cells are not as stored"
        return Attempt(
            grid=answer,
            is_right=None if truth is None else bool(block.is_right[row]),
            num_wrong=None if truth is None else number_wrong(answer, truth),
            note=note,
        )


def _is(answer: Grid, truth: Grid | None) -> bool | None:
    return None if truth is None else answer == truth


def _sigmoid(logit: float) -> float | None:
    """Return the estimate that a logit stands for; None where it was lost."""
    return None if np.isnan(logit) else rounded(float(1 / (1 + np.exp(-np.clip(logit, -500, 500)))))


def _chosen(lasts: list[Grid], logits: NDArray[np.float32], answer: Grid, logit: np.float32) -> int:
    """Return which start gave the answer: one that ended in it, with its q if there is one."""
    has_its_q = (logits == logit) | (np.isnan(logits) & np.isnan(logit))
    return max(range(len(lasts)), key=lambda k: (lasts[k] == answer, has_its_q[k], -k))


def _candidates(lasts: list[Grid], logits: NDArray[np.float32], truth: Grid | None) -> list[Candidate]:
    """Return what the starts of an input answered, the most frequent first."""
    counts = Counter(lasts)
    qs = {
        grid: [_sigmoid(float(q)) for last, q in zip(lasts, logits, strict=True) if last == grid]
        for grid in counts
    }
    means = {grid: [q for q in found if q is not None] for grid, found in qs.items()}
    mean_of = {grid: rounded(sum(found) / len(found)) if found else None for grid, found in means.items()}
    ranked = sorted(counts, key=lambda grid: (-counts[grid], -(mean_of[grid] or 0)))
    return [
        Candidate(rank=rank, grid=grid, votes=counts[grid], q=mean_of[grid], is_right=_is(grid, truth))
        for rank, grid in enumerate(ranked, 1)
    ]


def _scores(values: Mapping[str, float], intervals: Mapping[str, list[float]]) -> list[Score]:
    """Return the scores of all puzzles; none where no answer is known."""
    found: list[Score] = []
    for name, value in values.items():
        if name == "examples":
            continue
        count = count_examples(values, name) if name in intervals else None
        low, high = intervals.get(name, (None, None))
        found.append(
            Score(
                name=name.replace("_", " "),
                meaning=MEANINGS.get(name, f"share of puzzles whose answer passes the check {name}"),
                subset=ALL_PUZZLES,
                value=value,
                low=low,
                high=high,
                right=count.right if count else None,
                num=count.num if count else values["examples"],
                what="puzzles",
                is_headline=True,
            )
        )
    return found
