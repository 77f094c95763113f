"""A puzzle and its player, in a real browser."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenFn, Shown
from tools.report.payload import Puzzle, Trajectory

pytestmark = pytest.mark.browser


def first_of(shown: Shown, status: str, run: int = 0) -> Puzzle:
    return next(p for p in shown.report.puzzles if (r := p.results[run]) is not None and r.status == status)


def trajectory_of(puzzle: Puzzle, run: int = 0) -> Trajectory:
    result = puzzle.results[run]
    assert result is not None
    return result.answers[0].trajectories[0]


def num_marks(page: Page, within: str, kind: str) -> int:
    """Count marked cells by their outlines: squares of wrong ones, triangles of changed ones."""
    drawn = page.locator(f"{within} .mark.{kind}:not(.halo)")
    return sum((mark.get_attribute("d") or "").count("z") for mark in drawn.all())


def differing(one: str | None, other: str | None) -> int:
    return sum(a != b for a, b in zip(one or "", other or "", strict=True))


def test_wrong_cells_of_an_attempt_are_outlined(opened: OpenFn, reports: dict[str, Shown]) -> None:
    puzzle = first_of(reports["two"], "close")
    page = opened(reports["two"], f"runs=0&puzzle={puzzle.id}")
    result = puzzle.results[0]
    assert result is not None
    assert (
        num_marks(page, ".attempts figure:first-child", "wrong")
        == result.answers[0].attempts[0].num_wrong
        == 1
    )
    expect(page.locator(".attempts figcaption").first).to_contain_text("1 of")


def test_a_puzzle_shows_all_its_parts(opened: OpenFn, reports: dict[str, Shown]) -> None:
    puzzle = first_of(reports["two"], "solved")
    page = opened(reports["two"], f"runs=0&puzzle={puzzle.id}")
    assert page.locator(".pair svg.grid").count() == 2 * len(puzzle.demonstrations)
    assert page.locator(".asked").count() == len(puzzle.inputs)
    result = puzzle.results[0]
    assert result is not None
    assert page.locator(".votes li").count() == sum(len(answer.candidates) for answer in result.answers)
    expect(page.locator(".votes").first).to_contain_text(f"{result.answers[0].num_votes} votes for")


def test_the_player_marks_what_changed_and_what_is_wrong(opened: OpenFn, reports: dict[str, Shown]) -> None:
    puzzle = first_of(reports["sudoku"], "solved")
    trajectory = trajectory_of(puzzle)
    page = opened(reports["sudoku"], f"puzzle={puzzle.id}&segment=1")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".place")).to_have_text("segment 2 of 8")
    first, second = trajectory.frames[:2]
    assert num_marks(page, ".player .hold", "changed") == differing(first, second)
    assert num_marks(page, ".player .hold", "wrong") == differing(second, puzzle.inputs[0].truth)
    assert num_marks(page, ".player .hold", "wrong") > 0
    expect(page.locator(".charts b")).to_have_text(["0.08", "0.9"])
    expect(page.locator(".charts")).to_contain_text("Solved from segment 6 on.")
    assert "segment=2" in page.url


def paused(page: Page) -> Page:
    """Let the page's time pass only when a test says so."""
    page.clock.install(time=0)
    page.clock.pause_at(1000)
    return page


def test_playing_runs_to_the_last_segment_and_stops(opened: OpenFn, reports: dict[str, Shown]) -> None:
    puzzle = first_of(reports["sudoku"], "solved")
    page = paused(opened(reports["sudoku"], f"puzzle={puzzle.id}", alone=True))
    page.keyboard.press("Space")
    expect(page.locator(".play")).to_have_text("Pause")
    expect(page.locator(".place")).to_have_text("segment 1 of 8")
    page.clock.run_for(500)
    expect(page.locator(".place")).to_have_text("segment 2 of 8")
    page.clock.run_for(3500)
    expect(page.locator(".place")).to_have_text("segment 8 of 8")
    expect(page.locator(".play")).to_have_text("Play")
    assert num_marks(page, ".player .hold", "wrong") == 0


def test_space_pauses_where_it_is(opened: OpenFn, reports: dict[str, Shown]) -> None:
    puzzle = first_of(reports["sudoku"], "solved")
    page = paused(opened(reports["sudoku"], f"puzzle={puzzle.id}&segment=1", alone=True))
    page.get_by_label("Speed").select_option("10")
    page.locator("#puzzle h1").click()
    page.keyboard.press("Space")
    page.clock.run_for(200)
    page.keyboard.press("Space")
    page.clock.run_for(5000)
    expect(page.locator(".place")).to_have_text("segment 3 of 8")


@pytest.mark.parametrize("name", ["Play", "Segment before (←)"])
def test_what_plays_comes_into_sight_on_a_phone(opened: OpenFn, reports: dict[str, Shown], name: str) -> None:
    puzzle = first_of(reports["two"], "solved")
    page = opened(reports["two"], f"puzzle={puzzle.id}", width=360, height=640)
    end = page.locator(".player-bar").bounding_box()
    before = page.locator(".player .hold").first.bounding_box()
    assert end is not None
    assert before is not None
    assert before["y"] > end["y"]
    page.get_by_role("button", name=name, exact=True).click()
    after = page.locator(".player .hold").first.bounding_box()
    assert after is not None
    assert 0 < after["y"] < end["y"]


def test_players_of_two_runs_stay_in_step(opened: OpenFn, reports: dict[str, Shown]) -> None:
    puzzle = first_of(reports["two"], "unsolved")
    page = opened(reports["two"], f"puzzle={puzzle.id}&segment=1")
    page.get_by_role("button", name="Next segment").click()
    said = page.locator(".said").all_inner_texts()
    assert len(said) == 2 * len(puzzle.inputs)
    for run in (0, 1):
        first, second = trajectory_of(puzzle, run).frames[:2]
        assert said[run].startswith(f"{differing(first, second)} changed")
    boxes = [box for player in page.locator(".player").all() if (box := player.bounding_box())]
    assert boxes[0]["y"] == pytest.approx(boxes[1]["y"], abs=2)
    assert boxes[0]["x"] < boxes[1]["x"]


def test_it_steps_on_where_the_browser_takes_no_more_addresses(
    opened: OpenFn, reports: dict[str, Shown]
) -> None:
    puzzle = first_of(reports["sudoku"], "solved")
    page = opened(reports["sudoku"], f"puzzle={puzzle.id}&segment=1")
    refuse = "() => { throw new DOMException('too many', 'SecurityError'); }"
    page.evaluate(f"() => {{ history.replaceState = {refuse}; }}")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".place")).to_have_text("segment 3 of 8")


def test_without_trajectories_it_says_how_to_get_them(opened: OpenFn, reports: dict[str, Shown]) -> None:
    page = opened(reports["one"], f"puzzle={reports['one'].report.puzzles[0].id}")
    expect(page.locator(".no-player")).to_contain_text("--every-segment")


def test_a_hidden_truth_is_not_drawn_or_judged(opened: OpenFn, reports: dict[str, Shown]) -> None:
    puzzle = first_of(reports["one"], "unknown")
    page = opened(reports["one"], f"puzzle={puzzle.id}")
    expect(page.locator(".question").first).to_contain_text("not known")
    assert num_marks(page, ".attempts", "wrong") == 0
    assert page.locator(".attempts .icon").count() == 0


def test_numbers_stand_in_cells_on_demand(opened: OpenFn, reports: dict[str, Shown]) -> None:
    puzzle = reports["two"].report.puzzles[0]
    page = opened(reports["two"], f"puzzle={puzzle.id}")
    assert page.locator(".pair text").count() == 0
    page.keyboard.press("n")
    drawn = page.locator(".pair svg.grid").first.locator("text").all_text_contents()
    assert sorted("".join(drawn)) == sorted(puzzle.demonstrations[0][0].replace("/", ""))
    assert "numbers=1" in page.url
    page.go_back()
    assert page.locator(".pair text").count() == 0


def test_given_digits_of_a_sudoku_look_unlike_filled_ones(opened: OpenFn, reports: dict[str, Shown]) -> None:
    puzzle = reports["sudoku"].report.puzzles[0]
    page = opened(reports["sudoku"], f"puzzle={puzzle.id}")
    answer = page.locator(".attempts svg.grid").first
    num_blank = puzzle.inputs[0].grid.count("1")
    assert len(answer.locator("text.filled").text_content() or "") == num_blank
    assert len(answer.locator("text:not(.filled)").text_content() or "") == 81 - num_blank
    assert answer.locator(".heavy").count() == 1


def test_ends_and_path_of_a_maze_are_letters(opened: OpenFn, reports: dict[str, Shown]) -> None:
    puzzle = reports["maze"].report.puzzles[0]
    page = opened(reports["maze"], f"puzzle={puzzle.id}")
    drawn = "".join(page.locator(".question svg.grid").nth(1).locator("text").all_text_contents())
    truth = puzzle.inputs[0].truth or ""
    assert sorted(drawn) == sorted("SG" + "o" * truth.count("5"))
