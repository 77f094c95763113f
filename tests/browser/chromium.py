"""Chromium: the system's or, where there is none, Debian's, unpacked in a cache of the user."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Error, sync_playwright

from tests.debian_packages import PackagesMissingError, unpacked, with_dependencies

_INSTALLED = ("chromium", "google-chrome-stable", "google-chrome")
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_START_TIMEOUT_MS = 60_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium without a window. Raise PackagesMissingError where it cannot be had."""
    program, environment = _program()
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=program, args=list(_FLAGS), env={**os.environ, **environment}, timeout=_START_TIMEOUT_MS
            )  # fmt: skip
        except Error as error:
            raise PackagesMissingError(f"{program} does not start: {error.message}") from error
        try:
            yield browser
        finally:
            browser.close()


def _program() -> tuple[str, dict[str, str]]:
    """Return the program and what it needs in its environment."""
    for name in _INSTALLED:
        if found := shutil.which(name):
            return found, {}
    root = unpacked("Chromium", "chromium", lambda: with_dependencies("Chromium", "chromium"))
    program = root / "usr/lib/chromium/chromium"
    if not program.exists():
        raise PackagesMissingError(
            "Chromium is not installed, and apt's package `chromium` does not hold it."
        )
    folders = [
        *root.glob("usr/lib/*-linux-gnu"),
        *root.glob("usr/lib/*-linux-gnu/pulseaudio"),
        *root.glob("lib/*-linux-gnu"),
    ]
    libraries = ":".join(filter(None, [*map(str, folders), os.environ.get("LD_LIBRARY_PATH")]))
    return str(program), {"LD_LIBRARY_PATH": libraries} | _fonts(root)


def _fonts(root: Path) -> dict[str, str]:
    """Return where the unpacked fonts are, for a system that has none."""
    if Path("/etc/fonts/fonts.conf").exists():
        return {}
    return {"FONTCONFIG_PATH": f"{root}/etc/fonts", "XDG_DATA_HOME": f"{root}/usr/share"}
