"""Write files whole or not at all: what is read under a name was completely written.

Only regular files are replaced. A device or a FIFO, which somebody named as an output, takes the bytes as they come.
"""

import errno
import json
import os
import socket
import stat
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from data_pipeline.base.errors import InputError, WriteError, unwritable

TEMPORARY_SUFFIX = ".tmp"

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
_NO_SYNC_OF_FOLDERS = (*_NO_SYNC, errno.EBADF, errno.EACCES, errno.EISDIR)


def replace_file(path: Path | str, content: bytes, *, make_folder: bool = True) -> None:
    """Write a file so that it is either as before or complete; see `atomic_write`."""
    with atomic_write(path, make_folder=make_folder) as file:
        file.write(content)


def refuse_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """Raise InputError, before any work, for an output that is an input, below one, a folder, or another output.

    outputs: by option, None where nothing is to be written.
    """
    is_read = {os.path.realpath(path) for path in inputs}
    option_of: dict[str, str] = {}
    for option, path in outputs.items():
        mode = None if path is None else _mode(path)
        if path is None or not (mode is None or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            continue  # of a device nothing is lost
        real = os.path.realpath(path)
        if not is_read.isdisjoint((real, *map(str, Path(real).parents))):
            raise InputError(
                f"{option} {path}: is among the files that are read, or lies with them, and would be overwritten; "
                "give another name."
            )
        if mode is not None and stat.S_ISDIR(mode):
            raise WriteError(f"{option} {path}: cannot be written (it is a folder); give the name of a file.")
        if real in option_of:
            raise InputError(f"{option} {path}: is the file of {option_of[real]}, too; give another name.")
        option_of[real] = option


@contextmanager
def atomic_write(path: Path | str, *, make_folder: bool = True) -> Generator[BinaryIO]:
    """Open a file for writing that takes its name, on disk, when the block ends without an error.

    A symbolic link stays and its target is replaced. A device or a FIFO is written directly. Raises WriteError for a
    folder, and for whatever cannot be written.
    """
    path = Path(path)
    try:
        mode = _mode(path)
        if mode is not None and stat.S_ISDIR(mode):
            raise WriteError(f"{path}: cannot be written (it is a folder); give the name of a file.")
        is_file = mode is None or stat.S_ISREG(mode)
        with _new_file(Path(os.path.realpath(path)), make_folder) if is_file else _device(path) as file:
            yield file
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def _new_file(path: Path, makes_folder: bool) -> Generator[BinaryIO]:
    # Processes on machines that share the folder may write the same file.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{TEMPORARY_SUFFIX}")
    if makes_folder:
        make_folder(path.parent)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            sync_file(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync(path.parent)


@contextmanager
def _device(path: Path) -> Generator[BinaryIO]:
    # Not created if it has just gone. A FIFO waits for its reader here.
    with os.fdopen(os.open(path, os.O_WRONLY), "wb") as file:
        yield file


def _mode(path: Path) -> int | None:
    """Return the type and the rights of what a path leads to; None if nothing is there."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def make_folder(path: Path) -> None:
    """Make a folder and those above, if it is not there; a link to one that is not there yet is good, too.

    Raises OSError.
    """
    try:
        Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", error.filename) from None


def put_if_missing(draft: Path, path: Path) -> None:
    """Give a complete file its name, unless another command has put one there; the draft is gone then."""
    try:
        os.link(draft, path)  # unlike a rename, it never takes the place of another's
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            draft.replace(path)
    draft.unlink(missing_ok=True)


def sync_file(descriptor: int) -> None:
    """Wait until what was written to an open file is on disk, if the file system can tell. Raises OSError."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on disk.

    Some file systems do not take that of folders; there, names are as safe as they can be.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            sync_file(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS or not path.is_dir():
            raise


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whose bytes follow from the content alone."""
    replace_file(path, json_bytes(content), make_folder=False)


def json_bytes(content: object) -> bytes:
    """Return the bytes that `write_json` writes."""
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"  # `dump` is many times slower
