"""New Sudoku puzzles with exactly one solution, as hard as asked for.

A candidate is a random solution from which clues are taken away in random order as long as it stays the only
one; so every candidate is minimal. It becomes a puzzle if it belongs to the split asked for and is rated hard
enough. Puzzle `index` is the first such candidate of those numbered (seed, side, split, index, 0), (..., 1), ...
and depends on nothing else: any worker can make any of them.

A puzzle's split is a bit of a key that no symmetry changes, so no puzzle of one split can be turned into one
of the other, wherever and for whatever counts they are made. For side 9 the key is that of the solution, hence
the splits have no solution in common either; the smaller sides have too few solutions and take the puzzle's.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.base.random import WORDS_PER_COUNTER, below, stream_key, words_at, words_from
from data_pipeline.grid_puzzles.puzzle_type import belongs_to
from data_pipeline.grid_puzzles.sudoku.puzzles import (
    BOX_SHAPES,
    BoxShape,
    Grids,
    Sudokus,
    content_keys,
    is_solution,
    solution_keys,
)
from data_pipeline.grid_puzzles.sudoku.solver import (
    States,
    candidate_counts,
    deduce,
    has_unique_solution,
    initial_states,
    rate,
    search,
)
from data_pipeline.schema import SplitName

MAX_IN_VAIN = 50_000
"""Candidates before the difficulty is given up as out of reach, if none of them has it."""

_LANES = 4096  # candidates at a time
_COUNTERS_PER_ATTEMPT = 1 << 8  # of four random words each
_FIRST_ORDER_COUNTER = 128  # the ones before are for filling the grid
_SIDE_OF_MANY_SOLUTIONS = 9


class Recipe(NamedTuple):
    """What decides the generated puzzles, beside their split and index."""

    boxes: BoxShape = BOX_SHAPES[9]
    min_difficulty: int = 0
    seed: int = 0


def generate(recipe: Recipe, split: SplitName, indices: NDArray[np.integer]) -> Sudokus:
    """Make the puzzles with these numbers, each with its rating.

    Two numbers may give the same puzzle: hardly ever of side 9, soon of side 4 (see grid_puzzles/generate.py).
    Raise InputError when the difficulty is not reached.
    """
    blocks = [
        _generate_block(recipe, split, np.asarray(indices[start : start + _LANES], dtype=np.int64))
        for start in range(0, max(1, len(indices)), _LANES)
    ]
    return Sudokus.join(blocks)


def _generate_block(recipe: Recipe, split: SplitName, indices: NDArray[np.int64]) -> Sudokus:
    grids = np.zeros((2, len(indices), recipe.boxes.num_cells), dtype=np.uint8)
    made = Sudokus(grids[0], grids[1], np.zeros(len(indices), dtype=np.int32))
    is_missing = np.ones(len(indices), dtype=np.bool_)
    first_attempt, num_tried, num_made, hardest = 0, 0, 0, -1
    while is_missing.any():
        owners = np.flatnonzero(is_missing)
        if num_tried >= MAX_IN_VAIN and num_made == 0:
            raise InputError(
                f"min difficulty {recipe.min_difficulty} of side {recipe.boxes.side}: none of {num_tried} "
                f"candidates is so hard (the hardest needs {max(hardest, 0)} backtracks); ask for less, or for a "
                "larger side."
            )
        # Where few are missing, several attempts at once; the first good one is taken, however many there are.
        num_attempts = max(1, min(1 + num_tried // (1 + num_made), _LANES // (4 * len(owners))))
        owners = np.repeat(owners, num_attempts)
        attempts = first_attempt + np.arange(len(owners)) % num_attempts
        numbers, found = _candidates(recipe, split, indices[owners], attempts)
        hardest = max(hardest, int(found.ratings.max(initial=-1)))
        good = np.flatnonzero(found.ratings >= recipe.min_difficulty)
        done, first = np.unique(owners[numbers[good]], return_index=True)
        for into, values in zip(made[:3], found.take(good[first])[:3], strict=True):
            into[done] = values
        is_missing[done] = False
        num_tried += len(owners)
        num_made += len(done)
        first_attempt += num_attempts
    return made


def _candidates(
    recipe: Recipe, split: SplitName, indices: NDArray[np.int64], attempts: NDArray[np.int64]
) -> tuple[NDArray[np.intp], Sudokus]:
    """Make and rate the candidates (index, attempt) that come out whole and are of the split, after their numbers."""
    boxes = recipe.boxes
    key = stream_key(recipe.seed, "sudoku", boxes.side, split)
    counters = attempts * _COUNTERS_PER_ATTEMPT
    solutions, numbers = _random_solutions(boxes, indices, counters, key)
    if boxes.side == _SIDE_OF_MANY_SOLUTIONS:
        ours = belongs_to(split, solution_keys(solutions, boxes))
        solutions, numbers = solutions[ours], numbers[ours]
    words = words_from(indices[numbers], counters[numbers] + _FIRST_ORDER_COUNTER, boxes.num_cells, key)
    orders = np.argsort(words, axis=1, kind="stable")
    inputs = _take_away_clues(solutions, orders, boxes)
    puzzles = Sudokus(inputs, solutions, np.zeros(len(inputs), dtype=np.int32))
    if boxes.side != _SIDE_OF_MANY_SOLUTIONS:
        ours = belongs_to(split, content_keys(puzzles))
        puzzles, numbers = puzzles.take(ours), numbers[ours]
    if not (is_solution(puzzles.labels, boxes) & has_unique_solution(puzzles)).all():
        raise AssertionError("a generated puzzle does not have the one solution that it was made from")
    return numbers, puzzles._replace(ratings=rate(puzzles.inputs, boxes))


def _random_solutions(
    boxes: BoxShape, indices: NDArray[np.int64], counters: NDArray[np.int64], key: tuple[int, int]
) -> tuple[Grids, NDArray[np.intp]]:
    """Fill grids at random; return them, and for which of the indices that came to a good end.

    Each turn puts a random candidate into the first cell with the fewest and deduces what it can. There is no
    turning back: a grid that gets stuck (about one in three) is given up.
    """
    num_cells = boxes.num_cells
    grids = np.zeros((len(indices), num_cells), dtype=np.uint8)
    states = np.full((num_cells, len(indices)), (1 << boxes.side) - 1, dtype=np.uint16)
    numbers = np.arange(len(indices))
    words = np.zeros((len(indices), WORDS_PER_COUNTER), dtype=np.uint64)
    for turn in range(num_cells + 1):
        if turn % WORDS_PER_COUNTER == 0:
            words = words_at(indices[numbers], counters[numbers] + turn // WORDS_PER_COUNTER, key)
        counts = candidate_counts(boxes)[states]
        counts[counts == 1] = boxes.side + 1
        cells = counts.argmin(axis=0)
        lanes = np.arange(len(numbers))
        fewest = counts[cells, lanes]
        is_full = fewest > boxes.side
        grids[numbers[is_full]] = _digits(states[:, is_full].T)
        choice = below(words[:, turn % WORDS_PER_COUNTER], np.where(is_full, 1, fewest).astype(np.uint64))
        states[cells, lanes] = _nth_candidate(states[cells, lanes], choice, boxes)
        states, is_dead, _ = deduce(states, boxes, hidden_singles=True)
        goes_on = ~is_dead & ~is_full
        states, numbers, words = states[:, goes_on], numbers[goes_on], words[goes_on]
        if not len(numbers):
            break
    whole = np.flatnonzero(is_solution(grids, boxes))
    return grids[whole], whole


def _nth_candidate(sets: NDArray[np.uint16], n: NDArray[np.int64], boxes: BoxShape) -> NDArray[np.uint16]:
    """Return candidate number n, from 0, of each set; both as bits."""
    digits = np.arange(boxes.side, dtype=np.uint16)
    is_in = (sets[:, None] >> digits) & np.uint16(1)
    position = (is_in.cumsum(axis=1) <= n[:, None]).sum(axis=1)
    return (1 << position).astype(np.uint16)


def _digits(states: States) -> Grids:
    """Return the digits of states whose cells have one candidate left; [n, cells]."""
    _, exponents = np.frexp(states.astype(np.float32))  # 2**(d - 1) is 0.5 * 2**d
    return exponents.astype(np.uint8)


def _take_away_clues(solutions: Grids, orders: NDArray[np.intp], boxes: BoxShape) -> Grids:
    """Return puzzles of which no clue can be spared; [n, cells].

    A clue can be spared if no solution has another digit in its position: one short search that finds none.
    """
    inputs = solutions.copy()
    lanes = np.arange(len(inputs))
    every_digit = np.uint16((1 << boxes.side) - 1)
    for cells in orders.T:
        clues = inputs[lanes, cells]
        inputs[lanes, cells] = 0
        states = initial_states(inputs, boxes)
        states[lanes, cells] = every_digit & ~((np.uint16(1) << clues.astype(np.uint16)) >> np.uint16(1))
        needed = search(states, boxes, limit=1).num_solutions > 0
        inputs[lanes[needed], cells[needed]] = clues[needed]
    return inputs
