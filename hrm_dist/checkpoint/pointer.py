"""`latest` and `best`: names that lead to a checkpoint beside them. Loads no torch.

Each is a symbolic link or, where the file system has none, a file that holds the name: `step_400`. A copy of a run may
have either, depending on what made it, and both are read everywhere.
"""

import os
import re
from pathlib import Path

from data_pipeline.base.files import replace_file, sync

NAMES = ("latest", "best")
STEP_DIR = re.compile(r"step_(\d+)")

_LONGEST = 64


def is_pointer(path: Path) -> bool:
    """Return whether a path is a link, even to something that is gone, or a file that names a checkpoint."""
    return path.is_symlink() or _named(path) is not None


def target(path: Path) -> Path:
    """Return where a path leads, as an absolute one; what is no pointer leads to itself."""
    named = None if path.is_symlink() else _named(path)
    return Path(os.path.realpath(path if named is None else path.with_name(named)))


def point(path: Path, checkpoint: Path) -> None:
    """Let a name lead to a checkpoint beside it, in one atomic step. Raises OSError or WriteError."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(checkpoint.name)
    except (
        OSError
    ):  # the ways to say that there are no links are many; where it is the disk, a file fails too
        replace_file(temporary, f"{checkpoint.name}\n".encode(), make_folder=False)
    temporary.replace(path)
    sync(path.parent)


def _named(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode(errors="replace").strip()
    except OSError:  # a folder, or nothing
        return None
    return text if STEP_DIR.fullmatch(text) else None
