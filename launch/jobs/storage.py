"""Whether other machines can see a folder: not if it is in memory or below a folder for temporary files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.base.errors import InputError


class Mount(NamedTuple):
    """A line of a table of mounts."""

    source: str
    path: str
    kind: str


def mount_of(folder: Path, table: Path = Path("/proc/self/mounts")) -> Mount:
    """Return what is mounted where an absolute folder is: the innermost, and of several there the last."""
    try:
        lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not on Linux
        lines = []
    mounts = [Mount(*(field.replace("\\040", " ") for field in line.split(" ")[:3])) for line in lines]
    around = [mount for mount in reversed(mounts) if folder.is_relative_to(mount.path)]
    return max(around, key=lambda mount: len(mount.path), default=Mount("", "/", "unknown"))


def why_private(folder: Path, mount: Mount) -> str | None:
    """Return why only this machine sees a folder; None if nothing says so."""
    if mount.kind in ("tmpfs", "ramfs", "devtmpfs"):
        return f"is in this machine's memory ({mount.kind})"
    for temporary in ("/tmp", "/var/tmp", "/dev/shm"):
        if folder.is_relative_to(temporary) and not Path(mount.path).is_relative_to(temporary):
            return f"is below {temporary}, which each machine has for itself"
    return None


def check_shared(folders: Sequence[Path]) -> None:
    """Raise InputError for folders that only this machine sees, as far as that can be told from here."""
    for folder in folders:
        real = Path(os.path.realpath(folder))
        if reason := why_private(real, mount_of(real)):
            remedy = "use a folder on storage that all nodes share (`df -T`: nfs, lustre, beegfs, gpfs and the like)"
            raise InputError(f"{folder}: {reason}, so the nodes would not see it; {remedy}.")
