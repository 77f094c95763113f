"""File locks between processes, also of several machines.

These are POSIX locks (`lockf`): the kernel's, so none outlives its process. NFS, Lustre and GPFS hold them between
nodes, where `flock` may lock one node alone; a forked child does not inherit them; and one can ask who holds one
without taking it. Their trap is that a process loses its lock when it closes any descriptor of the file, so a lock
has a file of its own, which this module alone opens.
"""

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL_S = 0.5
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_FLOCK = "hhqqi0q"  # Linux' struct flock: type, whence, start, length (0: to the end), process

_held: set[Path] = set()
"""Lock files of this process, which it must not open again."""
os.register_at_fork(after_in_child=_held.clear)


class LockedError(Exception):
    """A lock that another process holds, or this one already; the message names host and process."""


def try_lock(descriptor: int) -> bool:
    """Take the lock on a file open for writing; False if another process has it. It ends when the file is closed.

    Raises OSError where the file system has no locks.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def wait_for(descriptor: int) -> None:
    """Take the lock on a file open for writing as soon as no other process has it, if the file system has locks."""
    with suppress(OSError):
        fcntl.lockf(descriptor, fcntl.LOCK_EX)


@contextmanager
def hold(path: Path, wait_s: float = 0, on_wait: Callable[[str], None] | None = None) -> Generator[bool]:
    """Hold the lock on a file, which is made for it and goes at the end; its content names host and process.

    Waits up to `wait_s` for another process, and calls `on_wait` once with who that is. Yields False where the file
    system has no locks. Raises LockedError, and OSError if the file cannot be made.
    """
    own = _real(path)
    if own in _held:
        raise LockedError(_me())
    descriptor, is_locked = _acquire(path, wait_s, on_wait)
    _held.add(own)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{_me()}\n".encode(), 0)
        yield is_locked
    finally:
        if _is_same_file(descriptor, path):  # the folder may have gone, and have been made again
            path.unlink(missing_ok=True)  # before another process can hold it
        os.close(descriptor)
        _held.discard(own)


def holder(path: Path) -> str | None:
    """Return host and process that hold a lock, if another process does and the file system can tell.

    Only looks: a process that takes the lock at the same moment is not hindered.
    """
    while _real(path) not in _held:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return None
            raise
        try:
            if not _is_locked(descriptor):
                return None
            if _is_same_file(descriptor, path):  # otherwise its owner has just removed it
                return _owner(descriptor)
        finally:
            os.close(descriptor)
    return None


def _acquire(path: Path, wait_s: float, on_wait: Callable[[str], None] | None) -> tuple[int, bool]:
    """Open and lock the file; the descriptor, and whether the file system has locks."""
    deadline = time.monotonic() + wait_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if try_lock(descriptor):
                if _is_same_file(descriptor, path):
                    return descriptor, True
                os.close(descriptor)  # its owner has just removed it
                continue
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                return descriptor, False
            os.close(descriptor)
            raise
        owner = _owner(descriptor)
        os.close(descriptor)
        if time.monotonic() >= deadline:
            raise LockedError(owner)
        if on_wait is not None:
            on_wait(owner)
            on_wait = None
        time.sleep(_POLL_S)


def _is_locked(descriptor: int) -> bool:
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, question)
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            return False
        raise
    return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # `resolve` fails where links lead in a circle


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _owner(descriptor: int) -> str:
    return os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "it has just started"


def _me() -> str:
    return f"host {socket.gethostname()}, pid {os.getpid()}"
