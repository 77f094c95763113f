"""Train the runs of a sweep in processes of their own, so many at a time; and pass on a signal that asks to stop."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from data_pipeline.base import signals
from data_pipeline.base.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, InputError
from data_pipeline.base.progress import Progress, duration
from hrm_dist import run_lock
from hrm_dist.config import load_config
from tools.sweep import pool
from tools.sweep.spec import Run, Sweep, digest

logger = logging.getLogger(__name__)

LOG = "sweep.log"
"""In a run's folder: all that it has printed, over all starts."""
_POLL_S = 0.5
_UNIT = 10**9
_TAIL_BYTES = 1 << 16


class Slots(NamedTuple):
    """How many runs at a time, and what each of them may use."""

    jobs: int
    threads: int
    gpus: list[str]
    """As in CUDA_VISIBLE_DEVICES; none where runs train on CPUs."""

    @classmethod
    def of_this_machine(cls, runs: Sequence[Run], jobs: int | None) -> "Slots":
        """Share the machine among `jobs` at a time: by default one per GPU, or per core, as far as there are runs."""
        gpus = _gpus() if any(run.config.device != "cpu" for run in runs) else []
        jobs = jobs or max(1, min(len(gpus) or num_cores(), len(runs)))
        return cls(jobs, max(1, num_cores() // jobs), gpus)


def num_cores() -> int:
    """Return how many cores this process may use."""
    of_job = os.environ.get("SLURM_CPUS_ON_NODE", "")
    cores = len(os.sched_getaffinity(0))
    return min(cores, int(of_job)) if of_job.isdecimal() else cores


def _gpus() -> list[str]:
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible or [str(index) for index in range(torch.cuda.device_count())]


class Outcome(NamedTuple):
    """How the runs ended that did not finish."""

    failed: dict[str, str]
    """By the name of the run, its last error."""
    elsewhere: dict[str, Path]
    """Those that another process trains, and their folders."""
    was_stopped: bool

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.was_stopped else 1 if self.failed else 0


class _Child(NamedTuple):
    run: Run
    folder: Path
    process: subprocess.Popen[bytes]
    slot: int
    log_start: int
    began: float


class Training:
    """The processes of a sweep; `finish` starts them all and waits for their end."""

    def __init__(
        self,
        sweep: Sweep,
        runs: Sequence[Run],
        slots: Slots,
        operations: Callable[[Run], int],
        on_change: Callable[[], object],
    ) -> None:
        """runs: what is to be trained, each once; operations: of a step; on_change: called after each run that ends."""
        self._sweep, self._slots, self._on_change = sweep, slots, on_change
        self._pending = list(runs)
        self._children: list[_Child] = []
        self._outcome = Outcome({}, {}, False)
        self._received: set[int] = set()
        self._folders: dict[str, Path] = {}
        self._num_runs, self._num_done = len(runs), 0
        found = {run.name: pool.find(sweep.pool, run) for run in runs}
        self._operations = {run.name: operations(run) for run in runs}
        self._steps = {name: one.step for name, one in found.items()}
        last_steps = {name: one.last_step or 0 for name, one in found.items()}
        total = sum(last_steps[name] * self._operations[name] for name in found) // _UNIT
        self._progress = Progress("sweep", "GFLOP", total, shown=True, done=self._work_done())

    def finish(self) -> Outcome:
        """Train all runs; those that fail do not stop the others. After a signal to stop, wait until all have saved."""
        handlers = signals.catch(self._pass_on)
        try:
            while self._children or (self._pending and not self._received):
                for child in [child for child in self._children if child.process.poll() is not None]:
                    self._children.remove(child)
                    self._note_end(child)
                    self._on_change()
                if not self._received:
                    self._start_some()
                self._show()
                time.sleep(_POLL_S)
                if self._pending and not self._children and not self._next():
                    break  # others train all that is left
        finally:
            for child in self._children:  # an error of our own
                child.process.terminate()
            for child in self._children:
                child.process.wait()
            signals.restore(handlers)
            self._progress.close()
        if not self._received:
            self._outcome.elsewhere.update({run.name: self._folder(run) for run in self._pending})
        return self._outcome._replace(was_stopped=bool(self._received))

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._received.add(number)
        for child in self._children:
            child.process.send_signal(number)

    # Starting

    def _folder(self, run: Run) -> Path:
        if run.name not in self._folders:
            self._folders[run.name] = pool.make_run_folder(self._sweep.pool, run)
        return self._folders[run.name]

    def _next(self) -> Run | None:
        """Return the next run that nobody else trains."""
        is_restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"  # it waits for its own old processes
        return next(
            (run for run in self._pending if is_restarted or run_lock.holder(self._folder(run)) is None), None
        )

    def _start_some(self) -> None:
        while len(self._children) < self._slots.jobs and (run := self._next()) and not self._received:
            self._pending.remove(run)
            found = pool.find(self._sweep.pool, run)
            if found.is_done:  # another sweep was faster
                self._num_done += 1
                self._steps[run.name] = found.step
                self._on_change()
                continue
            try:
                self._start(run)
            except InputError as error:
                self._num_done += 1
                self._outcome.failed[run.name] = str(error)

    def _start(self, run: Run) -> None:
        sweep, slots = self._sweep, self._slots
        folder = self._folder(run)
        slot = min(set(range(slots.jobs)) - {child.slot for child in self._children})
        overrides = [*run.setting.overrides, f"seed={run.seed}", f"checkpoint_path={folder}", "resume=auto"]
        if run.config.num_threads is None:
            overrides.append(f"num_threads={slots.threads}")
        if digest(load_config(sweep.config, overrides)) != digest(run.config):
            raise InputError(
                f"{sweep.config} has changed since this sweep was started; run the command again"
            )
        environment = {**os.environ, "OMP_NUM_THREADS": str(run.config.num_threads or slots.threads)}
        if slots.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = slots.gpus[slot % len(slots.gpus)]
        with (folder / LOG).open("ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "hrm_dist.train", str(sweep.config), *overrides],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,  # Ctrl-C in a terminal reaches the sweep alone, which passes it on once
            )
        self._children.append(_Child(run, folder, process, slot, log_start, time.monotonic()))
        for number in tuple(self._received):  # it came while there was nobody to pass it to
            process.send_signal(number)
        since = f" from step {self._steps[run.name]:,} on" if self._steps[run.name] else ""
        logger.info("%s: started%s in %s", run.name, since, folder)

    # Ending

    def _note_end(self, child: _Child) -> None:
        run, code = child.run, child.process.returncode
        found = pool.find(self._sweep.pool, run)
        took = duration(time.monotonic() - child.began)
        self._num_done += 1
        if code == 0 and found.is_done:
            self._steps[run.name] = found.step
            logger.info(
                "%s: done in %s, %s; %d of %d ended%s",
                run.name, took, _scores_text(found, self._sweep.score), self._num_done, self._num_runs, self._left(),
            )  # fmt: skip
        elif code == EXIT_INTERRUPTED or -code in self._received:
            if not self._received:
                self._outcome.failed[run.name] = "stopped by a signal; its state is saved"
            logger.info(
                "%s: stopped after %s at step %s, with its state saved", run.name, took, f"{found.step:,}"
            )
        elif code == EXIT_BAD_INPUT and run_lock.holder(child.folder):
            self._outcome.elsewhere[run.name] = child.folder
        else:
            error = last_error(child.folder / LOG, child.log_start) or f"exit code {code}"
            self._outcome.failed[run.name] = error
            logger.error("%s: failed after %s (exit code %d): %s", run.name, took, code, error)

    # Progress

    def _work_done(self) -> int:
        return sum(step * self._operations[name] for name, step in self._steps.items()) // _UNIT

    def _show(self) -> None:
        for child in self._children:
            self._steps[child.run.name] = pool.step_of(child.folder)
        self._progress.notes = [
            f"{self._num_done}/{self._num_runs} runs ended",
            *(f"{child.run.name} at step {self._steps[child.run.name]:,}" for child in self._children),
        ]
        if (units := self._work_done() - self._progress.done) > 0:
            self._progress.update(units)

    def _left(self) -> str:
        left_s = self._progress.left_s()
        return "" if left_s is None or self._num_done == self._num_runs else f", {duration(left_s)} left"


def _scores_text(found: pool.Found, score: str | None) -> str:
    assert found.last_step is not None
    scores = found.scores[found.last_step]
    names = [score] if score in scores else [name for name in pool.HEADLINES if name in scores][:1]
    return ", ".join(f"{name.removeprefix('eval/')} {scores[name]:.4f}" for name in names)


def last_error(log: Path, start: int) -> str | None:
    """Return the line of a log, of those from byte `start` on, that tells best why a run ended; None without any."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _TAIL_BYTES))
        lines = [
            line.strip() for line in file.read().decode(errors="replace").replace("\r", "\n").splitlines()
        ]
    errors = [line for line in lines if line.startswith("error: ")]
    return next(iter([*errors[-1:], *filter(None, reversed(lines))]), None)
