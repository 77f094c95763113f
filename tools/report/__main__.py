"""Show what the model did: one HTML file with every task, its attempts and its votes.

Takes what tools.vote takes and runs the same vote. The file needs no network, opens from disk and prints.

examples:
  python -m tools.report runs/demo/predictions --data data/demo --out runs/demo/report.html
  python -m tools.report runs/demo/predictions --data data/demo --out runs/demo/report.html \\
      --subsets halves.json --metrics runs/demo/metrics.jsonl --title "ARC-AGI-1, small tasks"
"""

import argparse
import base64
import io
import math
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import numpy.typing as npt

from data_pipeline.arc.tokens import COLOURS
from data_pipeline.base import jsonl
from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.extras import require
from data_pipeline.base.files import replace_file
from data_pipeline.base.matplotlib_settings import plain_matplotlib
from data_pipeline.base.paths import path_argument
from data_pipeline.base.sizes import size_text
from hrm_dist.evaluation.scores import count_text
from hrm_dist.evaluation.voting import WEIGHT_MEANINGS, Candidate, attempts, grid_key
from tools.vote import (
    ALL_TASKS,
    SCORE_MEANINGS,
    VoteResult,
    add_arguments,
    pass_columns,
    refuse_inputs_as_outputs,
    run_vote,
    warn_of_ignored,
)

TEMPLATE = Path(__file__).with_name("template.html")
PALETTE = bytes.fromhex("".join(code.removeprefix("#") for _, code in COLOURS))
SHOWN_CANDIDATES = 6
MAX_CURVE_POINTS = 1000

# Cell sizes in pixels are whole numbers, so that the grid lines fall between cells: (side aimed at, least, most).
DEMONSTRATION_PX = (132, 4, 20)
TEST_PX = (190, 4, 28)
CANDIDATE_PX = (84, 2, 16)


class GridView(NamedTuple):
    uri: str
    height: int
    width: int
    cell_px: int


View = dict[str, Any]
"""What the template shows of something. `is_right`, `is_solved` and `truth` are None where the truth is hidden."""

STATUSES = ("solved", "partly", "unsolved", "hidden")


def render_report(
    result: VoteResult, *, title: str, metrics: Path | None = None, max_tasks: int | None = None
) -> str:
    """Return the whole page. Raises InputError if the metrics cannot be read."""
    tasks = sorted(
        (task_view(result, task) for task in result.test_puzzles),
        key=lambda task: STATUSES.index(task["status"]),
    )
    curves = draw_curves(read_metrics(metrics)) if metrics else None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        result=result,
        overall=result.scores[ALL_TASKS],
        meanings=SCORE_MEANINGS,
        count_text=count_text,
        weight_meaning=None if result.by == "count" else WEIGHT_MEANINGS[result.by],
        pass_columns=pass_columns(result.scores[ALL_TASKS]),
        curves=curves,
        tasks=tasks[:max_tasks],
        num_tasks=len(tasks),
        counts={status: sum(task["status"] == status for task in tasks[:max_tasks]) for status in STATUSES},
    )


def task_view(result: VoteResult, task: str) -> View:
    """Return everything the page shows of one task; all its grids are at one scale, so that they compare."""
    puzzle = result.test_puzzles[task]
    pairs = puzzle["train"] + puzzle["test"]
    grids = [grid for pair in pairs for grid in (pair["input"], pair.get("output")) if grid is not None]
    longest = max((max(len(grid), len(grid[0])) for grid in grids), default=1)
    inputs = [
        input_view(pair, candidates, longest)
        for pair, candidates in zip(puzzle["test"], result.votes.tasks[task], strict=True)
    ]
    scored = [view["is_solved"] for view in inputs if view["is_solved"] is not None]
    if not scored:
        status, label = "hidden", "truth hidden"
    elif all(scored):
        status, label = "solved", "solved"
    elif any(scored):
        status, label = "partly", f"{sum(scored)} of {len(scored)} test inputs solved"
    else:
        status, label = "unsolved", "unsolved"
    return View(
        name=task,
        status=status,
        label=label,
        subsets=[name for name, tasks in result.subsets.items() if task in tasks],
        demonstrations=[
            [grid_view(pair[side], longest, DEMONSTRATION_PX) for side in ("input", "output")]
            for pair in puzzle["train"]
        ],
        inputs=inputs,
    )


def input_view(pair: Mapping[str, Any], candidates: Sequence[Candidate], longest: int) -> View:
    """Return one test input with its attempts and votes."""
    truth = None if pair.get("output") is None else np.asarray(pair["output"], dtype=np.uint8)
    is_right = [None if truth is None else c.key == grid_key(truth) for c in candidates]
    views = [
        View(
            candidate=c,
            rank=rank,
            grid=grid_view(c.grid, longest, CANDIDATE_PX) if c.grid.size else None,
            is_right=right,
        )
        for rank, (c, right) in enumerate(zip(candidates, is_right, strict=True), start=1)
        if rank <= SHOWN_CANDIDATES or right
    ]
    truth_note = ""
    if truth is not None and candidates:
        found = (f"the truth is candidate {view['rank']}" for view in views if view["is_right"])
        truth_note = next(found, "the truth got no vote")
    attempt_views = [attempt_view(i, candidates, truth, longest) for i in range(2)]
    return View(
        grid=grid_view(pair["input"], longest, TEST_PX),
        attempts=attempt_views,
        truth=None if truth is None else grid_view(truth, longest, TEST_PX),
        is_solved=None if truth is None else any(view["is_right"] for view in attempt_views),
        num_votes=sum(candidate.count for candidate in candidates),
        num_candidates=len(candidates),
        candidates=views,
        truth_note=truth_note,
    )


def attempt_view(
    index: int, candidates: Sequence[Candidate], truth: npt.NDArray[np.uint8] | None, longest: int
) -> View:
    """Return attempt `index` as submitted, with how far it is from the truth."""
    grid = np.asarray(attempts(candidates)[index], dtype=np.uint8)
    voted = candidates[min(index, len(candidates) - 1)].grid if candidates else None
    # Judged by what was voted for, as the scores are: the filler of an empty entry is never right.
    is_right = None if truth is None else voted is not None and np.array_equal(voted, truth)
    if not candidates:
        note = "no prediction"
    elif index >= len(candidates):
        note = "only one candidate"
    elif is_right is None:
        note = ""
    elif is_right:
        note = "right"
    elif truth is not None and grid.shape == truth.shape:
        note = f"{int((grid != truth).sum())} of {truth.size} cells wrong"
    else:
        note = "wrong size"
    return View(grid=grid_view(grid, longest, TEST_PX), is_right=is_right, note=note)


def grid_view(grid: npt.ArrayLike, longest: int, size_px: tuple[int, int, int]) -> GridView:
    """Return a grid as an image of one pixel a cell, which the browser enlarges."""
    cells = np.asarray(grid, dtype=np.uint8)
    side, least, most = size_px
    height, width = cells.shape
    cell_px = min(max(side // max(longest, height, width), least), most)
    return GridView(_png_uri(cells.tobytes(), height, width), height, width, cell_px)


@lru_cache(maxsize=4096)
def _png_uri(cells: bytes, height: int, width: int) -> str:
    """Return a PNG of 4 bits a pixel: about 150 bytes for a usual grid."""
    from PIL import Image

    image = Image.frombytes("P", (width, height), cells)
    image.putpalette(PALETTE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, without lines that are damaged or that a training has not finished."""
    try:
        path.stat()
        values = jsonl.read(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the run's metrics.jsonl."
        ) from error
    rows = [row for row in values if isinstance(row, dict) and isinstance(row.get("step"), int)]
    if values and not rows:
        raise InputError(
            f"{path}: no line is an object with a whole number 'step'; give the run's metrics.jsonl."
        )
    return rows


@plain_matplotlib()
def draw_curves(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the training's curves as a data URI of an SVG; None if there is nothing to draw."""
    from matplotlib import rc_context  # a second of import that a report without curves need not pay
    from matplotlib.figure import Figure

    panels = {"loss": ("loss",), "accuracy": ("accuracy", "pass@2"), "learning rate": ("lr",)}
    numbers = [{name: value for name, value in row.items() if isinstance(value, int | float)} for row in rows]
    names = {name for row in numbers for name in row if name.startswith(("train/", "eval/"))}
    keys = {
        title: found
        for title, ends in panels.items()
        if (found := sorted(name for name in names if name.endswith(ends)))
    }
    if not keys:
        return None
    with rc_context(
        {"svg.hashsalt": "report", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(3.7 * len(keys), 2.9), layout="constrained")
        for axes, (title, found) in zip(
            figure.subplots(1, len(keys), squeeze=False)[0], keys.items(), strict=True
        ):
            for key in found:
                points = [(row["step"], row[key]) for row in numbers if key in row]
                points = points[:: math.ceil(len(points) / MAX_CURVE_POINTS) or 1]
                marker = "o" if key.startswith("eval/") else None
                axes.plot(*zip(*points, strict=True), label=key, linewidth=1.2, marker=marker, markersize=3)
            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def run(args: argparse.Namespace) -> int:
    """Vote and write the page."""
    require("report", "tools.report")
    refuse_inputs_as_outputs(args, {"--out": args.out})
    result = run_vote(args)
    page = render_report(
        result,
        title=args.title,
        metrics=args.metrics,
        max_tasks=args.max_tasks,
    )
    replace_file(args.out, page.encode())
    warn_of_ignored(result)
    print(f"report: {args.out} ({size_text(len(page))}, {len(result.test_puzzles)} tasks)")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = command_parser("tools.report", __doc__)
    add_arguments(parser)
    parser.add_argument(
        "--out", type=path_argument, required=True, metavar="F", help="the HTML file to write"
    )
    parser.add_argument(
        "--metrics",
        type=path_argument,
        metavar="F",
        help="metrics.jsonl of the run: adds the training's curves",
    )
    parser.add_argument("--title", default="ARC report", help="heading of the page")
    parser.add_argument(
        "--max-tasks", type=int, metavar="N", help="show only the first N tasks, solved ones first"
    )
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
