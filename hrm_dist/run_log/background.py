"""A thread that feeds what may fail or hang: neither ends training nor holds it up."""

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from hrm_dist.run_log.entry import Entry

logger = logging.getLogger(__name__)

# How long what is left may take at the end.
TIMEOUT_S = 60.0
# How long after that until it counts as stuck, and how many entries wait for it until then.
GRACE_S = 15.0
MAX_WAITING = 1000


class Background:
    """A sink that hands entries to a function, in order, in a thread of its own; errors lose it, once, in one line."""

    def __init__(
        self,
        name: str,
        write: Callable[[Entry], None],
        finish: Callable[[], None],
        when_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """finish: what ends it well; when_lost: called in a thread that nobody waits for."""
        self._name, self._write, self._finish, self._when_lost = name, write, finish, when_lost
        self._is_lost, self._losing = False, threading.Lock()
        self._waiting: queue.Queue[Entry | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None

    def write(self, entry: Entry) -> None:
        """Hand an entry over, as soon as it is taken."""
        if self._is_lost:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._hand_over, daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            self.lose(TimeoutError(f"{MAX_WAITING:,} rows wait for it"))

    def flush(self) -> None:
        """Do nothing: no checkpoint waits for this."""

    def close(self) -> None:
        """Hand over what is left, and finish."""
        if self._thread is not None and not self._is_lost:
            with suppress(queue.Full):
                self._waiting.put_nowait(None)
            self._thread.join(GRACE_S)
            if self._thread.is_alive():
                self.lose(TimeoutError("it takes no rows"))
        if not self._is_lost and not _ends(lambda: self._try(self._finish), TIMEOUT_S + GRACE_S):
            self.lose(TimeoutError("it does not end"))

    def _hand_over(self) -> None:
        while (entry := self._waiting.get()) is not None and not self._is_lost:
            self._try(self._write, entry)

    def _try(self, call: Callable[..., object], *values: object) -> None:
        try:
            call(*values)
        except Exception as error:  # of many kinds, and none is worth a run
            self.lose(error)

    def lose(self, error: Exception) -> None:
        """Go on without it."""
        with self._losing:
            if self._is_lost:
                return
            self._is_lost = True
        logger.warning(
            "%s is gone (%s); training goes on without it, and metrics.jsonl has all rows",
            self._name,
            reason(error),
        )
        threading.Thread(target=self._forget, daemon=True).start()

    def _forget(self) -> None:
        with suppress(Exception):
            self._when_lost()


def reason(error: Exception) -> str:
    """Return the first line of what an error says."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _ends(call: Callable[[], None], within_s: float) -> bool:
    """Call in a thread that is left behind if it takes too long; return whether it has ended."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(within_s)
    return not thread.is_alive()
