"""What a command prints must not break it: a reader that has gone, a closed terminal, letters beyond ASCII."""

import errno
import io
import os
import select
import sys
from typing import TextIO

_NOBODY_READS = (errno.EPIPE, errno.EIO)  # `| head` that has seen enough; a terminal that was closed


class _Screen(io.RawIOBase):
    """A standard stream whose failures matter only where a program may want what is written to it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._fails = descriptor == 1

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: "bytes | memoryview") -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        rest = memoryview(data).cast("B")
        size = rest.nbytes
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # another process that has the terminal made it so
                    select.select([], [self._descriptor], [])
        except OSError as error:
            if self._fails and error.errno not in _NOBODY_READS:
                self._fails = False  # it is said once
                raise OSError(error.errno, error.strerror, "stdout") from None
        return size


def make_reliable() -> None:
    """Let no line on stdout or stderr fail because of who reads it, or of its letters.

    Where a disk is full under stdout, which may be what the command is for, OSError is raised, once.
    """
    sys.stdout = _reliable(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _reliable(sys.stderr, sys.__stderr__, 2)


def _reliable(stream: TextIO | None, original: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:  # closed by who started the command
        _occupy(descriptor)
        return open(os.devnull, "w", encoding="utf-8")
    if stream is not original or not isinstance(
        original, io.TextIOWrapper
    ):  # of a test, or made reliable before
        return stream
    stream.flush()
    screen = _Screen(descriptor)
    return io.TextIOWrapper(
        screen if original.write_through else io.BufferedWriter(screen),  # pyright: ignore[reportArgumentType]
        original.encoding,
        "backslashreplace",
        line_buffering=original.line_buffering or descriptor == 2,
        write_through=original.write_through,
    )


def _occupy(descriptor: int) -> None:
    """Keep a file that is opened next from being taken for a standard stream by other code."""
    try:
        os.fstat(descriptor)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != descriptor:
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
