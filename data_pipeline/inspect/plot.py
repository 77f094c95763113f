"""A picture of puzzles, a line per group, each cell of the canvas as the model sees it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.matplotlib_settings import plain_matplotlib
from data_pipeline.kind import Token
from data_pipeline.schema import SplitIndex
from data_pipeline.shards.reader import read_shard
from data_pipeline.windows import Frame, frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PUZZLES_PER_GROUP = 4
WINDOW_COLOUR = "#e6007e"

_DOTS_PER_INCH = 150
_PANEL_INCHES = 1.5  # side of a canvas
_GAP = 0.06  # between input and label, in canvases
_SPACE_INCHES = 0.2
_TITLE_INCHES = 0.25
_TITLE_POINTS = 7
_LONGEST_TITLE = 48
_LINE, _HEAVY_LINE = "#80808060", "#404040"
_WINDOW: dict[str, Any] = {"fill": False, "edgecolor": WINDOW_COLOUR, "linewidth": 1.2, "clip_on": False}
_GIVEN, _SOLVED = "black", "#1f4fd8"

Board = NDArray[np.uint8]  # [canvas, canvas]


class Puzzle(NamedTuple):
    """The first example of a puzzle."""

    title: str
    example: NDArray[np.uint8]  # [2, canvas, canvas], input before label
    frame: Frame | None
    """Of its window, if it has one."""


def read_puzzles(
    split_dir: Path,
    index: SplitIndex,
    names: Sequence[str],
    num_groups: int,
    windows: NDArray[np.uint8] | None,
) -> list[list[Puzzle]]:
    """Read the puzzles that some groups, spread evenly over the split, have in its first rows.

    `windows`: (height, width) by puzzle identifier, if they have any.
    """
    positions = np.linspace(0, len(index.groups) - 1, min(num_groups, len(index.groups)))
    groups = positions.round().astype(np.int64)
    puzzles: dict[int, list[Puzzle]] = {group: [] for group in groups.tolist()}
    for entry in index.shards:
        if entry.row >= PUZZLES_PER_GROUP:
            break
        chosen = np.intersect1d(groups, index.groups_of_shard(entry))
        chosen = chosen[index.groups.num_puzzles[chosen] > entry.row]  # later rows of training repeat
        if not chosen.size:
            continue
        shard = read_shard(split_dir, index, entry, verified=True)
        samples = np.searchsorted(shard.groups, chosen)
        examples = shard.examples(shard.starts[samples]).reshape(-1, 2, index.canvas, index.canvas)
        for group, identifier, example in zip(
            chosen.tolist(), shard.identifiers[samples].tolist(), examples, strict=True
        ):
            no_name = f"group {group}, row {entry.row}"
            title = names[int(identifier)] if index.groups.names else no_name
            window = None if windows is None else frame(example[0], windows[int(identifier)])
            puzzles[group].append(Puzzle(title, example, window))
    return list(puzzles.values())


@plain_matplotlib()
def draw(
    lines: Sequence[Sequence[Puzzle]], tokens: Sequence[Token], box: tuple[int, int] | None = None
) -> bytes:
    """Draw the picture, a PNG file: of each puzzle the input, and to its right the label.

    Draw heavy lines around boxes of that many rows and columns, and around windows.
    """
    # A second of import that only a picture pays.
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    canvas = len(lines[0][0].example[0])
    figure = Figure(dpi=_DOTS_PER_INCH)
    all_axes = _lay_out(figure, len(lines), max(len(line) for line in lines))
    look: dict[str, Any] = {
        "cmap": ListedColormap([token.colour for token in tokens]),
        "vmin": -0.5,
        "vmax": len(tokens) - 0.5,
        "edgecolors": _LINE,
        "linewidth": 0.3,
        "clip_on": False,
    }
    edges = np.linspace(0, canvas, canvas + 1)
    label_left = canvas * (1 + _GAP)
    for line, line_axes in zip(lines, all_axes, strict=True):
        for puzzle, axes in zip(line, line_axes, strict=False):
            axes.set(xlim=(0, label_left + canvas), ylim=(canvas, 0), aspect="equal")
            axes.set_title(_shortened(puzzle.title), fontsize=_TITLE_POINTS, pad=3, parse_math=False)
            for left, board in zip((0, label_left), puzzle.example, strict=True):
                axes.pcolormesh(left + edges, edges, board, **look)
                if box is not None:
                    heavy = {"colors": _HEAVY_LINE, "linewidth": 0.8, "clip_on": False}
                    axes.hlines(edges[:: box[0]], left, left + canvas, **heavy)
                    axes.vlines(left + edges[:: box[1]], 0, canvas, **heavy)
                if puzzle.frame is not None:
                    corner, (height, width) = (left + puzzle.frame.left, puzzle.frame.top), puzzle.frame.size
                    axes.add_patch(Rectangle(corner, width, height, **_WINDOW))
                _write_texts(axes, left, board, puzzle.example[0], tokens)
    file = io.BytesIO()
    figure.savefig(file, format="png")  # pyright: ignore[reportUnknownMemberType]
    return file.getvalue()


def _lay_out(figure: "Figure", num_lines: int, num_columns: int) -> NDArray[np.object_]:
    """Make room for the puzzles, as axes without axes; [num_lines, num_columns]."""
    width = num_columns * (2 * _PANEL_INCHES + _SPACE_INCHES)
    height = num_lines * (_PANEL_INCHES + _TITLE_INCHES)
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        left=_SPACE_INCHES / 2 / width,
        right=1 - _SPACE_INCHES / 2 / width,
        bottom=_SPACE_INCHES / 4 / height,
        top=1 - _TITLE_INCHES / height,
        wspace=_SPACE_INCHES / (2 * _PANEL_INCHES),
        hspace=_TITLE_INCHES / _PANEL_INCHES,
    )
    all_axes = figure.subplots(num_lines, num_columns, squeeze=False)
    for axes in all_axes.flat:
        axes.axis("off")
    return all_axes


def _write_texts(axes: "Axes", left: float, board: Board, given: Board, tokens: Sequence[Token]) -> None:
    """Write into the cells of a board what their tokens are drawn with, blue where the input has another."""
    points = 72 * _PANEL_INCHES / len(board)
    style: dict[str, Any] = {"fontsize": 0.6 * points, "ha": "center", "va": "center_baseline"}
    for (row, col), token in np.ndenumerate(board):
        text = tokens[int(token)].text
        if text:
            style["color"] = _GIVEN if token == given[row, col] else _SOLVED
            centre = (left + col + 0.5, row + 0.5)
            axes.text(*centre, text, **style)  # pyright: ignore[reportUnknownMemberType]


def _shortened(title: str) -> str:
    half = _LONGEST_TITLE // 2
    return title if len(title) <= _LONGEST_TITLE else f"{title[:half]}...{title[-half:]}"
