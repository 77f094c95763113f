"""The log of a run: progress and speed on the screen, and entries to all sinks."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from data_pipeline.base.progress import Progress, duration, speed_text
from hrm_dist.config import TrainConfig
from hrm_dist.distributed import collectives
from hrm_dist.evaluation.scores import Scores
from hrm_dist.metrics import Row
from hrm_dist.run_log.entry import Entry, Picture, Sink

# A process's first steps, which compile and allocate, do not count in the time left.
_WARM_UP_STEPS = 3


class RunLog:
    """Progress, speed, and the sinks of this process (only the main one has any)."""

    def __init__(
        self,
        config: TrainConfig,
        sinks: Sequence[Sink],
        step: int,
        last_step: int,
        matmul_seconds_per_step: float,
    ) -> None:
        """step: the one reached; matmul_seconds_per_step: what a step's matrix products take at the measured matmul
        rate of the devices."""
        self._batch_size = config.global_batch_size
        self._matmul_seconds_per_step = matmul_seconds_per_step
        self._sinks = sinks
        self._progress = Progress(
            "", "step", last_step, shown=collectives.is_main(), done=step, warm_up=_WARM_UP_STEPS
        )
        self._first_step, self._began, self._untimed_s = step, time.perf_counter(), 0.0
        self._paused_at: float | None = None  # within what is untimed
        self._start_timing()

    def _start_timing(self) -> None:
        self._steps_timed, self._since = 0, time.perf_counter()

    def advance(self) -> None:
        """Count a step that is done."""
        self._steps_timed += 1
        self._progress.update()

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Leave the time of the block, an evaluation or a checkpoint, out of the time that training takes."""
        self._paused_at = began = time.perf_counter()
        with self._progress.untimed():
            yield
        self._untimed_s += time.perf_counter() - began
        self._paused_at = None

    def write_row(self, step: int, row: Row) -> None:
        """Write a row of training with the speed since the last one, and show it."""
        seconds_per_step = math.nan  # if this process made no step since
        if self._steps_timed:
            seconds_per_step = (time.perf_counter() - self._since) / self._steps_timed
        speed = self._batch_size / seconds_per_step
        utilization = self._matmul_seconds_per_step / seconds_per_step
        values = {**row, "examples_per_s": speed, "matmul_utilization": utilization}
        self._write(Entry(step, values))
        exact = f"exact {row['train/exact_accuracy']:.1%}"
        self._progress.notes = [f"loss {row['train/loss']:.3f}", exact, f"{speed_text(speed)} examples/s"]

    def write_evaluation(
        self, step: int, scores: Scores, subset: str, draw: Callable[[], Sequence[Picture]] = tuple
    ) -> None:
        """Write what an evaluation has found, if it has found any scores; subset: of which puzzles they are."""
        if scores:
            values: Row = {f"eval/{name}": score for name, score in scores.items()}
            self._write(Entry(step, values, subset, draw))
        self._start_timing()

    def _write(self, entry: Entry) -> None:
        for sink in self._sinks:
            sink.write(entry)
        self._start_timing()

    def flush(self) -> None:
        """Have all rows on disk, which come before the checkpoint of their step. Raises WriteError."""
        for sink in self._sinks:
            sink.flush()

    def seconds_trained(self) -> float:
        """Return how long this process has trained, without what was `untimed`."""
        now = time.perf_counter() if self._paused_at is None else self._paused_at
        return now - self._began - self._untimed_s

    def describe_work(self) -> str:
        """Return how many steps this process has made, how long it took and how fast it was."""
        seconds = time.perf_counter() - self._began
        num_steps = self._progress.done - self._first_step
        if not num_steps:
            return "no step was left to do"
        speed = num_steps * self._batch_size / max(1e-9, self.seconds_trained())
        since = f", from step {self._first_step:,} on" if self._first_step else ""
        steps = "1 step" if num_steps == 1 else f"{num_steps:,} steps"
        return f"{steps} in {duration(seconds)}{since}, {speed_text(speed)} examples/s in training"

    def close(self) -> None:
        self._progress.close()
        for sink in self._sinks:
            sink.close()
