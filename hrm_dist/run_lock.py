"""One training run per run folder at a time."""

import errno
import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hrm_dist.config import ConfigError

logger = logging.getLogger(__name__)

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# A job that Slurm has started again: its old processes may still be dying, and NFS lets go of a lost node's locks after
# 90 seconds.
_RESTARTED_WAITS_S = 300.0
_POLL_S = 0.5
_FLOCK = "hhqqi0q"  # Linux' struct flock: type, whence, start, length (0: to the end), process

_held: set[Path] = set()
"""Lock files of this process. It must not open them again: closing any descriptor of a file ends its locks on it."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run folder, which is made if missing; ConfigError if another process does.

    The lock is the kernel's, on `.lock` in the folder: it goes with the process, however that ends, and a child
    does not inherit it. At the end the file goes too, and so do folders made for a run that wrote nothing. A job that
    Slurm has started again waits for it.
    """
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    path = run_dir / ".lock"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
    except OSError as error:
        raise ConfigError(
            f"checkpoint_path={run_dir}: cannot be made or written ({error.strerror}); choose another folder."
        ) from error
    own = path.resolve()
    _held.add(own)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before another process can hold it
        with suppress(OSError):  # something was written
            for folder in made:
                folder.rmdir()
        os.close(descriptor)
        _held.discard(own)


def holder(run_dir: Path) -> str | None:
    """Host and process that hold the run folder, if another process does and the file system can tell.

    Only looks: a run that starts at the same moment is not hindered.
    """
    path = run_dir / ".lock"
    while path.resolve() not in _held:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            if not _is_locked(descriptor):
                return None
            if _is_same_file(descriptor, path):  # otherwise its owner has just removed it
                return _owner(descriptor)
        finally:
            os.close(descriptor)
    return None


def _is_locked(descriptor: int) -> bool:
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_GETLK, question)
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            return False
        raise
    return struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK


def _owner(descriptor: int) -> str:
    return os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "it has just started"


def _lock(path: Path) -> int:
    """An open file that holds the lock; its content is for people."""
    is_restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    deadline = time.monotonic() + (_RESTARTED_WAITS_S if is_restarted else 0)
    is_waiting = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                logger.warning("%s: this file system has no locks; start only one run in the folder", path)
                return descriptor
            owner = _owner(descriptor)
            os.close(descriptor)
            if time.monotonic() < deadline:
                if not is_waiting:
                    logger.info(
                        "checkpoint_path=%s: this job was started again, and what may be its old processes still train "
                        "here (%s); waiting for their end, up to %.0f s", path.parent, owner, _RESTARTED_WAITS_S,
                    )  # fmt: skip
                is_waiting = True
                time.sleep(_POLL_S)
                continue
            raise ConfigError(
                f"checkpoint_path={path.parent}: another run trains here ({owner}); wait for its end, stop it, or "
                "choose another checkpoint_path."
            ) from error
        if _is_same_file(descriptor, path):
            break
        os.close(descriptor)  # its owner has just removed it
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"host {socket.gethostname()}, pid {os.getpid()}\n".encode(), 0)
    return descriptor


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
