"""Take the pictures of docs/images/report from pages that tools.report made of real runs.

examples (docs/gallery.md has how the predictions are made):
  python -m tools.report runs/demo --subsets configs/demo_subsets.json --title "Small ARC tasks" --out demo.html
  python -m tools.report runs/sudoku_6x6 --title "TRM on 6 x 6 Sudokus" --out sudoku.html
  python -m tools.report runs/sudoku_6x6 runs/sudoku_6x6/eight_starts --out compared.html
  python -m tests.browser.screenshots demo.html sudoku.html compared.html
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, Page

from tests.browser.chromium import chromium

_COLOURS = 255
"""Of a picture: what is drawn has few, and so a picture takes a third."""


class Picture(NamedTuple):
    """What one picture shows."""

    name: str
    page: Path
    choices: str
    """As the page's address has them."""
    height: int
    prepare: Callable[[Page], Any] = lambda page: None
    width: int = 1200
    is_dark: bool = False


def pictures(arc: Path, sudoku: Path, compared: Path) -> list[Picture]:
    """Return what docs/images/report holds."""
    return [
        Picture("overview", arc, "", 900),
        Picture("task", arc, "status=solved", 900, open_first),
        Picture("player", sudoku, "status=solved&segment=2", 620, open_first_that_takes_time, is_dark=True),
        Picture("compared", compared, "compare=1>0", 900, show_list),
        Picture("phone", arc, "status=solved", 740, open_first, width=360),
    ]


def open_first(page: Page) -> None:
    page.locator("#list a").first.click()


def open_first_that_takes_time(page: Page) -> None:
    """Open a puzzle that the second segment does not solve yet, at its second segment."""
    for number in range(page.locator("#list a").count()):
        page.locator("#list a").nth(number).click()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        if "wrong" in page.locator(".said").first.inner_text():
            return
        page.keyboard.press("Escape")


def show_list(page: Page) -> None:
    page.locator(".list-head").evaluate("(head) => head.scrollIntoView()")


def take(browser: Browser, picture: Picture) -> bytes:
    """Return the picture as a PNG."""
    context = browser.new_context(
        viewport={"width": picture.width, "height": picture.height},
        color_scheme="dark" if picture.is_dark else "light",
    )
    page = context.new_page()
    page.goto(f"{picture.page.resolve().as_uri()}#{picture.choices}")
    page.locator("#notice").wait_for(state="detached")
    picture.prepare(page)
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    taken = Image.open(BytesIO(page.screenshot())).convert("RGB")
    context.close()
    file = BytesIO()
    taken.quantize(_COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.browser.screenshots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arc", type=Path, help="a page of ARC tasks")
    parser.add_argument("sudoku", type=Path, help="a page of Sudokus, with segments to play")
    parser.add_argument("compared", type=Path, help="a page of two runs")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/images/report"), help="folder for the pictures"
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for picture in pictures(args.arc, args.sudoku, args.compared):
            data = take(browser, picture)
            (args.out / f"{picture.name}.png").write_bytes(data)
            print(f"{picture.name}.png: {len(data) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
