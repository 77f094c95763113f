"""The symmetries of Sudoku: what turns every puzzle into another one that is as hard.

Digits may be relabelled, bands and the rows within a band exchanged, likewise stacks and the columns within a
stack; where boxes are square, the grid may be transposed first. A symmetry is a number below `num_symmetries`,
which says all choices in mixed radix; 0 changes nothing.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.random import Bits, stream_key, words_at
from data_pipeline.grid_puzzles.sudoku.puzzles import BoxShape, Grids, Sudokus

_BLOCK = 1024  # puzzles at a time, so that the intermediate arrays stay in the cache


class Symmetries(NamedTuple):
    """Some symmetries, spelled out."""

    sources: NDArray[np.intp]  # [n, cells], where the content of each cell comes from
    palettes: NDArray[np.uint8]  # [n, side + 1], what becomes of each digit; the blank stays 0


def num_symmetries(boxes: BoxShape) -> int:
    """Count them, as numbered; at most 1.2e12, for side 9."""
    radices = _radices(boxes)
    return math.prod(radices)


def _radices(boxes: BoxShape) -> tuple[int, int, int, int]:
    """Count the choices of relabelling, row order, column order and transposition."""
    transpositions = 2 if boxes.rows == boxes.cols else 1
    row_orders, col_orders = (len(_line_orders(boxes.side, lines)) for lines in boxes)
    return math.factorial(boxes.side), row_orders, col_orders, transpositions


def draw(
    seed: int, puzzles: NDArray[np.integer], augmentations: NDArray[np.integer], boxes: BoxShape
) -> Bits:
    """Draw the number of each augmentation of a puzzle; puzzles, augmentations and result [n].

    It depends on the seed, the puzzle's number (its position in the source, or any key of 64 bits) and the
    augmentation's, not on what else is drawn. Augmentation 0 is the puzzle itself; the others are independent,
    so two may coincide, as in the published data. The bias is below 1e-7.
    """
    words = words_at(puzzles, augmentations, stream_key(seed, "sudoku symmetry"))[:, 0]
    return np.where(augmentations == 0, np.uint64(0), words % np.uint64(num_symmetries(boxes)))


def symmetries(numbers: Bits, boxes: BoxShape) -> Symmetries:
    """Return the symmetries with these numbers."""
    side = boxes.side
    rest = numbers.astype(np.uint64)
    choices: list[NDArray[np.intp]] = []
    for radix in _radices(boxes):
        rest, choice = np.divmod(rest, np.uint64(radix))
        choices.append(choice.astype(np.intp))
    relabelling, row_order, col_order, transposed = choices
    rows = _line_orders(side, boxes.rows)[row_order]
    cols = _line_orders(side, boxes.cols)[col_order]
    # Row r and column c of the image, as steps along the grid that it is made from.
    row_step, col_step = np.where(transposed, 1, side)[:, None], np.where(transposed, side, 1)[:, None]
    sources = (rows * row_step)[:, :, None] + (cols * col_step)[:, None, :]
    palettes = np.zeros((len(numbers), side + 1), dtype=np.uint8)
    palettes[:, 1:] = _permutations(side)[relabelling] + np.uint8(1)
    return Symmetries(sources.reshape(len(numbers), -1), palettes)


def apply(grids: Grids, chosen: Symmetries) -> Grids:
    """Apply symmetry i to grid i; [n, cells]."""
    lanes = np.arange(len(grids))[:, None]
    moved = grids.reshape(-1).take(chosen.sources + lanes * int(grids.shape[1]))
    return chosen.palettes.reshape(-1).take(moved + lanes * int(chosen.palettes.shape[1]))


def augment(puzzles: Sudokus, numbers: Bits) -> Sudokus:
    """Apply symmetry numbers[i] to puzzle i. A rating is kept, though a solver may find the image a little harder."""
    inputs, labels = np.empty_like(puzzles.inputs), np.empty_like(puzzles.labels)
    for start in range(0, len(numbers), _BLOCK):
        block = slice(start, start + _BLOCK)
        chosen = symmetries(numbers[block], puzzles.boxes)
        inputs[block], labels[block] = (
            apply(puzzles.inputs[block], chosen),
            apply(puzzles.labels[block], chosen),
        )
    return puzzles._replace(inputs=inputs, labels=labels)


@functools.cache
def _permutations(size: int) -> NDArray[np.uint8]:
    """Return all orders of 0..size-1, in lexicographic order; [size!, size]."""
    if size == 0:
        return np.zeros((1, 0), dtype=np.uint8)
    first = np.arange(size, dtype=np.uint8)[:, None, None]
    rest = np.broadcast_to(_permutations(size - 1), (size, math.factorial(size - 1), size - 1))
    rest = rest + (rest >= first)
    heads = np.broadcast_to(first, (*rest.shape[:2], 1))
    return np.concatenate([heads, rest], axis=2, dtype=np.uint8).reshape(-1, size)


@functools.cache
def _line_orders(side: int, lines_per_chute: int) -> NDArray[np.intp]:
    """Return all orders of the rows that keep bands together (or of columns and stacks); [orders, side]."""
    num_chutes = side // lines_per_chute
    inner = _permutations(lines_per_chute).astype(np.intp)
    orders = np.zeros((1, 0), dtype=np.intp)
    for _ in range(num_chutes):  # an order within each of the chutes
        repeated = np.repeat(orders, len(inner), axis=0)
        orders = np.concatenate([repeated, np.tile(inner, (len(orders), 1))], axis=1)
    outer = np.repeat(_permutations(num_chutes).astype(np.intp), lines_per_chute, axis=1) * lines_per_chute
    return (outer[:, None, :] + orders).reshape(-1, side)
