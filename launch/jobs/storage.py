"""Whether other machines can see a folder: not if it is in memory or in a place for temporary files."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.base.errors import InputError

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")


def check_shared(folders: Sequence[Path]) -> None:
    """Raise InputError for folders that only this machine sees, as far as that can be told from here."""
    for folder in folders:
        reason = why_private(folder.resolve(), Path("/proc/self/mounts").read_text(encoding="utf-8"))
        if reason:
            raise InputError(
                f"{folder}: {reason}, so the nodes would not see it; use a folder on storage that all nodes share "
                "(`df -T` calls it nfs, lustre, beegfs, gpfs and the like)."
            )


def why_private(folder: Path, mounts: str) -> str | None:
    """Why only this machine sees a folder, by its table of mounts; None if nothing says so."""
    kinds = {line.split()[1].replace("\\040", " "): line.split()[2] for line in mounts.splitlines()}
    mount = next(
        str(place) for place in (folder, *folder.parents) if str(place) in kinds or place == Path("/")
    )
    kind = kinds.get(mount, "")
    if kind in _IN_MEMORY:
        return f"is in this machine's memory ({kind})"
    for temporary in _TEMPORARY:
        if folder.is_relative_to(temporary) and not Path(mount).is_relative_to(temporary):
            return f"is below {temporary}, which each machine has for itself"
    return None
