"""Which commit this code is."""

import subprocess
from contextlib import suppress
from pathlib import Path


def git_revision() -> str | None:
    """Return the commit of this code's working tree, with `-dirty` after changes; None outside of git."""
    commands = (
        # Code that lies in somebody else's working tree, installed in an environment there, is not of its commit.
        ["git", "ls-files", "--error-unmatch", Path(__file__).name],
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
    )
    with suppress(OSError, subprocess.SubprocessError):
        cwd, quiet = Path(__file__).parent, subprocess.DEVNULL
        outputs = [
            subprocess.check_output(command, cwd=cwd, stderr=quiet, text=True, timeout=30)
            for command in commands
        ]
        return outputs[-1].strip()
    return None
