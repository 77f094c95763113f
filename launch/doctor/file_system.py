"""What a file system cannot do that outputs rely on, and what follows."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from launch.doctor.results import CheckResult, Results, fail, warn


class _Ability(NamedTuple):
    """Something that a file system can do, tried in a folder of its own; and what to say where it cannot."""

    attempt: Callable[[Path], object]
    otherwise: CheckResult


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(folder: Path) -> None:
    (folder / "synced").write_bytes(b"content")
    _sync(folder / "synced")


def _replace(folder: Path) -> None:
    (folder / "old").write_bytes(b"old")
    (folder / "new").write_bytes(b"new")
    (folder / "new").replace(folder / "old")
    if (folder / "old").read_bytes() != b"new":
        raise OSError(errno.EIO, "the old content stayed")


def _link(folder: Path) -> None:
    (folder / "link").symlink_to("target")
    if os.readlink(folder / "link") != "target":
        raise OSError(errno.EIO, "a link leads elsewhere")


def _link_hard(folder: Path) -> None:
    (folder / "first").touch()
    os.link(folder / "first", folder / "second")


def _tell_capitals_apart(folder: Path) -> None:
    (folder / "name").touch()
    if (folder / "NAME").exists():
        raise OSError(errno.EEXIST, "`run` and `Run` are one")


_ABILITIES = (
    _Ability(
        _replace, fail("files cannot be replaced", "use another file system: no output can be written here")
    ),
    _Ability(
        _sync_file,
        warn(
            "files cannot be synced", "a power cut may damage what was just saved; keep several checkpoints"
        ),
    ),
    _Ability(
        _sync,
        warn("folders cannot be synced", "nothing to do; a power cut may undo the last save, and no more"),
    ),
    _Ability(
        _link,
        warn(
            "no symbolic links", "nothing to do: checkpoints/latest and best are files here, used as always"
        ),
    ),
    _Ability(
        _link_hard, warn("no hard links", "start the parts of a build or of an evaluation some seconds apart")
    ),
    _Ability(
        _tell_capitals_apart,
        warn("capitals make no difference in names", "give runs names that differ in more than these"),
    ),
)


def check(folder: Path) -> Results:
    """Try everything in a new folder below, which goes again; yield what does not work."""
    scratch = Path(tempfile.mkdtemp(prefix=".hrm-doctor-", dir=folder))
    try:
        for attempt, otherwise in _ABILITIES:
            try:
                attempt(scratch)
            except OSError as error:
                yield otherwise._replace(what=f"{otherwise.what} ({error.strerror})")
    finally:
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()
