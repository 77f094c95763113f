"""Run puzzles through a model, segment by segment, and keep what the analyses look at.

Shape legend: N puzzles, T tokens, M segments, K of them in training, U updates of a state in K segments, u in one,
P positions of a puzzle, D hidden_size.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.base.progress import Progress
from data_pipeline.kind import Kind
from data_pipeline.reader import TestBatch
from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist.evaluation.segment import EvaluationSegment, Results
from hrm_dist.evaluation.start_keys import start_keys
from hrm_dist.model.act import ACTModel
from tools.analyze.observe import Update, observed
from tools.scaling.outcomes import Outcomes, score_segments

MAX_BYTES = 256 * 2**20
"""Of the states that are kept of a model, all together."""
Float32 = NDArray[np.float32]


class StateSeries(NamedTuple):
    """A state after each of its updates."""

    name: str
    updates_per_segment: int
    has_all_cells: bool
    """Whether P is T, so that a place in `cells` is the same place on every puzzle's canvas."""
    cells: Float32  # [N, U, P, D] at cells of the puzzle that were drawn, none twice, in their order
    is_cell: NDArray[np.bool_]  # [N, P] false where a puzzle has fewer cells
    means: Float32  # [N, U, D] over all cells of the puzzle
    residuals: (
        Float32  # [N, M, u] root mean square of what an update changed, over computed positions and width
    )

    def of_puzzles(self, chosen: NDArray[np.bool_]) -> "StateSeries":
        """Return those of some puzzles, [N] bool."""
        if chosen.all():
            return self
        arrays = {name: getattr(self, name)[chosen] for name in ("cells", "is_cell", "means", "residuals")}
        return self._replace(**arrays)


class Watched(NamedTuple):
    """What a model made of some puzzles."""

    preds: NDArray[np.uint8]  # [M, N, T]
    outcomes: Outcomes  # [N, M]
    series: list[StateSeries]


class Puzzles(NamedTuple):
    """Examples of a dataset."""

    inputs: NDArray[np.uint8]  # [N, T]
    labels: NDArray[np.int32]  # [N, T]; IGNORE_LABEL_ID where padded, everywhere if the truth is hidden
    identifiers: NDArray[np.int32]  # [N]
    examples: NDArray[np.int32]  # [N]

    @classmethod
    def of_batch(cls, batch: TestBatch) -> "Puzzles":
        names = ("inputs", "labels", "puzzle_identifiers", "example_index")
        return cls(*(batch[name].numpy() for name in names))

    def of(self, some: slice | NDArray[np.bool_]) -> "Puzzles":
        """Return some of them."""
        return Puzzles(self.inputs[some], self.labels[some], self.identifiers[some], self.examples[some])

    def part(self, some: slice) -> TestBatch:
        """Return some of them as tensors."""
        tensors = (torch.from_numpy(array[some]) for array in self)
        return TestBatch(
            inputs=next(tensors),
            labels=next(tensors),
            puzzle_identifiers=next(tensors),
            example_index=next(tensors),
        )

    def is_cell(self, pad_id: int) -> NDArray[np.bool_]:
        """Return which tokens [N, T] are of the puzzle, in its input or its answer, and no padding."""
        return (self.inputs != pad_id) | (self.labels != IGNORE_LABEL_ID)


class _Recorder:
    """Collect the states of one model; the arrays are made at the first update of each state."""

    def __init__(self, model: ACTModel, puzzles: Puzzles, segments: int, most_cells: int, seed: int) -> None:
        arch = model.arch
        self.names = list(arch.description.states)
        self._prefix_len, self._size = arch.prefix_len, arch.hidden_size
        self._num_kept = min(segments, arch.halt_max_steps)
        fast = arch.H_cycles * arch.L_cycles
        # A state that is not the first is updated in every fast update, the first one only at the end of a cycle, if
        # there is a second.
        self._every = [
            arch.L_cycles if len(self.names) > 1 and number == 0 else 1 for number in range(len(self.names))
        ]
        self._per_segment = [fast // every for every in self._every]
        is_cell = puzzles.is_cell(model.pad_id)
        num, num_kept_updates = len(is_cell), self._num_kept * sum(self._per_segment)
        room = MAX_BYTES // max(1, 4 * num * num_kept_updates * self._size)
        num_cells = max(1, min(most_cells, room, int(is_cell.sum(1).max(initial=1))))
        order = np.where(is_cell, np.random.default_rng(seed).random(is_cell.shape), np.inf).argsort(1)
        self._cells = np.sort(order[:, :num_cells])  # where all are kept, the same of every puzzle
        self._all_cells = is_cell
        self._is_cell = np.take_along_axis(is_cell, self._cells, axis=1)
        self.begin(slice(0))
        self.series = [
            StateSeries(
                name,
                updates,
                num_cells == is_cell.shape[1],
                np.zeros((num, self._num_kept * updates, num_cells, self._size), np.float32),
                self._is_cell,
                np.zeros((num, self._num_kept * updates, self._size), np.float32),
                np.zeros((num, segments, updates), np.float32),
            )
            for name, updates in zip(self.names, self._per_segment, strict=True)
        ]

    def begin(self, rows: slice) -> None:
        """Say which puzzles the first segment that comes is of."""
        self.rows, self.segment = rows, 0

    def see(self, update: Update) -> None:
        series = self.series[update.state]
        within = (update.number - 1) // self._every[update.state]
        change = torch.linalg.vector_norm(update.new - update.old, dim=(1, 2), dtype=torch.float32)
        scale = (update.num_positions * self._size) ** -0.5
        series.residuals[self.rows, self.segment, within] = (change * scale).cpu().numpy()
        if self.segment >= self._num_kept:
            return
        number = self.segment * series.updates_per_segment + within
        series.means[self.rows, number] = self._means(update.new)
        index = torch.from_numpy(self._cells[self.rows] + self._prefix_len).to(update.new.device)
        index = index[..., None].expand(-1, -1, self._size)
        series.cells[self.rows, number] = update.new.gather(1, index).float().cpu().numpy()

    def _means(self, state: Tensor) -> Float32:
        of_tokens = state[:, self._prefix_len :].float()
        is_cell = torch.from_numpy(self._all_cells[self.rows]).to(of_tokens)
        sums = torch.einsum("btd,bt->bd", of_tokens, is_cell)
        return (sums / is_cell.sum(1, keepdim=True).clamp(min=1)).cpu().numpy()


def watch(
    model: ACTModel,
    puzzles: Puzzles,
    kind: Kind,
    segments: int,
    batch_size: int,
    progress: Progress,
    *,
    most_cells: int = 0,
    seed: int = 0,
) -> Watched:
    """Run all puzzles for so many segments; `progress` counts segments of puzzles.

    most_cells: of how many cells of a puzzle, drawn by the seed, to keep the states, as far as MAX_BYTES allow; 0 for
    no states at all. They are kept of the segments of training; what updates change, of all segments.
    """
    num = len(puzzles.inputs)
    has_states = bool(model.arch.description.states) and most_cells > 0
    recorder = _Recorder(model, puzzles, segments, most_cells, seed) if has_states else None
    preds = np.zeros((segments, *puzzles.inputs.shape), np.uint8)
    values = np.zeros((3, num, segments), np.float32)
    for first in range(0, num, batch_size):
        rows = slice(first, min(first + batch_size, num))
        if recorder:
            recorder.begin(rows)
        with observed(model, recorder.see) if recorder else nullcontext():
            for number, results in enumerate(_segments(model, puzzles.part(rows), kind, segments)):
                preds[number, rows] = results.preds.numpy()
                values[:, rows, number] = np.stack(
                    [results.q_halt_logits, results.q_continue_logits, results.residuals]
                )
                if recorder:
                    recorder.segment += 1
                progress.update(rows.stop - rows.start)
    outcomes = score_segments(kind, puzzles.inputs, puzzles.labels, preds, *values)
    return Watched(preds, outcomes, recorder.series if recorder else [])


def _segments(model: ACTModel, batch: TestBatch, kind: Kind, segments: int) -> Iterator[Results]:
    """Yield what the model says after each segment of a batch."""
    num, device = len(batch["inputs"]), next(model.parameters()).device
    has_states = bool(model.arch.description.states)
    segment = EvaluationSegment(model, num, device, has_grids=kind.scorer == "votes", residuals=has_states)
    fields = {name: batch[name] for name in ("inputs", "puzzle_identifiers")}
    segment.refill(fields | {"noise_keys": start_keys(batch)}, torch.ones(num, dtype=torch.bool))
    for _ in range(segments):
        segment()
        results = segment.results()
        results.wait()
        yield results
