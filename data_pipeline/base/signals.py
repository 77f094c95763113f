"""The signals that ask a command to stop, whoever sends them: a person, a batch system, a terminal that is closed."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP,
    signal.SIGUSR1, signal.SIGUSR2,  # of batch systems, some time before the limit
    signal.SIGXCPU,  # the limit of processor time is reached, and there are some seconds left
)  # fmt: skip

Handler = Callable[[int, FrameType | None], Any]


def catch(handler: Handler) -> dict[signal.Signals, Any]:
    """Handle the signals that ask to stop; return the handlers before.

    A command that was started to outlive its terminal (nohup) does not hear of its end. Other signals are caught even
    if they were ignored, as SIGINT is in what a script starts in the background.
    """
    return {
        number: signal.signal(number, handler) for number in STOP_SIGNALS if not _outlives_terminal(number)
    }


def restore(handlers: dict[signal.Signals, Any]) -> None:
    """Put back what `catch` has returned."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def ignore() -> None:
    """Ignore them from now on, in a process that is ending anyway."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def kept_from_children() -> Generator[None]:
    """Start processes that never hear of those signals but SIGTERM; who has started them does, and stops them."""
    kept = {number for number in STOP_SIGNALS if number != signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, kept)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlives_terminal(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
