"""The page of a report as a file; tests/browser opens it."""

import base64
import gzip
import re

import pytest

from data_pipeline.kinds import kind_named
from tests.browser.sample import maze_report
from tools.report.page import PAGE, SCRIPTS, render
from tools.report.payload import Report
from tools.report.words import words


def test_the_page_holds_the_whole_report() -> None:
    report = maze_report(2)
    packed = re.search(r'id="payload">([A-Za-z0-9+/=]+)</script>', render(report))
    assert packed is not None
    assert Report.model_validate_json(gzip.decompress(base64.b64decode(packed[1]))) == report


def test_the_same_report_gives_the_same_page() -> None:
    assert render(maze_report(2)) == render(maze_report(2))


def test_a_title_stays_text() -> None:
    page = render(maze_report(1).model_copy(update={"title": "</title><script>alert(1)</script>"}))
    assert "<title>&lt;/title&gt;&lt;script&gt;" in page
    assert page.count("</script>") == 2


def test_the_page_names_no_address_but_that_of_svg() -> None:
    assert set(re.findall(r"https?://[^\"' ]*", render(maze_report(1)))) == {"http://www.w3.org/2000/svg"}


def test_the_page_may_ask_for_nothing_but_pictures_that_it_holds() -> None:
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in render(maze_report(1))


def test_every_script_is_part_of_the_page() -> None:
    assert {path.stem for path in PAGE.glob("*.js")} == set(SCRIPTS)


def test_no_script_makes_markup_of_text() -> None:
    scripts = "\n".join(path.read_text() for path in PAGE.glob("*.js"))
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", scripts)


@pytest.mark.parametrize("kind", ["arc", "sudoku"])
def test_every_term_that_the_scripts_explain_has_a_meaning(kind: str) -> None:
    scripts = "\n".join(path.read_text() for path in PAGE.glob("*.js"))
    terms = {term for term in re.findall(r'\b(?:word\(|term: |rangeFields\()"([^"]+)"', scripts)}
    assert terms >= {"q", "residual", "vote", "agreement"}
    assert terms <= words(kind_named(kind), "count").keys()
