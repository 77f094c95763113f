"""Sudoku puzzles as arrays: boxes, rules, tokens, and keys that no symmetry changes.

A grid is a row of `side * side` digits, row by row, 0 for a blank. Millions of puzzles are two such arrays.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.random import Bits, random_bits, scramble
from data_pipeline.grid_puzzles.blocks import in_blocks
from data_pipeline.grid_puzzles.csv_source import CsvBlock, Puzzles

PAD_ID = 0
FIRST_TOKEN_ID = 1  # of a blank; digit d is d + 1

_MAX_SIDE = 9
_NO_DIGIT = 255
_KEY_ROUNDS = 4
_BLOCK = 4096  # puzzles at a time, so that the intermediate arrays stay small

Grids = NDArray[np.uint8]  # [n, cells]


class BoxShape(NamedTuple):
    """Rows and columns of a box; the grid has rows * cols digits, rows and columns."""

    rows: int
    cols: int

    @property
    def side(self) -> int:
        return self.rows * self.cols

    @property
    def num_cells(self) -> int:
        return self.side**2

    @property
    def vocab_size(self) -> int:
        """Count padding, blank and digits."""
        return self.side + 2


BOX_SHAPES = {4: BoxShape(2, 2), 6: BoxShape(2, 3), 9: BoxShape(3, 3)}
"""The box of each side that sources and generator know."""


class Sudokus(Puzzles):
    """Puzzles with their solutions, as grids."""

    @property
    def boxes(self) -> BoxShape:
        return BOX_SHAPES[math.isqrt(self.inputs.shape[1])]


def read_block(block: CsvBlock) -> tuple[Grids, Grids]:
    """Return inputs and labels of a block of lines; raise InputError at the first that is not as it should be.

    Blanks are dots or zeros. That the answer is the only one is not checked (see `has_unique_solution`).
    """
    num_cells = block.questions.shape[1]
    boxes = next((boxes for boxes in BOX_SHAPES.values() if boxes.num_cells == num_cells), None)
    if boxes is None:
        known = ", ".join(f"{boxes.num_cells}" for boxes in BOX_SHAPES.values())
        why = f"it has {num_cells} cells; give puzzles of one of {known}, row by row"
        raise block.bad_row(0, "question", why)
    digits = bytes(range(ord("0"), ord("1") + boxes.side))
    digit_of_byte = np.full(256, _NO_DIGIT, dtype=np.uint8)
    digit_of_byte[list(digits)] = np.arange(len(digits))
    labels = digit_of_byte[block.answers]
    digit_of_byte[ord(".")] = 0
    inputs = digit_of_byte[block.questions]
    use = f"use digits from 1 to {boxes.side}"
    block.refuse_cells("question", inputs == _NO_DIGIT, f"{use}, and . for a blank")
    if len(inputs) and (inputs[0] != 0).all() and set(b".0") & {*block.answers[0].tolist()}:
        why = "it has no blank, and the answer has some: the columns seem to be interchanged; rename them in the header"
        raise block.bad_row(0, "question", why)
    block.refuse_cells("answer", (labels == _NO_DIGIT) | (labels == 0), use)
    differs = (inputs != 0) & (inputs != labels)
    block.refuse_cells("answer", differs, "the question has another digit there; correct one of the two")
    solved = is_solution(labels, boxes)
    if not solved.all():
        rule = f"some row, column or box ({boxes.rows} x {boxes.cols}) does not hold each digit from 1 to {boxes.side}"
        raise block.bad_row(int(solved.argmin()), "answer", f"{rule} once; correct it or take out the line")
    return inputs, labels


def encode(grids: Grids) -> NDArray[np.uint8]:
    """Return the tokens [n, cells] of grids."""
    return grids + np.uint8(FIRST_TOKEN_ID)


def decode(tokens: NDArray[np.uint8]) -> Grids:
    """Return the grids that `encode` made these tokens of."""
    return tokens - np.uint8(FIRST_TOKEN_ID)


class Units(NamedTuple):
    """Where the rules apply; a unit is a row, a column or a box."""

    cells_of_unit: NDArray[np.intp]  # [3 * side, side], rows first, then columns, then boxes
    units_of_cell: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
    """The row, the column and the box of each cell, [cells] each."""


@functools.cache
def units(boxes: BoxShape) -> Units:
    """Return the units of a grid."""
    side = boxes.side
    rows, cols = np.divmod(np.arange(boxes.num_cells), side)
    box = rows // boxes.rows * boxes.rows + cols // boxes.cols
    of_cell = (rows, side + cols, 2 * side + box)
    cells = np.concatenate([np.argsort(unit, kind="stable").reshape(side, side) for unit in of_cell])
    return Units(cells, of_cell)


@in_blocks(_BLOCK)
def is_solution(grids: Grids, boxes: BoxShape) -> NDArray[np.bool_]:
    """Tell whether each row, column and box of a grid holds every digit; [n]."""
    # Puzzles last, so that numpy works along them.
    digits = np.ascontiguousarray(grids.T).astype(np.uint16)
    bits = (np.uint16(1) << digits) >> np.uint16(1)
    found = np.bitwise_or.reduce(bits[units(boxes).cells_of_unit], axis=1)
    return ((found == (1 << boxes.side) - 1) & (digits.max(axis=0) <= boxes.side)).all(axis=0)


def keeps_givens(inputs: Grids, grids: Grids) -> NDArray[np.bool_]:
    """Tell whether a grid has the digits that are given; [n]."""
    return ((inputs == 0) | (inputs == grids)).all(axis=1)


@in_blocks(_BLOCK)
def content_keys(puzzles: Sudokus) -> Bits:
    """Return a key per puzzle that no symmetry of Sudoku changes; [n].

    Puzzles that digit relabelling, transposition (of square boxes) and the exchange of bands, stacks, rows and
    columns turn into each other share their key. It is made by colour refinement: cells start with whether they
    are given, and mix in, round by round, what is in their row, column, box and among their digit, in no
    order. Different puzzles may then only share a key if that tells none of their cells apart, or by chance.
    """
    boxes = puzzles.boxes
    cells_of_unit, (row, col, box) = units(boxes)
    side = boxes.side
    # The cells in order of their digit make the digits units like the others.
    by_digit = np.argsort(puzzles.labels, axis=1, kind="stable").T.reshape(side, side, -1)
    digit = puzzles.labels.T.astype(np.intp) - 1
    everyone = np.arange(puzzles.num_puzzles)
    colours = _mix((puzzles.inputs.T > 0).astype(np.uint64) + np.uint64(1))
    for _ in range(_KEY_ROUNDS):
        sums = colours[cells_of_unit].sum(axis=1, dtype=np.uint64)
        of_row, of_col = _mix(sums[row]), _mix(sums[col])
        # Lines are alike where a transposition may exchange them.
        of_lines = of_row + of_col if boxes.rows == boxes.cols else of_row + _mix(of_col)
        of_digit = colours[by_digit, everyone].sum(axis=1, dtype=np.uint64)[digit, everyone]
        around = (
            _mix(of_lines) + np.uint64(3) * _mix(sums[box]) + np.uint64(5) * _mix(of_digit + np.uint64(1))
        )
        colours = _mix(colours * np.uint64(7) + around)
    return _mix(colours.sum(axis=0, dtype=np.uint64))


@in_blocks(_BLOCK)
def relabelling_keys(puzzles: Sudokus) -> Bits:
    """Return a key per puzzle that only the naming of its digits leaves unchanged; [n]."""
    side = puzzles.boxes.side
    # A digit's new name is its position in the solution's first row, which holds them all.
    names = np.zeros((puzzles.num_puzzles, side + 1), dtype=np.uint8)
    first_row = puzzles.labels[:, :side].astype(np.intp)
    np.put_along_axis(names, first_row, np.arange(1, side + 1, dtype=np.uint8), 1)
    renamed = np.take_along_axis(names, puzzles.inputs.astype(np.intp), axis=1).astype(np.uint64)
    weights = _WEIGHTS[: puzzles.boxes.num_cells]
    return _mix((_mix(renamed + weights) * weights).sum(axis=1, dtype=np.uint64))


@in_blocks(_BLOCK)
def solution_keys(labels: Grids, boxes: BoxShape) -> Bits:
    """Return a key per solution that no symmetry of Sudoku changes; [n].

    Two rows of a band hold the same digits in another order, i.e. they make a permutation. The lengths of its
    cycles survive relabelling and every exchange of columns, so the key is made of those of all pairs of rows
    within a band and of columns within a stack.
    """
    grids = labels.reshape(-1, boxes.side, boxes.side)
    of_rows = _line_key(grids, boxes.rows)
    of_cols = _line_key(grids.swapaxes(1, 2), boxes.cols)
    return _mix(of_rows + of_cols if boxes.rows == boxes.cols else of_rows + _mix(of_cols))


def _line_key(grids: NDArray[np.uint8], lines_per_chute: int) -> Bits:
    """Return a key of the cycles between the rows of grids [n, side, side] that belong to a band; [n]."""
    side = grids.shape[1]
    column_of_digit = np.argsort(grids, axis=2, kind="stable")
    key = np.zeros(len(grids), dtype=np.uint64)
    for first in range(0, side, lines_per_chute):
        chute = np.zeros(len(grids), dtype=np.uint64)
        for a in range(first, first + lines_per_chute):
            for b in range(a + 1, first + lines_per_chute):
                step = np.take_along_axis(column_of_digit[:, a], grids[:, b].astype(np.intp) - 1, axis=1)
                chute += _mix(_cycle_lengths(step).sum(axis=1, dtype=np.uint64))
        key += _mix(chute)
    return _mix(key)


def _cycle_lengths(step: NDArray[np.intp]) -> Bits:
    """Return the scrambled length of the cycle that each element of permutations [n, side] is in; [n, side]."""
    side = int(step.shape[1])
    home = np.arange(side)
    at = step
    lengths = np.ones((len(step), side), dtype=np.uint64)
    away = at != home
    for _ in range(side - 1):
        lengths += away
        at = np.take_along_axis(step, at, axis=1)
        away = away & (at != home)
    return _mix(lengths)


def _mix(x: Bits) -> Bits:
    """Scramble after a step, so that 0 does not stay 0; a bijection."""
    return scramble(x + np.uint64(0x9E3779B97F4A7C15))


_WEIGHTS = random_bits(_MAX_SIDE**2, "sudoku cells") | np.uint64(1)
