"""The list of puzzles: filters, search, order, addresses and the keyboard, in a real browser."""

from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Page, expect

from tests.browser import sample
from tests.browser.conftest import OpenFn, Shown, shown

pytestmark = pytest.mark.browser


def listed(page: Page) -> list[str]:
    return page.locator("#list a b").all_text_contents()


def address(page: Page) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlparse(page.url).fragment).items()}


def status_of(shown: Shown, name: str, run: int = 0) -> str:
    result = next(puzzle.results[run] for puzzle in shown.report.puzzles if puzzle.title == name)
    assert result is not None
    return result.status


def test_scores_stand_first_with_interval_and_count(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    expect(page.locator(".headlines .big")).to_have_text(["11.6 %", "20.3 %"])
    expect(page.locator(".headlines td").first).to_contain_text("8 of 69 test inputs")
    expect(page.locator(".headlines td").first).to_contain_text("6.6 to 17.6 %")


def test_a_status_filters_the_list_and_stands_in_the_address(
    opened: OpenFn, reports: dict[str, Shown]
) -> None:
    page = opened(reports["two"])
    assert len(listed(page)) == 24
    page.get_by_role("group", name="Status").get_by_role("button", name="close").click()
    names = listed(page)
    assert 0 < len(names) < 24
    assert {status_of(reports["two"], name) for name in names} == {"close"}
    expect(page.locator("#count")).to_contain_text(f"{len(names)} of 24 puzzles")
    assert address(page) == {"status": "close"}


def test_hidden_truth_is_a_status_of_its_own(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["one"], "status=unknown")
    assert len(listed(page)) == 3
    expect(page.locator("#list .status").first).to_have_text("unknown")


def test_a_search_keeps_what_is_typed_and_finds_by_name(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    name = reports["two"].report.puzzles[5].title
    page.keyboard.press("/")
    page.keyboard.type(name[:5])
    expect(page.locator("#search")).to_be_focused()
    assert listed(page) == [name]
    assert address(page) == {"search": name[:5]}


def test_what_is_typed_goes_when_the_address_changes(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    page.keyboard.press("/")
    page.keyboard.type("00")
    assert len(listed(page)) < 24
    page.evaluate("location.hash = 'status=solved'")
    expect(page.locator("#search")).to_have_value("")
    assert {status_of(reports["two"], name) for name in listed(page)} == {"solved"}


def test_split_subset_size_and_agreement_narrow_the_list(opened: OpenFn, reports: dict[str, Shown]) -> None:
    shown = reports["two"]
    page = opened(shown)
    page.get_by_label("split", exact=True).select_option("training")
    page.get_by_label("size, most").press_sequentially("20")
    page.get_by_label("agreement, least").fill("30")
    expected = [
        puzzle.title
        for puzzle in shown.report.puzzles
        if puzzle.split == "training" and max(puzzle.height, puzzle.width) <= 20
        and puzzle.results[0] is not None and (puzzle.results[0].agreement or 0) >= 0.3
    ]  # fmt: skip
    assert 0 < len(expected) < 6
    assert sorted(listed(page)) == sorted(expected)
    page.get_by_role("button", name="show all").click()
    assert len(listed(page)) == 24


def test_the_order_follows_what_is_chosen_and_reverses(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    page.get_by_label("order by").select_option("size")
    sides = {puzzle.title: max(puzzle.height, puzzle.width) for puzzle in reports["two"].report.puzzles}
    found = [sides[name] for name in listed(page)]
    assert found == sorted(sides.values())
    page.get_by_role("button", name="reversed").click()
    assert [sides[name] for name in listed(page)] == found[::-1]


def test_an_address_opens_its_puzzle_and_back_returns_to_the_list(
    opened: OpenFn, reports: dict[str, Shown]
) -> None:
    page = opened(reports["two"], "status=unsolved")
    name = listed(page)[1]
    page.locator("#list a").nth(1).click()
    expect(page.locator("#puzzle h1")).to_have_text(name)
    again = opened(reports["two"], urlparse(page.url).fragment)
    expect(again.locator("#puzzle h1")).to_have_text(name)
    page.go_back()
    expect(page.locator("#puzzle")).to_be_hidden()
    assert address(page) == {"status": "unsolved"}
    page.go_forward()
    expect(page.locator("#puzzle h1")).to_have_text(name)


def test_an_unknown_puzzle_is_said_to_be_missing(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"], "puzzle=nowhere")
    expect(page.locator("#puzzle")).to_contain_text("This page has no puzzle nowhere.")


def test_keys_walk_through_the_list_and_back(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    names = listed(page)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#puzzle h1")).to_have_text(names[1])
    page.keyboard.press("j")
    expect(page.locator("#puzzle h1")).to_have_text(names[2])
    page.keyboard.press("Escape")
    expect(page.locator("#puzzle")).to_be_hidden()
    expect(page.locator("#list a").nth(2)).to_be_focused()


def test_help_lists_keys_and_words(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("play or pause")
    expect(page.get_by_role("dialog")).to_contain_text(reports["two"].report.words["close"])
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_a_word_is_explained_where_it_stands(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    page.get_by_role("button", name="95 % interval").first.focus()
    expect(page.get_by_role("tooltip")).to_have_text(reports["two"].report.words["interval"])


def test_a_cursor_reads_curves_by_key(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    panel = page.get_by_role("slider", name="loss: step")
    panel.focus()
    page.keyboard.press("Home")
    expect(panel).to_have_attribute("aria-valuenow", "10")
    first = reports["two"].report.runs[0].curves[0].values[0]
    assert first is not None
    expect(page.locator("figure.curves").first.locator(".legend b").first).to_have_text(f"{first:.3g}")


def test_the_legend_hides_a_curve(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    panel = page.locator("figure.curves").first
    assert panel.locator(".panel .curve").count() == 4
    panel.locator(".entry").first.click()
    assert panel.locator(".panel .curve").count() == 3
    expect(panel.locator(".entry").first).to_have_attribute("aria-pressed", "false")


def test_settings_that_differ_stand_first(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    names = page.locator("#settings details").first.locator("tbody th")
    expect(names).to_have_text(["arch.name", "lr", "seed"])
    expect(names.first).to_be_visible()
    expect(page.locator("#settings summary").last).to_have_text("30 settings in common")


def test_a_picture_of_the_analysis_stands_with_its_caption(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    figure = reports["two"].report.runs[0].figures[0]
    expect(page.get_by_role("img", name=figure.title)).to_be_visible()
    expect(page.locator("#figures figcaption")).to_contain_text(figure.caption)


@pytest.mark.parametrize(
    ("compare", "wanted"),
    [("0>1", (True, False)), ("1>0", (False, True)), ("all", (True, True)), ("none", (False, False))],
)
def test_runs_are_compared_by_what_they_solve(
    opened: OpenFn, reports: dict[str, Shown], compare: str, wanted: tuple[bool, bool]
) -> None:
    page = opened(reports["two"])
    page.get_by_label("compare").select_option(compare)
    names = listed(page)
    solved = {
        name: tuple(status_of(reports["two"], name, run) == "solved" for run in (0, 1))
        for name in sorted(puzzle.title for puzzle in reports["two"].report.puzzles)
    }
    assert sorted(names) == [name for name, both in solved.items() if both == wanted]


def test_a_cell_of_the_matrix_lists_what_it_counts(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    cell = page.get_by_role("button", name="A solved, B unsolved")
    number = int(cell.inner_text())
    cell.click()
    assert len(listed(page)) == number
    assert {(status_of(reports["two"], n, 0), status_of(reports["two"], n, 1)) for n in listed(page)} == {
        ("solved", "unsolved")
    }


@pytest.mark.parametrize(("names", "whose"), [(("trm",), "the run has"), (("hrm", "trm"), "the runs have")])
def test_counts_of_some_puzzles_alone_say_so(
    opened: OpenFn, tmp_path: Path, names: tuple[str, ...], whose: str
) -> None:
    report = sample.maze_report(6, names=names).model_copy(update={"num_puzzles": 20})
    page = opened(shown(report, tmp_path / "some.html"))
    expect(page.get_by_text(f"6 puzzles; {whose} 14 more")).to_be_visible()
    if len(names) == 2:
        expect(page.locator("#matrix summary")).to_contain_text("of the puzzles on this page")


def test_of_three_runs_the_matrix_says_what_one_solves_and_another_does_not(
    opened: OpenFn, tmp_path: Path
) -> None:
    three = shown(sample.arc_report(12, ("hrm", "trm", "urm")), tmp_path / "three.html")
    page = opened(three)
    cell = page.get_by_role("button", name="solved by C, not by A")
    number = int(cell.inner_text())
    cell.click()
    names = listed(page)
    assert len(names) == number
    assert all(status_of(three, name, 2) == "solved" != status_of(three, name, 0) for name in names)


def test_a_run_can_be_left_out(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["two"])
    page.get_by_role("group", name="Runs").get_by_role("button", name="hrm").click()
    expect(page.locator(".headlines .big")).to_have_text(["20.3 %"])
    assert address(page) == {"runs": "1"}
