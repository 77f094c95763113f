"""Show a puzzle, and what the model answers after each segment.

    python -m tools.show runs/sudoku/checkpoints/latest --data data/sudoku
    python -m tools.show runs/maze/checkpoints/latest --data data/maze --puzzle 3 17 --segments 32
    python -m tools.show runs/arc1/checkpoints/best --data data/arc1 --split train --puzzle 40

Beside the input stands the answer after each segment, the truth too if the last answer is wrong, as many in a line as
the terminal is wide. Wrong cells have a red ground or, where nothing is coloured (not on a terminal, or NO_COLOR is
set), a *; cells that were given, and which the model changed, a purple one or a !. Of ARC, + marks where a grid ends.

Below each answer stand how many cells are right, the model's own estimate that all are (q_halt, from 0 to 1), and
whether it would halt there, as it does in training; here, as in evaluation, it goes on to halt_max_steps, or as far as
--segments says. Examples count from 0, in the order of tools.evaluate. The weights are the EMA where the run kept one.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple, TextIO, cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.tokens import crop_sizes
from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.paths import path_argument
from data_pipeline.kind import PADDING, Look
from data_pipeline.kinds import kind_named
from data_pipeline.schema import (
    HOW_TO_HOLD_OUT,
    IGNORE_LABEL_ID,
    NOTHING_HELD_OUT,
    load_dataset_info,
    load_split_index,
    verify_document,
)

GAP = "  "
# Of a cell: the colours on a terminal (SGR), and what stands behind it elsewhere.
MARKS = {"": ("", " "), "filled": ("32", " "), "wrong": ("97;41", "*"), "changed": ("97;45", "!")}

Cells = NDArray[np.integer]  # [rows, columns]
Strings = NDArray[np.str_]


class Answer(NamedTuple):
    """What the model says after a segment."""

    preds: Cells
    q_halt: float
    halts: bool


class Puzzle(NamedTuple):
    """An example of a dataset, and the answers to it."""

    title: str
    inputs: Cells
    labels: Cells  # IGNORE_LABEL_ID where padded: everywhere, if the truth is hidden
    answers: Sequence[Answer]

    @property
    def num_cells(self) -> int:
        """Return how many cells count."""
        return int((self.labels != IGNORE_LABEL_ID).sum())

    def num_right(self) -> list[int]:
        """Count the cells that are right after each segment."""
        known = self.labels != IGNORE_LABEL_ID
        return [int((known & (answer.preds == self.labels)).sum()) for answer in self.answers]

    def solved_after(self) -> int | None:
        """Return after which segment the answer is right and stays so; None if the last one is wrong."""
        is_wrong = [right < self.num_cells for right in self.num_right()]
        if not self.num_cells or is_wrong[-1]:
            return None
        return 1 + max((number for number, wrong in enumerate(is_wrong, start=1) if wrong), default=0)


class Panel(NamedTuple):
    """Lines for a terminal, each of which takes `width` columns, whatever colours are in it."""

    lines: list[str]
    width: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the puzzles asked for."""
    options = _parse(arguments)
    info = load_dataset_info(options.data)
    num_examples = sum(shard.num_examples for shard in load_split_index(options.data, options.split).shards)
    _check(options, num_examples)
    look = kind_named(info.kind).look(info.canvas)
    names = json.loads(verify_document(options.data, info, "identifiers.json").read_bytes())
    in_colour = colour_is_wanted(sys.stdout)
    columns = shutil.get_terminal_size().columns
    puzzles = _answer(options, names, num_examples)  # loads torch, which takes seconds
    for puzzle in puzzles:
        print("\n".join([puzzle.title, "", *drawn(puzzle, look, columns, in_colour), outcome(puzzle), ""]))
    legend = marks_in_words(puzzles, look, in_colour)
    print("\n".join([*legend, summary(puzzles)]))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("tools.show", __doc__)
    add = parser.add_argument
    add("checkpoint", type=path_argument, metavar="CHECKPOINT", help="a folder, e.g. .../checkpoints/latest")
    add("--data", type=path_argument, required=True, metavar="DIR", help="the dataset of the training")
    add("--puzzle", type=whole_number(0), nargs="+", default=[0], metavar="N", help="examples to show (0)")
    add("--split", choices=("test", "train"), default="test", help="where they are from (%(default)s)")
    add("--segments", type=whole_number(1, 1000), metavar="N", help="segments to run (halt_max_steps)")
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace, num_examples: int) -> None:
    """Raise InputError if an example that is asked for is not in the split."""
    if not num_examples:
        raise InputError(
            f"{options.data}: {NOTHING_HELD_OUT}; give --split train, or build a dataset with held-out puzzles "
            f"({HOW_TO_HOLD_OUT}) and train on it."
        )
    for number in options.puzzle:
        if number >= num_examples:
            raise InputError(
                f"--puzzle {number}: the {options.split} split of {options.data} has {num_examples:,} examples; give "
                f"numbers from 0 to {num_examples - 1}."
            )


def _answer(options: argparse.Namespace, names: Sequence[str], num_examples: int) -> list[Puzzle]:
    """Run the model on the examples asked for, all at once."""
    import torch

    from data_pipeline.reader import TestBatch, TestReader
    from hrm_dist.evaluation.halting import LEARNED
    from hrm_dist.evaluation.load_model import load_model
    from hrm_dist.evaluation.segment import EvaluationSegment
    from hrm_dist.evaluation.start_keys import start_keys

    reader = TestReader(options.data, split=options.split)
    model = load_model(options.checkpoint, options.data, reader.info.metadata("train"), ema=True)
    singles = [next(reader.batches(1, number, number + 1)) for number in options.puzzle]
    batch = {name: torch.cat([single[name] for single in singles]) for name in TestBatch.__annotations__}
    segment = EvaluationSegment(model, len(singles), torch.device("cpu"))
    noise_keys = start_keys(cast("TestBatch", batch))
    segment.refill(batch | {"noise_keys": noise_keys}, torch.ones(len(singles), dtype=torch.bool))
    side = (reader.info.canvas, reader.info.canvas)
    answers: list[list[Answer]] = [[] for _ in singles]
    most = model.arch.halt_max_steps
    for number in range(1, (options.segments or most) + 1):
        segment()
        results = segment.results()
        wants_to_halt = torch.from_numpy(LEARNED.halts(results.said())) & (model.arch.halting == "learned")
        halts = wants_to_halt | (number >= most)
        for i, of_puzzle in enumerate(answers):
            q_halt = results.q_halt_logits[i].sigmoid().item()
            of_puzzle.append(Answer(results.preds[i].numpy().reshape(side), q_halt, bool(halts[i])))
    return [
        Puzzle(
            _title(number, options.split, num_examples, names, int(batch["puzzle_identifiers"][i])),
            batch["inputs"][i].numpy().reshape(side),
            batch["labels"][i].numpy().reshape(side),
            answers[i],
        )
        for i, number in enumerate(options.puzzle)
    ]


def colour_is_wanted(stream: TextIO) -> bool:
    """Return whether to colour what is written to a stream; see https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _title(number: int, split: str, num_examples: int, names: Sequence[str], identifier: int) -> str:
    name = f": {names[identifier]}" if identifier else ""
    return f"{split} example {number} (of 0 to {num_examples - 1}){name}"


# A puzzle as text


def drawn(puzzle: Puzzle, look: Look, columns: int, in_colour: bool) -> list[str]:
    """Return the lines that show a puzzle on a terminal so many columns wide."""
    letters = np.array([token.letter or token.text[:1] or "?" for token in look.tokens])
    is_cell = puzzle.labels != IGNORE_LABEL_ID
    pad = look.tokens.index(PADDING)
    given = puzzle.inputs != pad
    panels = [_panel(["input"], letters[puzzle.inputs], given, np.full(given.shape, ""), look, in_colour)]
    for number, (answer, right) in enumerate(zip(puzzle.answers, puzzle.num_right(), strict=True), start=1):
        shown = is_cell if puzzle.num_cells else answered(answer.preds)
        marks = cell_marks(puzzle, answer.preds, look.blank)
        caption = [
            f"segment {number}",
            f"{right} of {puzzle.num_cells} right" if puzzle.num_cells else "truth hidden",
            f"q_halt {answer.q_halt:.3f}",
            "halts" if answer.halts else "goes on",
        ]
        panels.append(_panel(caption, letters[answer.preds], shown, marks, look, in_colour))
    if puzzle.num_cells and puzzle.solved_after() is None:
        truth = letters[np.where(is_cell, puzzle.labels, pad)]
        panels.append(_panel(["truth"], truth, is_cell, np.full(truth.shape, ""), look, in_colour))
    return side_by_side(panels, columns)


def answered(preds: Cells) -> NDArray[np.bool_]:
    """Return which cells are of the grid that an ARC prediction spells, which tells its size itself."""
    [height], [width] = crop_sizes(preds.reshape(1, -1))
    shown = np.zeros(preds.shape, dtype=np.bool_)
    shown[:height, :width] = True
    return shown


def cell_marks(puzzle: Puzzle, preds: Cells, blank: int | None) -> Strings:
    """Return what to say of each cell of an answer, keys of MARKS; blank: as in `Look`."""
    is_wrong = (puzzle.labels != IGNORE_LABEL_ID) & (preds != puzzle.labels)
    if blank is None:
        return np.where(is_wrong, "wrong", "")
    of_wrong = np.where(puzzle.inputs == blank, "wrong", "changed")
    return np.where(is_wrong, of_wrong, np.where(preds != puzzle.inputs, "filled", ""))


def _panel(
    caption: Sequence[str],
    letters: Strings,
    shown: NDArray[np.bool_],
    marks: Strings,
    look: Look,
    in_colour: bool,
) -> Panel:
    """Return a grid, of which only the rectangle around the shown cells is drawn, above its caption."""
    if not shown.any():
        grid = Panel(["(nothing)"], len("(nothing)"))
    else:
        rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        visible = np.where(shown, letters, " ")[window]
        grid = grid_panel(visible, np.where(shown, marks, "")[window], look.box, in_colour)
    width = max(grid.width, *map(len, caption))
    lines = [*(line + " " * (width - grid.width) for line in grid.lines), *(f"{c:{width}}" for c in caption)]
    return Panel(lines, width)


def grid_panel(letters: Strings, marks: Strings, box: tuple[int, int] | None, in_colour: bool) -> Panel:
    """Return a grid of cells, two columns each, with lines between boxes of that many rows and columns."""
    height, width = letters.shape
    box_height, box_width = box or (height, width)
    lines: list[str] = []
    for row in range(height):
        cells = [marked(*cell, in_colour) for cell in zip(letters[row], marks[row], strict=True)]
        boxes = ["".join(cells[i : i + box_width]) for i in range(0, width, box_width)]
        if row and row % box_height == 0:
            lines.append("+-".join("--" * min(box_width, width - i) for i in range(0, width, box_width)))
        lines.append("| ".join(boxes))
    return Panel(lines, 2 * width + 2 * (-(-width // box_width) - 1))


def marked(letter: str, mark: str, in_colour: bool) -> str:
    """Return a cell with its mark, as two columns."""
    code, sign = MARKS[mark]
    if not in_colour:
        return letter + sign
    return f"\x1b[{code}m{letter}\x1b[0m " if code else f"{letter} "


def side_by_side(panels: Sequence[Panel], columns: int) -> list[str]:
    """Return panels from left to right, in as many lines of them as it takes; each ends in an empty line."""
    lines: list[str] = []
    rest = list(panels)
    while rest:
        count, total = 1, rest[0].width
        while count < len(rest) and total + len(GAP) + rest[count].width <= columns:
            total += len(GAP) + rest[count].width
            count += 1
        row, rest = rest[:count], rest[count:]
        # A caption is below its own grid, however high the others are.
        for parts in zip_longest(*(panel.lines for panel in row)):
            filled = (
                " " * panel.width if part is None else part for panel, part in zip(row, parts, strict=True)
            )
            lines.append(GAP.join(filled).rstrip())
        lines.append("")
    return lines


# In words


def outcome(puzzle: Puzzle) -> str:
    """Return how the model did on a puzzle."""
    num_segments, solved = len(puzzle.answers), puzzle.solved_after()
    if not puzzle.num_cells:
        return "whether it is solved is not known: the truth is hidden"
    if solved is not None:
        return f"solved after segment {solved} of {num_segments}"
    right = puzzle.num_right()
    num_wrong = puzzle.num_cells - right[-1]
    text = f"not solved: {num_wrong} of {puzzle.num_cells} cells are wrong after segment {num_segments}"
    once = [number for number, count in enumerate(right, start=1) if count == puzzle.num_cells]
    return f"{text}, though all were right after segment {once[-1]}" if once else text


def marks_in_words(puzzles: Sequence[Puzzle], look: Look, in_colour: bool) -> list[str]:
    """Return a line that explains those marks that are in the answers."""
    present = {
        str(mark)
        for puzzle in puzzles
        for answer in puzzle.answers
        for mark in np.unique(cell_marks(puzzle, answer.preds, look.blank))
    }
    meanings = {"wrong": "wrong", "changed": "given, and changed by the model"}
    said = [
        f"{marked('5' if in_colour else '', mark, in_colour).strip()} {meaning}"
        for mark, meaning in meanings.items()
        if mark in present
    ]
    return [f"marks: {', '.join(said)}"] if said else []


def summary(puzzles: Sequence[Puzzle]) -> str:
    """Return how the model did on all of them: how many are solved, and the cells right after each segment."""
    known = [puzzle for puzzle in puzzles if puzzle.num_cells]
    if not known:
        return "no truth is known"
    num_solved = sum(puzzle.solved_after() is not None for puzzle in known)
    right = np.sum([puzzle.num_right() for puzzle in known], axis=0) / sum(
        puzzle.num_cells for puzzle in known
    )
    shares = ", ".join(f"{share:.1%}" for share in right)
    return f"solved {num_solved} of {len(known)}; cells right after each segment: {shares}"


if __name__ == "__main__":
    sys.exit(exit_code(main))
