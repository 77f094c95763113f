"""Bad input: one clear message and exit code 2, for every command of the project."""

import sys
from collections.abc import Callable
from pathlib import Path

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_LOST = 69
"""Another process of a training is gone without a word, perhaps with its machine (EX_UNAVAILABLE of sysexits)."""
EXIT_INTERRUPTED = 75
"""Stopped by a signal, and the same command goes on (EX_TEMPFAIL)."""


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


def exit_code(command: Callable[[], int]) -> int:
    """Run a command's body; bad input becomes its message on stderr and exit code 2, Ctrl-C exit code 75."""
    try:
        return command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; run the command again", file=sys.stderr)
        return EXIT_INTERRUPTED
