"""Append-only logs of one JSON value per line. Several processes may append to one, and only whole lines count."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.base import locks
from data_pipeline.base.files import sync_file


def append(path: Path, *texts: str) -> None:
    """Add JSON texts as a line each; they are on disk afterwards, or the file is as before and OSError is raised.

    Lines of several processes do not mix. What a crash has left of a line goes.
    """
    content = "".join(f"{text}\n" for text in texts).encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        locks.wait_for(descriptor)  # NFS does not append in one piece
        end = _end_of_last_line(descriptor)
        os.ftruncate(descriptor, end)
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync_file(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def lines(path: Path) -> list[bytes]:
    """Return the whole lines of a log without their ends; none where there is no file. Raises OSError."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return []


def read(path: Path) -> list[Any]:
    """Return the values of a log, without lines that are damaged. Raises OSError."""
    return [value for line in lines(path) if (value := _value(line)) is not None]


def select(path: Path, is_wanted: Callable[[Any], bool]) -> bytes:
    """Return the lines of a log whose values are wanted, unchanged, for a file to take its place. Raises OSError."""
    return b"".join(
        line + b"\n" for line in lines(path) if (value := _value(line)) is not None and is_wanted(value)
    )


def _value(line: bytes) -> Any:
    """Return what a line says, a bad byte in a text replaced; None if it is damaged, or null."""
    try:
        return json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None


def _end_of_last_line(descriptor: int) -> int:
    """Return how many bytes of a file whole lines make up."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    return os.pread(descriptor, size, 0).rfind(b"\n") + 1
