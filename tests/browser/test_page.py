"""The page as such: widths, dark mode, paper, hostile names, and eyes that see fewer colours."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import sample
from tests.browser.conftest import OpenFn, Shown, shown

pytestmark = pytest.mark.browser


def overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)`, as WCAG defines it."""
    shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def colours(page: Page, selector: str) -> tuple[str, str]:
    """Return the colour of an element and of the page, both drawn by a canvas: a style may say `light-dark()`."""
    return page.locator(selector).first.evaluate(
        "(e) => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]"
    )


@pytest.mark.parametrize("choices", ["", "puzzle={id}&segment=3", "puzzle={id}&numbers=1"])
@pytest.mark.parametrize("name", ["two", "sudoku"])
def test_a_phone_needs_no_sideways_scrolling(
    opened: OpenFn, reports: dict[str, Shown], name: str, choices: str
) -> None:
    widest = max(reports[name].report.puzzles, key=lambda puzzle: puzzle.width)
    page = opened(
        reports[name], choices.format(id=widest.id), width=360, height=740, has_touch=True, is_mobile=True
    )
    assert overflow(page) <= 0


def test_a_phone_shows_the_numbers_of_the_scores(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"], width=360, height=740)
    for figure in page.locator(".headlines .big").all():
        box = figure.bounding_box()
        assert box is not None
        assert 0 <= box["x"] < box["x"] + box["width"] <= 360
    expect(page.locator(".headlines .run-name:visible")).to_have_text(["Ahrm", "Btrm, wide"])


def test_words_are_explained_by_touch(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"], width=360, height=740, has_touch=True)
    page.get_by_role("button", name="95 % interval").first.tap()
    expect(page.get_by_role("tooltip")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(opened: OpenFn, reports: dict[str, Shown], scheme: str) -> None:
    page = opened(reports["two"], color_scheme=scheme)
    for selector in ("body", ".soft", "#list .status", ".icon.solved", ".icon.unsolved", ".small-button"):
        assert contrast(*colours(page, selector)) >= 4.5, selector


def test_dark_mode_follows_the_system_and_the_toggle(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"], color_scheme="dark")
    assert luminance(colours(page, "body")[1]) < 0.05
    page.locator("#theme").click()
    assert luminance(colours(page, "body")[1]) > 0.9
    page.reload()
    page.locator("#notice").wait_for(state="detached")
    assert luminance(colours(page, "body")[1]) > 0.9


def test_paper_holds_all_listed_puzzles_and_no_controls(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"], "status=close", color_scheme="dark")
    names = page.locator("#list a b").all_text_contents()
    page.emulate_media(media="print")
    expect(page.locator("#printed article h1")).to_have_text(names)
    expect(page.locator("#printed .attempts").first).to_be_visible()
    assert page.locator("button:visible:not(.word, .entry)").count() == 0
    assert page.locator("select:visible, input:visible").count() == 0
    page.emulate_media(media="screen")
    expect(page.locator("#printed article")).to_have_count(0)
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("vision", ["deuteranopia", "achromatopsia"])
def test_statuses_differ_without_colours(opened: OpenFn, reports: dict[str, Shown], vision: str) -> None:
    page = opened(reports["two"], alone=True)
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setEmulatedVisionDeficiency", {"type": vision})
    pictures = {}
    for status in ("solved", "close", "unsolved"):
        badge = page.locator(f"#list .status.{status}").first
        expect(badge).to_have_text(status)
        pictures[status] = badge.locator("svg").screenshot()
    assert len(set(pictures.values())) == 3


def test_a_browser_that_is_too_old_is_told(browser: Browser, reports: dict[str, Shown]) -> None:
    page = browser.new_page()
    page.add_init_script("CSS.supports = () => false")
    page.goto(reports["two"].path.as_uri())
    expect(page.locator("#notice")).to_have_text(re.compile("older than May 2024, please take a newer one"))
    page.close()


def test_hostile_names_stay_text(opened: OpenFn, tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    report = sample.arc_report(3, (hostile, "b"), title=hostile)
    first = report.puzzles[0].model_copy(update={"title": hostile, "split": hostile, "subsets": [hostile]})
    run = report.runs[0].model_copy(
        update={"facts": {hostile: hostile}, "settings": {hostile: hostile}, "warnings": [hostile]}
    )
    tokens = [
        report.tokens[0].model_copy(update={"colour": "url(http://example.invalid/)"}),
        *report.tokens[1:],
    ]
    changed = {"runs": [run, report.runs[1]], "puzzles": [first, *report.puzzles[1:]], "notes": [hostile]}
    hostile_page = shown(report.model_copy(update={**changed, "tokens": tokens}), tmp_path / "hostile.html")
    page = opened(hostile_page, alone=True)
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    assert page.title() == hostile
    expect(page.locator("h1").first).to_have_text(hostile)
    page.locator("#list a").first.click()
    page.keyboard.press("?")
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script").count() == 2
    assert not dialogs


def test_of_four_hundred_tasks_only_those_near_the_screen_are_drawn(opened: OpenFn, tmp_path: Path) -> None:
    page = opened(
        shown(sample.arc_report(400, ("hrm", "trm"), has_trajectories=False), tmp_path / "big.html")
    )
    assert page.locator("#list li").count() == 400
    assert page.locator("#list svg.grid").count() < 100
    page.locator("#list li").last.scroll_into_view_if_needed()
    page.locator("#list li").last.locator("svg.grid").first.wait_for()


@pytest.mark.parametrize("choices", ["", "puzzle={id}"])
def test_the_tab_key_reaches_controls_that_all_have_names(
    opened: OpenFn, reports: dict[str, Shown], choices: str
) -> None:
    page = opened(reports["two"], choices.format(id=reports["two"].report.puzzles[0].id))
    names = []
    for _ in range(45):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "(({ariaLabel, textContent, tagName, parentElement}) => tagName === 'BODY' ? 'body'"
                " : (ariaLabel || textContent || parentElement.textContent).trim())(document.activeElement)"
            )
        )
    assert all(names)
    wanted = (
        ["All puzzles", "Next puzzle (j)", "Play", "Segment"]
        if choices
        else ["Help", "loss: step", "Search by name"]
    )
    assert [name for name in names if name in wanted] == wanted
