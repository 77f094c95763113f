"""One training run per run folder at a time."""

import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hrm_dist.config import ConfigError

logger = logging.getLogger(__name__)

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run folder, which is made if missing; ConfigError if another process does.

    The lock is the kernel's, on `.lock` in the folder: it goes with the process, however that ends, and a child
    does not inherit it. At the end the file goes too, and so do folders made for a run that wrote nothing.
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
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before another process can hold it
        with suppress(OSError):  # something was written
            for folder in made:
                folder.rmdir()
        os.close(descriptor)


def holder(run_dir: Path) -> str | None:
    """Host and process that hold the run folder, as far as its file system tells; None if nobody does."""
    try:
        descriptor = os.open(run_dir / ".lock", os.O_RDWR)
    except OSError:
        return None
    try:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = struct.unpack("hhqqi4x", fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
        if kind == fcntl.F_UNLCK:
            return None
        return os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "it has just started"
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _lock(path: Path) -> int:
    """An open file that holds the lock; its content is for people."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                logger.warning("%s: this file system has no locks; start only one run in the folder", path)
                return descriptor
            owner = path.read_text().strip()
            os.close(descriptor)
            raise ConfigError(
                f"checkpoint_path={path.parent}: another run trains here ({owner or 'it has just started'}); wait "
                "for its end, stop it, or choose another checkpoint_path."
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
