"""Slurm's programs: those of the machine or, where it has none, Debian's packages, unpacked in a cache of the user."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

_PACKAGES = (
    "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2", "libhwloc15", "liblua5.1-0",
)  # fmt: skip
_ALTERNATIVES = ("slurmctld", "slurmd", "slurmstepd")  # which installing would link to NAME-wlm
_DOWNLOAD_TIMEOUT_S = 300.0


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
    missing = [name for name in ("apt-get", "apt-cache", "dpkg") if shutil.which(name) is None]
    if missing:
        raise SlurmMissingError(
            f"Slurm is not installed, and cannot be fetched without {', '.join(missing)}."
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hrm-dist"
    unpacked = cache / f"slurm-{_version()}"
    if not unpacked.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _unpack_to(unpacked)
    return Programs(unpacked)


def _version() -> str:
    policy = subprocess.run(["apt-cache", "policy", "slurmctld"], capture_output=True, text=True, check=False)
    for line in policy.stdout.splitlines():
        name, _, version = line.strip().partition(": ")
        if name == "Candidate" and version != "(none)":
            return version.replace(":", "%")
    raise SlurmMissingError("Slurm is not installed, nor known to apt; try `apt-get update`.")


def _unpack_to(unpacked: Path) -> None:
    """Whole or not at all, though others may do the same at the same time."""
    with tempfile.TemporaryDirectory(dir=unpacked.parent, prefix=f"{unpacked.name}.") as scratch:
        download = subprocess.run(
            ["apt-get", "download", *_PACKAGES],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
            check=False,
        )
        if download.returncode:
            raise SlurmMissingError(
                f"Slurm is not installed, and cannot be fetched: {download.stderr.strip()}"
            )
        root = Path(scratch) / "root"
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, root], check=True)
        for name in _ALTERNATIVES:
            (root / "usr/sbin" / name).symlink_to(f"{name}-wlm")
        try:
            root.rename(unpacked)
        except OSError:
            if not unpacked.exists():  # another process was faster
                raise
