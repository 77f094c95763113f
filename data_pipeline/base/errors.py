"""Bad input: one clear message and exit code 2, for every command of the project."""

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from data_pipeline.base import screen

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_LOST = 69
"""Another process of a training is gone without a word, perhaps with its machine (EX_UNAVAILABLE of sysexits)."""
EXIT_INTERRUPTED = 75
"""Stopped by a signal, and the same command goes on (EX_TEMPFAIL)."""

RESUMES = "and run the same command again: it resumes from the latest checkpoint, if there is one"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is shown as it is, so it names the file, key or task, the value, the reason and the remedy.
    """


class WriteError(InputError):
    """A file cannot be written: there is no room, or no right to."""


def unreadable(path: Path | str, error: OSError) -> InputError:
    """Return the error about a file that is not to be read."""
    return InputError(
        f"{path}: cannot be read ({error.strerror or error}); check the path, its rights and the disk."
    )


def unwritable(
    path: Path | str, error: OSError, then: str = "or choose another place, and run the command again"
) -> WriteError:
    """Return the error about a file or folder that is not to be written; `then`: what to do after the remedy."""
    remedy = "look at the path and its rights"
    if error.errno in _NO_ROOM:
        remedy = "free some space there"
    elif error.errno == errno.EFBIG:
        remedy = "raise the limit of a file's size (`ulimit -f`)"
    return WriteError(f"{path}: cannot be written ({error.strerror or error}); {remedy}, {then}.")


def exit_code(command: Callable[[], int]) -> int:
    """Run a command's body; bad input becomes its message on stderr and exit code 2, Ctrl-C exit code 75.

    A full disk, or a file that the system refuses to open, is no fault of the command either, whichever file it was.
    """
    screen.make_reliable()
    try:
        code = command()
        sys.stdout.flush()
        return code
    except InputError as error:
        if sys.getfilesystemencoding() == "ascii" and not all(map(str.isascii, sys.argv)):
            print("note: names are read as ASCII in this environment; set PYTHONUTF8=1", file=sys.stderr)
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":
            # Rank 0 mostly has the same error. torchrun ends the others as soon as it has left, so it is said once.
            time.sleep(1.0)
        last_words(f"error: {error}")
        return EXIT_BAD_INPUT
    except OSError as error:
        if error.errno in (*_NO_ROOM, errno.EFBIG, errno.EROFS):
            last_words(f"error: {unwritable(error.filename or 'a file', error)}")
        elif error.filename is not None and error.errno != errno.ENOENT:
            last_words(f"error: {unreadable(error.filename, error)}")
        else:
            last_words(f"{type(error).__name__}: {error}", shown=False)
            raise
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; run the command again", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as end:
        if isinstance(end.code, str):
            last_words(end.code, shown=False)  # Python shows it
        raise
    except Exception as error:
        last_words(
            f"{type(error).__name__}: {error}", shown=False
        )  # Python shows it, below where it was raised
        raise


def last_words(text: str, *, shown: bool = True) -> None:
    """Say on stderr, if `shown`, why this process ends early; torchrun says it again at the end of its own report."""
    with suppress(OSError, ValueError):  # where nobody reads it
        if shown:
            print(text, file=sys.stderr, flush=True)
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        # As torch.distributed.elastic writes it, which shows the traceback where it has one, and the earliest last.
        more = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            part = Path(f"{path}.part")
            part.write_text(json.dumps({"message": {"message": text, "extraInfo": more}}), encoding="utf-8")
            part.replace(path)
