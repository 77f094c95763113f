"""Notice that the threads of this process wait for cores, which makes several threads slower than one.

Threads that compute together wait for one another after every operation, so one that gets no core holds up all. The
kernel counts for every thread how long it had work and no core (schedstat).
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

# Measured on two cores (docs/LOG.md): 5 to 10 % with no other work, 40 % beside one other process, where two threads
# are 2.3 times slower than one.
_TOO_MUCH = 0.2
# A burst of other work is no reason: so many stretches in a row, of so many seconds at least.
_STRETCHES, _STRETCH_S = 2, 5.0


class _Times(NamedTuple):
    at: float
    ran_s: float
    waited_s: float


class Crowding:
    """Watch the threads that compute on the CPU, until there was something to say."""

    def __init__(self, device: torch.device) -> None:
        self._watches = device.type == "cpu" and torch.get_num_threads() > 1
        self._since = _times()
        self._crowded = 0  # stretches in a row

    def warning(self) -> str | None:
        """Return what to say now, once; cheap enough for every step."""
        if not self._watches or time.perf_counter() - self._since.at < _STRETCH_S:
            return None
        before, now = self._since, _times()
        ran, waited = now.ran_s - before.ran_s, now.waited_s - before.waited_s
        share = waited / max(ran + waited, 1e-9)
        self._since, self._crowded = now, self._crowded + 1 if share >= _TOO_MUCH else 0
        if self._crowded < _STRETCHES:
            return None
        self._watches = False
        return (
            f"too few cores are free: the {torch.get_num_threads()} threads of this process wait for one {share:.0%} "
            "of their time, and then for each other. It can be several times faster with num_threads=1, or with no "
            "more threads than there are free cores"
        )


def _times() -> _Times:
    """Return how long the threads of this process ran, and how long they waited for a core."""
    ran_ns = waited_ns = 0
    for task in Path("/proc/self/task").iterdir() if os.path.isdir("/proc/self/task") else ():
        with suppress(OSError, ValueError):  # it has just ended, or the kernel does not count
            ran, waited, _ = (task / "schedstat").read_text().split()
            ran_ns, waited_ns = ran_ns + int(ran), waited_ns + int(waited)
    return _Times(time.perf_counter(), ran_ns / 1e9, waited_ns / 1e9)
