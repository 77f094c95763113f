"""Bad input: one clear message and exit code 2, for every command of the project."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path

from data_pipeline.base import screen

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_LOST = 69
"""Another process of a training is gone without a word, perhaps with its machine (EX_UNAVAILABLE of sysexits)."""
EXIT_INTERRUPTED = 75
"""Stopped by a signal, and the same command goes on (EX_TEMPFAIL)."""

RESUMES = "run the same command again: it resumes from the latest checkpoint"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is shown as it is, so it names the file, key or task, the value, the reason and the remedy.
    """


class WriteError(InputError):
    """A file cannot be written: there is no room, or no right to."""


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error about a file that is not to be read."""
    return InputError(
        f"{path}: cannot be read ({error.strerror or error}); check the path, its rights and the disk."
    )


def unwritable(path: Path | str, error: OSError, then: str = "run the command again") -> WriteError:
    """Return the error about a file or folder that is not to be written; `then`: what to do after the remedy."""
    remedy = "look at the path and its rights, or choose another place"
    if error.errno in _NO_ROOM:
        remedy = "free some space there, or choose another place"
    elif error.errno == errno.EFBIG:
        remedy = "raise the limit of a file's size (`ulimit -f`)"
    return WriteError(f"{path}: cannot be written ({error.strerror or error}); {remedy}, and {then}.")


def exit_code(command: Callable[[], int]) -> int:
    """Run a command's body; bad input becomes its message on stderr and exit code 2, Ctrl-C exit code 75.

    A disk that is full is no fault of the command either, whichever file it was that did not fit.
    """
    screen.make_reliable()
    try:
        code = command()
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        if error.errno not in (*_NO_ROOM, errno.EFBIG, errno.EROFS):
            raise
        print(f"error: {unwritable(error.filename or 'a file', error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; run the command again", file=sys.stderr)
        return EXIT_INTERRUPTED
