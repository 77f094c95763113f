"""Sums of metrics on the device, the rows they become, and where rows go: metrics.jsonl, W&B, the screen."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.base import jsonl
from data_pipeline.base.errors import RESUMES, unreadable, unwritable
from data_pipeline.base.files import replace_file
from data_pipeline.base.progress import Progress, duration, speed_text
from hrm_dist.config import TrainConfig
from hrm_dist.distributed import collectives
from hrm_dist.model.losses import total_loss
from hrm_dist.wandb_run import WandB

logger = logging.getLogger(__name__)

Row = dict[str, float | int | str]

# A process's first steps, which compile and allocate, do not count in the time left.
_WARM_UP_STEPS = 3

# In the order of checkpoints that do not name their sums; whatever else `act_loss` returns comes behind.
_FIRST_SUMS = (
    "num_steps", "count", "accuracy", "exact_accuracy", "q_halt_accuracy", "steps",
    "lm_loss", "q_halt_loss", "q_continue_loss", "skipped_updates",
)  # fmt: skip
_NAMES_IN_ROW = {"accuracy": "cell_accuracy", "steps": "segments"}


class MetricSums:
    """Sums of all metrics over the steps since the last logged row; nothing waits for the device before `row`."""

    def __init__(self, device: torch.device) -> None:
        self.names: list[str] = list(_FIRST_SUMS)
        self.values = torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def add(self, metrics: dict[str, Tensor], update_applied: Tensor) -> None:
        """Add a step's sums if its update was applied (bool, on the device): others are not finite, and counted."""
        self._extend([name for name in metrics if name not in self.names])
        zero = self.values.new_zeros(())
        share = zero + 1 / collectives.world_size()
        values, of_skipped = (
            torch.stack([step.get(name, zero).to(torch.float64) for name in self.names])
            for step in ({"num_steps": share, **metrics}, {"skipped_updates": share})
        )
        self.values += torch.where(update_applied, values, of_skipped)

    def total(self) -> list[float]:
        """Return the sums over all ranks."""
        return collectives.sum_over_ranks(self.values).tolist()

    def _extend(self, names: Sequence[str]) -> None:
        """Begin sums for names that have none yet."""
        if not names:  # a recorded step knows the sums by their place
            return
        self.names += names
        self.values = torch.cat((self.values, self.values.new_zeros(len(names))))

    def load(self, values: Tensor, names: Sequence[str] = ()) -> None:
        """Take over this rank's share of the sums of these names; a checkpoint without names has the first ones."""
        self.names = list(names or _FIRST_SUMS)[: len(values)]
        self.values = values.to(self.values)
        self._extend([name for name in _FIRST_SUMS if name not in self.names])

    def row(self, global_batch_size: int) -> Row:
        """Return averages over the steps summed up, over all ranks, and start anew.

        Losses are per sequence of the global batch (not a number where no update was applied), all other metrics per
        sequence that halted (0 when none did).
        """
        sums = dict(zip(self.names, self.total(), strict=True))
        self.values.zero_()
        skipped, count = sums.pop("skipped_updates"), sums.pop("count")
        sequences, halted = round(sums.pop("num_steps")) * global_batch_size or math.nan, max(count, 1)
        row: Row = {"train/loss": total_loss(sums) / sequences}
        for name, value in sums.items():
            divisor = sequences if name.endswith("_loss") else halted
            row[f"train/{_NAMES_IN_ROW.get(name, name)}"] = value / divisor
        return row | {"train/halted": count / sequences, "train/skipped_updates": round(skipped)}


class JsonLines:
    """`metrics.jsonl`: one object per line; of a step at most a row of training and one of scores."""

    def __init__(self, path: Path, step: int, redone: tuple[str, ...]) -> None:
        """Drop rows beyond a step, its own if they have keys that begin with one of `redone`, and what cannot be
        read, such as a line that a crash cut short."""

        def is_kept(row: Any) -> bool:
            try:
                is_redone = row["step"] == step and any(key.startswith(redone) for key in row)
                return row["step"] <= step and not is_redone
            except (ValueError, KeyError, TypeError):
                return False

        try:
            replace_file(path, jsonl.select(path, is_kept))
        except OSError as error:
            raise unreadable(path, error) from None
        self._path = path
        self._waiting: list[str] = []

    def write(self, row: Row) -> None:
        """Add a row. Where the disk takes none, it waits in memory, and goes with the next."""
        was_waiting = bool(self._waiting)
        # JSON knows no NaN.
        self._waiting.append(
            json.dumps({key: None if value != value else value for key, value in row.items()})
        )
        try:
            self._append()
        except OSError as error:
            if not was_waiting:
                logger.warning(
                    "%s: cannot be written (%s); training goes on, and its rows wait until the next checkpoint. "
                    "Make room by then: it ends the run if it cannot be written either",
                    self._path, error.strerror or error,
                )  # fmt: skip

    def flush(self) -> None:
        """Write the rows that wait, if any. Raises WriteError."""
        try:
            self._append()
        except OSError as error:
            raise unwritable(self._path, error, RESUMES) from None

    def _append(self) -> None:
        if self._waiting:
            # On disk at once: a checkpoint that outlives a power cut has all the rows before it.
            jsonl.append(self._path, *self._waiting)
            self._waiting.clear()

    def close(self) -> None:
        """Write what can be written of the rows that wait."""
        with suppress(OSError):
            self._append()


class RunLog:
    """Progress, speed, and the sinks of this process (only the main one has any)."""

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        step: int,
        last_step: int,
        redone: tuple[str, ...],
        matmul_seconds_per_step: float,
        wandb: WandB | None = None,
    ) -> None:
        """step: the one reached; redone: `train/` or `eval/` if its row of these is to come, whether or not an earlier
        process wrote it; matmul_seconds_per_step: what a step's matrix products take at the measured matmul rate of the
        devices."""
        self._batch_size = config.global_batch_size
        self._matmul_seconds_per_step = matmul_seconds_per_step
        self._sinks: list[JsonLines | WandB] = []
        if collectives.is_main():
            self._sinks.append(JsonLines(run_dir / "metrics.jsonl", step, redone))
            if wandb is not None:
                self._sinks.append(wandb)
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

    def write_row(self, row: Row) -> None:
        """Write a row of training with the speed since the last one, and show it."""
        seconds_per_step = math.nan  # if this process made no step since
        if self._steps_timed:
            seconds_per_step = (time.perf_counter() - self._since) / self._steps_timed
        speed = self._batch_size / seconds_per_step
        utilization = self._matmul_seconds_per_step / seconds_per_step
        self._write({**row, "examples_per_s": speed, "matmul_utilization": utilization})
        exact = f"exact {row['train/exact_accuracy']:.1%}"
        self._progress.notes = [f"loss {row['train/loss']:.3f}", exact, f"{speed_text(speed)} examples/s"]

    def write_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Write a row of scores, if there are any."""
        self._write(
            {"step": step, **{f"eval/{name}": score for name, score in scores.items()}} if scores else {}
        )

    def _write(self, row: Row) -> None:
        if row:
            for sink in self._sinks:
                sink.write(row)
        self._start_timing()

    def flush(self) -> None:
        """Have all rows on disk, which come before the checkpoint of their step. Raises WriteError."""
        for sink in self._sinks:
            if isinstance(sink, JsonLines):
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
