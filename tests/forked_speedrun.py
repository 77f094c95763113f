"""tools.speedrun whose commands are forked from it, as they need not import torch again then.

Those of modules that the variable STARTED_ANEW names are started as always.
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from data_pipeline.base import signals
from tests.training import run_module
from tools.adapt import children
from tools.adapt.children import Commands
from tools.speedrun.__main__ import main as speedrun

_start_anew = Commands._start


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    with mock.patch.object(Commands, "_start", _start):
        return speedrun(arguments)


def _start(commands: Commands, module: str, arguments: Sequence[object]) -> object:
    if module in os.environ.get("STARTED_ANEW", "").split():
        return _start_anew(commands, module, arguments)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)
    try:
        words = [str(argument) for argument in arguments]
        commands._process = _Forked(module, words, commands._environment, commands._log)  # pyright: ignore[reportAttributeAccessIssue]
        return commands._process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Forked:
    """What Commands uses of a subprocess.Popen."""

    def __init__(self, module: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        command = (module, arguments, environment, log)
        self._process = multiprocessing.get_context("fork").Process(target=_run, args=command)
        self._process.start()
        self.terminate, self.kill = self._process.terminate, self._process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> None:
        self._process.join(timeout)
        assert self.returncode is not None


def _run(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    for number in signals.STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    children._begin()
    run_module(module, arguments, environment, log)
