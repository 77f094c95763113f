"""One Chromium in each process of pytest that runs tests of this folder, and pages to open in it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request

from tests.browser import sample
from tests.browser.chromium import chromium
from tests.debian_packages import PackagesMissingError
from tools.report.page import render
from tools.report.payload import Report

OpenFn = Callable[..., Page]
"""Opens a page; see `opened`."""
_VIEWPORT = {"width": 1280, "height": 900}


class Shown(NamedTuple):
    """A report and its page."""

    report: Report
    path: Path


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A running Chromium."""
    try:
        with chromium() as running:
            yield running
    except PackagesMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="package")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """Pages of two runs on ARC tasks, of one run whose truth is hidden in part, of Sudokus and of mazes."""
    folder = tmp_path_factory.mktemp("reports")
    made = {
        "two": sample.arc_report(24, ("hrm", "trm, wide")),
        "one": sample.arc_report(12, num_hidden=3, has_trajectories=False),
        "sudoku": sample.sudoku_report(8),
        "maze": sample.maze_report(6),
    }
    return {name: shown(report, folder / f"{name}.html") for name, report in made.items()}


def shown(report: Report, path: Path) -> Shown:
    """Write the page of a report."""
    path.write_text(render(report), encoding="utf-8")
    return Shown(report, path)


class Tab:
    """A page of its own context, and what it has said of errors, or asked for that is not of the report in it."""

    def __init__(self, browser: Browser, **settings: Any) -> None:
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.wrong: list[str] = []
        self._path: Path | None = None
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("request", self._look)

    def show(self, path: Path, choices: str) -> Page:
        """Load a report anew, at an address."""
        self._path = path
        self.page.goto(f"{path.as_uri()}#{choices}")
        self.page.locator("#notice").wait_for(state="detached")
        return self.page

    def leave(self) -> None:
        """End the report."""
        self.page.goto("about:blank")

    def _hear(self, line: ConsoleMessage) -> None:
        if line.type in ("error", "warning"):
            self.wrong.append(line.text)

    def _look(self, asked: Request) -> None:
        if self._path is not None and not _is_local(asked.url, self._path):
            self.wrong.append(asked.url)


@pytest.fixture(scope="package")
def shared(browser: Browser) -> Tab:
    """The page of all tests that change nothing of a browser, as a page takes longer to make than to load."""
    return Tab(browser, viewport=_VIEWPORT)


@pytest.fixture
def opened(browser: Browser, shared: Tab) -> Iterator[OpenFn]:
    """Open a page at an address: `opened(shown, "puzzle=ID", width=360)`; what it says of errors fails the test.

    alone: in a context of its own, as with settings, and as the second page of a test has it. No page may ask for
    anything but its own file and what the file itself holds.
    """
    tabs: list[Tab] = []

    def open_page(
        shown: Shown,
        choices: str = "",
        *,
        width: int = 1280,
        height: int = 900,
        alone: bool = False,
        **settings: Any,
    ) -> Page:
        settings |= {"viewport": {"width": width, "height": height}}
        is_plain = settings == {"viewport": _VIEWPORT} and not alone and not tabs
        tabs.append(shared if is_plain else Tab(browser, **settings))
        return tabs[-1].show(shown.path, choices)

    yield open_page
    wrong: list[str] = []
    for tab in tabs:
        if tab is shared:
            tab.leave()
        else:
            tab.context.close()
        wrong += tab.wrong
        tab.wrong.clear()
    assert not wrong


def _is_local(url: str, path: Path) -> bool:
    return url.startswith(("data:", "about:", path.as_uri()))
