"""One Sudoku, maze or the like, with what a run answers to it.

Shape legend: K starts, M segments, S cells of the canvas.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist.evaluation.predictions import Predictions
from hrm_dist.evaluation.puzzle_scores import Labels
from hrm_dist.evaluation.trajectories import Trajectories
from tools.report.column import CLOSE, SHOWN_CANDIDATES
from tools.report.grids import number_of_cells, number_wrong, shape, spelled
from tools.report.payload import Answer, Asked, Attempt, Candidate, Grid, Puzzle, Result, Status, Trajectory
from tools.report.trajectories import (
    answering_start,
    last_q_halt_logits,
    rounded,
    sigmoid,
    trajectory,
)

Board = NDArray[np.uint8]  # [canvas, canvas]


class Block(NamedTuple):
    """A file of predictions, N of them, with what is known of its puzzles."""

    predictions: Predictions
    labels: Labels
    boards: NDArray[np.uint8]  # [N, canvas, canvas] the inputs
    pad_id: int
    is_right: NDArray[np.bool_]  # [N] where the truth is known
    cells_right: NDArray[np.float64]  # [N] share; NaN where the truth is hidden
    is_good: NDArray[np.bool_]  # [N] passes all checks of its kind, of which there is one at least

    def status(self, row: int) -> Status:
        """Return how well a puzzle is answered."""
        if np.isnan(self.cells_right[row]):
            return "unknown"
        if self.is_right[row]:
            return "solved"
        return "close" if self.is_good[row] or self.cells_right[row] >= CLOSE else "unsolved"

    def asked(self) -> Iterator[Grid]:
        """Yield the inputs."""
        return (self.grid(row, board) for row, board in enumerate(self.boards))

    def grid(self, row: int, cells: NDArray[np.integer]) -> Grid:
        """Return what cells [S] of a puzzle's canvas come to: the part where its input is not padded."""
        asked = self.boards[row]
        board = cells.astype(np.uint8).reshape(asked.shape)
        is_cell = asked != self.pad_id
        if is_cell.all() or not is_cell.any():
            return spelled(board)
        rows, columns = (np.flatnonzero(is_cell.any(axis=axis)) for axis in (1, 0))
        return spelled(board[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


class Starts(NamedTuple):
    """What the starts of a puzzle came to."""

    segments: Trajectories
    """Of all puzzles of the block."""
    steps: NDArray[np.uint8]  # [M, K, S] the answers after each segment

    @property
    def num(self) -> int:
        return self.steps.shape[1]


class Answered:
    """A puzzle of a block with what was answered."""

    def __init__(self, block: Block, row: int, starts: Starts | None) -> None:
        """starts: None where their segments were not kept."""
        self._block, self._row, self._starts = block, row, starts
        predictions, labels = block.predictions, block.labels[row]
        is_known = labels != IGNORE_LABEL_ID
        self._truth = self._grid(np.where(is_known, labels, block.pad_id)) if is_known.any() else None
        self._answer = self._grid(predictions.preds[row])
        self._q = sigmoid(float(predictions.q_halt_logits[row]))

    def _grid(self, cells: NDArray[np.integer]) -> Grid:
        return self._block.grid(self._row, cells)

    def puzzle(self, key: str) -> Puzzle:
        """Return the puzzle, which has no results yet."""
        rows = self._block.predictions.rows
        assert rows is not None
        asked = self._grid(self._block.boards[self._row])
        height, width = shape(asked)
        return Puzzle(
            id=key,
            title=f"test {rows[self._row]}",
            split="test",
            subsets=[],
            height=height,
            width=width,
            demonstrations=[],
            inputs=[Asked(grid=asked, truth=self._truth)],
            results=[],
        )

    def result(self) -> Result:
        """Return what the run makes of it."""
        block, row = self._block, self._row
        num_segments = block.predictions.num_segments
        candidates = self._candidates()
        return Result(
            status=block.status(row),
            cells_right=rounded(float(block.cells_right[row])),
            agreement=self._agreement(),
            num_segments=None if num_segments is None else float(num_segments[row]),
            answers=[
                Answer(
                    attempts=[self._attempt()],
                    candidates=[one for one in candidates if one.rank <= SHOWN_CANDIDATES or one.is_right],
                    num_votes=sum(candidate.votes for candidate in candidates),
                    num_candidates=len(candidates),
                    note="the model's numbers were lost (NaN)" if self._q is None else "",
                    trajectories=self._trajectories(),
                )
            ],
        )

    def _attempt(self) -> Attempt:
        truth, is_right = self._truth, bool(self._block.is_right[self._row])
        if truth is None:
            return Attempt(grid=self._answer, is_right=None, num_wrong=None, note="")
        num_wrong = number_wrong(self._answer, truth)
        if is_right:
            note = "right"
        elif self._block.is_good[self._row]:
            note = f"another answer that obeys the rules: {num_wrong} cells are not as stored"
        else:
            note = f"{num_wrong} of {number_of_cells(truth)} cells wrong"
        return Attempt(grid=self._answer, is_right=is_right, num_wrong=num_wrong, note=note)

    def _ends(self) -> list[Grid]:
        """Return in what each start ended, if there are several."""
        if self._starts is None or self._starts.num == 1:
            return []
        return [self._grid(cells) for cells in self._starts.steps[-1]]

    def _agreement(self) -> float | None:
        ends = self._ends()
        return rounded(ends.count(self._answer) / len(ends)) if ends else None

    def _candidates(self) -> list[Candidate]:
        """Return what the starts answered, the most frequent first; of one start its answer."""
        grids, qs = self._ends(), [self._q]
        if self._starts is not None and grids:
            qs = [sigmoid(float(logit)) for logit in last_q_halt_logits(self._starts.segments, self._row)]
        counts = Counter(grids or [self._answer])
        mean_q = {
            grid: _mean([q for end, q in zip(grids or [self._answer], qs, strict=True) if end == grid])
            for grid in counts
        }
        ranked = sorted(counts, key=lambda grid: (-counts[grid], -(mean_q[grid] or 0)))
        return [
            Candidate(
                rank=rank,
                grid=grid,
                votes=counts[grid],
                q=mean_q[grid],
                is_right=None if self._truth is None else grid == self._truth,
            )
            for rank, grid in enumerate(ranked, start=1)
        ]

    def _trajectories(self) -> list[Trajectory]:
        """Return the segments of the start that was chosen; none where they were not kept."""
        starts = self._starts
        if starts is None:
            return []
        chosen = answering_start(starts.segments, self._block.predictions, self._row, starts.steps[-1])
        label = "answer" if starts.num == 1 else f"start {chosen}, which was chosen"

        def grids_of(answers: NDArray[np.uint8]) -> list[Grid]:
            return [self._grid(cells) for cells in answers]

        entry = self._row * starts.num + chosen
        return [trajectory(label, starts.segments, entry, starts.steps[:, chosen], grids_of)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return rounded(sum(known) / len(known)) if known else None
