"""One Chromium in each process of pytest that runs tests of this folder, and pages to open in it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import sample
from tests.browser.chromium import chromium
from tests.debian_packages import PackagesMissingError
from tools.report.page import render
from tools.report.payload import Report

OpenFn = Callable[..., Page]
"""Opens a page; see `opened`."""


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


@pytest.fixture
def opened(browser: Browser) -> Iterator[OpenFn]:
    """Open a page at an address: `opened(shown, "puzzle=ID", width=360)`; what it says of errors fails the test.

    No page may ask for anything but its own file and what the file itself holds.
    """
    contexts = []
    wrong: list[str] = []

    def open_page(
        shown: Shown, choices: str = "", *, width: int = 1280, height: int = 900, **settings: Any
    ) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None
        )
        page.on(
            "request", lambda asked: wrong.append(asked.url) if not _is_local(asked.url, shown.path) else None
        )
        page.goto(f"{shown.path.as_uri()}#{choices}")
        page.locator("#notice").wait_for(state="detached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def _is_local(url: str, path: Path) -> bool:
    return url.startswith(("data:", path.as_uri()))
