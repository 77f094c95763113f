"""Programs of Debian's packages, unpacked in a cache of the user where the system lacks them; nothing is installed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

_DOWNLOAD_TIMEOUT_S = 300.0


class PackagesMissingError(Exception):
    """A program is neither installed nor can be fetched; the message says what is missing."""


def unpacked(
    name: str, main: str, choose: Callable[[], Sequence[str]], links: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Return the folder of the packages that `choose` lists, fetched unless they are there.

    Messages speak of `name`. The folder bears the version of the package `main`. In it, each of `links` leads to what
    it is given for, as installing would see to.
    """
    missing = [tool for tool in ("apt-get", "apt-cache", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise PackagesMissingError(
            f"{name} is not installed, and cannot be fetched without {', '.join(missing)}."
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hrm-dist"
    folder = cache / f"{name.lower()}-{_version(name, main)}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _unpack_to(folder, name, choose(), links)
    return folder


def with_dependencies(name: str, package: str) -> list[str]:
    """Return the package and what of its dependencies is not installed."""
    simulated = subprocess.run(
        ["apt-get", "install", "--simulate", "--no-install-recommends", package],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if simulated.returncode:
        raise PackagesMissingError(
            f"{name} is not installed, and cannot be fetched: {simulated.stderr.strip()}"
        )
    lines = (line.split() for line in simulated.stdout.splitlines())
    return [words[1] for words in lines if words[:1] == ["Inst"]]


def _version(name: str, package: str) -> str:
    policy = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True, check=False)
    for line in policy.stdout.splitlines():
        key, _, version = line.strip().partition(": ")
        if key == "Candidate" and version != "(none)":
            return version.replace(":", "%")
    raise PackagesMissingError(f"{name} is not installed, nor known to apt; try `apt-get update`.")


def _unpack_to(folder: Path, name: str, packages: Sequence[str], links: Mapping[str, str]) -> None:
    """Whole or not at all, though others may do the same at the same time."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
        try:
            download = subprocess.run(
                ["apt-get", "download", *packages],
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_DOWNLOAD_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PackagesMissingError(
                f"{name} is not installed, and {_DOWNLOAD_TIMEOUT_S:.0f} s do not fetch it."
            ) from None
        if download.returncode:
            raise PackagesMissingError(
                f"{name} is not installed, and cannot be fetched: {download.stderr.strip()}"
            )
        root = Path(scratch) / "root"
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, root], check=True)
        for link, target in links.items():
            (root / link).symlink_to(target)
        try:
            root.rename(folder)
        except OSError:
            if not folder.exists():  # another process was faster
                raise
