"""Continuous batching: a sequence that is finished leaves its slot to the next input.

So the device hardly works on what is finished, and its shapes stay fixed. On a GPU the host looks one segment late at
who has halted, and discards what that segment made of these: it never waits for the segment just launched.
Shape legend: B slots, F sequences that finish together, S tokens.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.reader import TestBatch
from hrm_dist.evaluation.halting import HaltingRule
from hrm_dist.evaluation.segment import EvaluationSegment, Results
from hrm_dist.evaluation.start_keys import start_keys
from hrm_dist.evaluation.trajectories import Recorder, Trajectory

_NOBODY = -1
_MostSegments = Callable[[NDArray[np.int64]], NDArray[np.int64]]


class Queue(Protocol):
    """What comes next; it may depend on the answers so far."""

    def take(self, most: int) -> NDArray[np.int64]:
        """Return the numbers of the next inputs, at most so many; fewer where there are no more at present."""
        ...


class Inputs(Protocol):
    """What is answered, by number: the test split of a dataset, or anything else."""

    def take(self, rows: NDArray[np.int64]) -> TestBatch:
        """Return the inputs with these numbers, in this order."""
        ...


class InOrder:
    """A queue of given inputs."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self._rows = rows

    def take(self, most: int) -> NDArray[np.int64]:
        taken, self._rows = self._rows[:most], self._rows[most:]
        return taken


class Finished(NamedTuple):
    """What was finished after a segment, perhaps nothing; arrays of what the model says of these inputs."""

    rows: NDArray[np.int64]  # [F]
    num_segments: NDArray[np.int32]  # [F]
    preds: NDArray[np.uint8]  # [F, S]
    q_halt_logits: NDArray[np.float32]  # [F]
    log_probs: NDArray[np.float32]  # [F]
    trajectories: list[tuple[Trajectory, ...]]  # [F], of each all starts in order, if asked for

    def part(self, which: slice) -> Self:
        """Return some of them."""
        return self._make(of_all[which] for of_all in self)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return all of several, at least one."""
        *arrays, trajectories = zip(*parts, strict=True)
        return cls._make([*map(np.concatenate, arrays), list(chain.from_iterable(trajectories))])

    def of_rows(self, wanted: NDArray[np.integer]) -> Self:
        """Return those of some rows, in order of rows."""
        entries = np.flatnonzero(np.isin(self.rows, wanted))
        entries = entries[np.argsort(self.rows[entries])]
        trajectories = [self.trajectories[entry] for entry in entries.tolist()] if self.trajectories else []
        return self._make([*(array[entries] for array in self[:-1]), trajectories])


class Ended(NamedTuple):
    """What a choice between several starts looks at after a segment; `rows` are numbers of starts (starts.py)."""

    finished: Finished
    residuals: NDArray[np.float32]  # [F]
    going_on: NDArray[np.int64]  # [G] who has run and is not finished
    num_segments: NDArray[np.int32]  # [G] how many these have run


class _Launched(NamedTuple):
    """A segment under way, and what lies in each slot."""

    results: Results
    rows: NDArray[np.int64]  # [B]
    num_segments: NDArray[np.int32]  # [B]


class Answering:
    """Take inputs from a queue through a number of slots; the model must be in evaluation mode."""

    def __init__(
        self,
        segment: EvaluationSegment,
        inputs: Inputs,
        rule: HaltingRule,
        max_segments: int,
        *,
        keeps_trajectories: bool = False,
        lag: int | None = None,
        num_starts: int = 1,
        noise_seed: int = 0,
    ) -> None:
        """lag: how many segments late to look who has finished (default: one on a GPU, none elsewhere).

        num_starts: of each row, whose starts are numbered row * num_starts + start; these are what the slots hold. Of a
        model that draws random numbers, theirs follow from noise_seed, the input and the start.
        """
        self.segment, self.inputs, self.rule, self.max_segments = segment, inputs, rule, max_segments
        num_slots = segment.num_slots
        self._lag = int(segment.preds.is_cuda) if lag is None else lag
        self._num_starts, self._noise_seed = num_starts, noise_seed
        self._rows = np.full(num_slots, _NOBODY, dtype=np.int64)
        self._num_segments = np.zeros(num_slots, dtype=np.int32)
        self._launched: deque[_Launched] = deque()
        self._halted_lately: deque[NDArray[np.int64]] = deque(maxlen=self._lag)
        nobody = np.empty(0, dtype=np.int64)
        self._going_on = (
            nobody,
            nobody,
            nobody.astype(np.int32),
        )  # slots, who is in them and how far they have been seen
        self._held: dict[str, Tensor] = {}
        self._recorder = Recorder(num_slots, segment.preds.shape[1]) if keeps_trajectories else None
        self.num_launched = 0
        """Segments so far."""

    @property
    def num_segments_under_way(self) -> int:
        """Return how many segments the inputs in the slots have run."""
        return int(self._num_segments[self._rows != _NOBODY].sum())

    def answers(self, queue: Queue) -> Iterator[Finished]:
        """Yield what is finished after each segment, until the queue has nothing more and all are."""
        for ended in self.ends(queue):
            yield ended.finished

    def ends(self, queue: Queue, most_segments: _MostSegments | None = None) -> Iterator[Ended]:
        """Yield what came of each segment, until the queue has nothing more and all is finished or over.

        most_segments: after how many segments some numbers are of no more interest, which may change whenever something
        was yielded; they are over then, and yielded no more.
        """
        while True:
            if most_segments is not None:
                self._free_what_is_over(most_segments)
            self._fill(queue)
            is_running = (self._rows != _NOBODY).any()
            if is_running:
                self._launch()
            if len(self._launched) > self._lag or (self._launched and not is_running):
                yield self._look(self._launched.popleft(), most_segments)
            elif not is_running:
                return

    def _fill(self, queue: Queue) -> None:
        """Give free slots to the next inputs."""
        free = np.flatnonzero(self._rows == _NOBODY)
        rows = queue.take(len(free)) if len(free) else free
        if not len(rows):
            return
        slots = free[: len(rows)]
        batch = self.inputs.take(rows // self._num_starts)
        begins = torch.zeros(self.segment.num_slots, dtype=torch.bool)
        begins[slots] = True
        fields = {name: batch[name] for name in ("inputs", "puzzle_identifiers")}
        if self.segment.model.arch.is_random:
            fields["noise_keys"] = start_keys(batch, rows % self._num_starts, self._noise_seed)
        for name, values in fields.items():
            if name not in self._held:
                # What lies in slots that are never filled is computed too.
                begins[:] = True
                self._held[name] = values[np.zeros(len(begins), dtype=np.int64)]
            self._held[name][slots] = values
        self.segment.refill(self._held, begins)
        self._rows[slots], self._num_segments[slots] = rows, 0

    def _launch(self) -> None:
        self.segment()
        self.num_launched += 1
        self._num_segments += 1
        results = self.segment.results()
        self._launched.append(_Launched(results, self._rows.copy(), self._num_segments.copy()))
        # Those whose segments are over are finished, whatever they say.
        self._rows[self._num_segments >= self.max_segments] = _NOBODY

    def _free_what_is_over(self, most_segments: _MostSegments) -> None:
        """Free the slots of what needs no further segment."""
        self._rows[self._num_segments >= most_segments(self._rows)] = _NOBODY
        if self._recorder is not None:
            slots, rows, num_segments = self._going_on
            for slot in slots[num_segments >= most_segments(rows)].tolist():
                self._recorder.take(slot)

    def _look(self, launched: _Launched, most_segments: _MostSegments | None) -> Ended:
        """Return who finished with a segment, and free their slots."""
        rows, num_segments, results = launched.rows, launched.num_segments, launched.results
        results.wait()
        said = results.said()
        preds, log_probs = results.preds.numpy(), results.log_probs.numpy()
        # Those that halted before are seen once more for each segment that was launched before that was known.
        runs = (rows != _NOBODY) & ~np.isin(rows, np.concatenate([[_NOBODY], *self._halted_lately]))
        if most_segments is not None:
            runs &= num_segments <= most_segments(rows)
        halts = runs & self.rule.halts(said)
        finishes = halts | (runs & (num_segments >= self.max_segments))
        slots, going_on = np.flatnonzero(finishes), np.flatnonzero(runs & ~finishes)
        self._going_on = going_on, rows[going_on], num_segments[going_on]
        self._halted_lately.append(rows[halts])
        self._rows[np.isin(self._rows, rows[halts])] = _NOBODY
        trajectories = []
        if self._recorder is not None:
            values = (said.q_halt_logits, said.q_continue_logits, said.residuals, log_probs)
            self._recorder.add(runs, runs & (num_segments == 1), preds, *values)
            trajectories = [(self._recorder.take(slot),) for slot in slots.tolist()]
        finished = Finished(
            rows[slots],
            num_segments[slots],
            preds[slots],
            said.q_halt_logits[slots],
            log_probs[slots],
            trajectories,
        )
        return Ended(finished, said.residuals[slots], *self._going_on[1:])
