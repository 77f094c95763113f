"""Slurm's programs: those of the machine or, where it has none, Debian's packages, unpacked in a cache of the user."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.debian_packages import PackagesMissingError, unpacked

_PACKAGES = (
    "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2", "libhwloc15", "liblua5.1-0",
)  # fmt: skip
_ALTERNATIVES = {f"usr/sbin/{name}": f"{name}-wlm" for name in ("slurmctld", "slurmd", "slurmstepd")}


class SlurmMissingError(Exception):
    """A Slurm cannot be started on this machine; the message says what is missing."""


class Programs(NamedTuple):
    """Where Slurm is."""

    root: Path | None
    """Folder of the unpacked packages; None if they are installed."""

    @property
    def library(self) -> Path | None:
        """Folder of the unpacked packages' libraries."""
        return None if self.root is None else next(self.root.glob("usr/lib/*-linux-gnu"))

    def environment(self) -> dict[str, str]:
        """Search paths with which the programs are found and start."""
        path = os.environ["PATH"]
        if self.root is None or self.library is None:
            return {"PATH": f"{path}:/usr/sbin"}
        libraries = [f"{self.library}", f"{self.library}/slurm-wlm", os.environ.get("LD_LIBRARY_PATH")]
        return {
            "PATH": f"{self.root}/usr/bin:{self.root}/usr/sbin:{path}",
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        }


def programs() -> Programs:
    """Find Slurm or fetch it, without a change of the system. Raises SlurmMissingError."""
    search = f"{os.environ['PATH']}:/usr/sbin"
    if all(shutil.which(name, path=search) for name in ("slurmctld", "slurmd", "srun", "munged")):
        return Programs(None)
    try:
        return Programs(unpacked("Slurm", "slurmctld", lambda: _PACKAGES, _ALTERNATIVES))
    except PackagesMissingError as missing:
        raise SlurmMissingError(str(missing)) from missing
