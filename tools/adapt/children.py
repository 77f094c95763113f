"""Our own commands in processes of their own, which end when they are told to, and with the one that started them."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.base import signals
from data_pipeline.base.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, InputError
from tools.sweep.running import last_error

_POLL_S = 0.2
_KILLED_AFTER_S = 120.0
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class CommandError(Exception):
    """A command of ours has failed; the message is shown as it is."""


class Ended(NamedTuple):
    """How a command has ended."""

    seconds: float
    stopping_s: float
    """Of these, from when it was told to stop; 0 if it was not."""
    was_stopped: bool
    said: str
    """What it has printed."""


class Commands:
    """Start commands, one at a time, on all GPUs or on the CPU; what they print goes to a log."""

    def __init__(self, log: Path, num_processes: int, num_threads: int | None) -> None:
        self._log, self.num_processes = log, num_processes
        self._environment = dict(os.environ)
        if num_threads is not None:
            self._environment["OMP_NUM_THREADS"] = str(num_threads)
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        module: str,
        arguments: Sequence[object],
        is_enough: Callable[[], bool],
        on_tick: Callable[[float], object],
    ) -> Ended:
        """Run a command until it ends, or `is_enough`: then it is told to stop, and saves what it has.

        on_tick: called all the time with the seconds since the start. Raises CommandError if the command fails,
        InputError for what it says is bad input, and KeyboardInterrupt if a signal has stopped it.
        """
        log_start = self._log.stat().st_size if self._log.exists() else 0
        began, told_at = time.monotonic(), None
        try:
            process = self._start(module, arguments)
            while process.poll() is None:
                now = time.monotonic()
                on_tick(now - began)
                if told_at is None and is_enough():
                    told_at = now
                    process.terminate()
                if told_at is not None and now - told_at > _KILLED_AFTER_S:
                    process.kill()
                time.sleep(_POLL_S)
        except BaseException:
            if self._process is not None:
                self._process.terminate()
                _wait(self._process)
            raise
        finally:
            self._process = None
        ended = time.monotonic()
        if told_at is not None:
            return Ended(ended - began, ended - told_at, was_stopped=True, said=self._said(log_start))
        if process.returncode == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        if process.returncode:
            error = last_error(self._log, log_start) or f"exit code {process.returncode}"
            kind = InputError if process.returncode == EXIT_BAD_INPUT else CommandError
            raise kind(f"{module}: {error.removeprefix('error: ')} ({self._log} has all that it said)")
        return Ended(ended - began, 0.0, was_stopped=False, said=self._said(log_start))

    def _said(self, log_start: int) -> str:
        return self._log.read_bytes()[log_start:].decode(errors="replace")

    def _start(self, module: str, arguments: Sequence[object]) -> "subprocess.Popen[bytes]":
        launcher = ["-m", module]
        if self.num_processes > 1:
            several = ["--standalone", f"--nproc-per-node={self.num_processes}"]
            launcher = ["-m", "torch.distributed.run", *several, "-m", module]
        # A signal that comes now is heard as soon as it is known which process it has to stop.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, *launcher, *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    preexec_fn=_begin,
                )
            return self._process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """Have this process hear of SIGTERM alone, which it also gets when the one that started it is killed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _wait(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_KILLED_AFTER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
