"""A Sudoku solver that works on thousands of puzzles at once.

A state is the set of digits that each cell may still hold, as bits. A pass of deduction over all states is a
few dozen numpy operations, each along the states, so that one state costs about a microsecond; taken alone it
would cost a hundred times that. States that deduction does not decide are branched on, depth first.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.grid_puzzles.sudoku.puzzles import BoxShape, Grids, Sudokus, keeps_givens, units

States = NDArray[np.uint16]  # [n, cells], bit d - 1 for digit d

_MAX_STATES = 2048  # per pass, so that a pass stays in the cache


class SearchResult(NamedTuple):
    """What a search found, per puzzle."""

    num_solutions: NDArray[np.int64]  # [n], counted up to the limit
    num_dead_ends: NDArray[np.int64]  # [n], places where the search had to turn back


class _Pass(NamedTuple):
    """States [cells, m] after one pass of deduction."""

    states: NDArray[np.uint16]
    is_dead: NDArray[np.bool_]  # [m], some rule cannot be kept
    is_settled: NDArray[np.bool_]  # [m], nothing was deduced


def initial_states(grids: Grids, boxes: BoxShape) -> States:
    """Return the states in which given cells may hold their digit, blank ones any."""
    bits = (1 << np.arange(boxes.side + 1)) >> 1
    bits[0] = (1 << boxes.side) - 1
    return bits.astype(np.uint16)[grids]


def count_solutions(grids: Grids, boxes: BoxShape, limit: int = 2) -> NDArray[np.int64]:
    """Count the solutions of each puzzle up to the limit; [n]."""
    return search(initial_states(grids, boxes), boxes, limit=limit).num_solutions


def rate(grids: Grids, boxes: BoxShape) -> NDArray[np.int32]:
    """Count how often a plain search turns back before it has proved the solution the only one; [n].

    The plain search fills cells that have one candidate left, else tries each digit of the cell with the fewest
    (the first of them). It looks through everything, so the rating does not depend on the order of the digits:
    relabelling leaves it as it is. It is 0 where no guess is needed. The puzzles must have exactly one solution.
    """
    found = search(initial_states(grids, boxes), boxes, limit=2, hidden_singles=False)
    return found.num_dead_ends.astype(np.int32)


def has_unique_solution(puzzles: Sudokus) -> NDArray[np.bool_]:
    """Tell whether a puzzle's label, known to be a valid grid, is its only solution; [n]."""
    is_unique = count_solutions(puzzles.inputs, puzzles.boxes) == 1
    return keeps_givens(puzzles.inputs, puzzles.labels) & is_unique


def search(states: States, boxes: BoxShape, *, limit: int, hidden_singles: bool = True) -> SearchResult:
    """Look for up to `limit` solutions of each state.

    All that is reported is independent of what else is searched at the same time, except that the dead ends of
    a puzzle with as many solutions as the limit are not all counted.
    """
    num_solutions = np.zeros(len(states), dtype=np.int64)
    num_dead_ends = np.zeros(len(states), dtype=np.int64)
    all_owners = np.arange(len(states))  # whose puzzle each state is of
    while len(states):
        batch, owners = states[-_MAX_STATES:], all_owners[-_MAX_STATES:]
        states, all_owners = states[:-_MAX_STATES], all_owners[:-_MAX_STATES]
        wanted = num_solutions[owners] < limit
        if not wanted.all():
            batch, owners = batch[wanted], owners[wanted]
        deduced, is_dead, is_settled = deduce(np.ascontiguousarray(batch.T), boxes, hidden_singles)
        np.add.at(num_dead_ends, owners[is_dead], 1)
        is_settled &= ~is_dead
        open_cells = (deduced & (deduced - np.uint16(1))) != 0
        is_solved = is_settled & ~open_cells.any(axis=0)
        np.add.at(num_solutions, owners[is_solved], 1)
        undecided = np.flatnonzero(is_settled & ~is_solved)
        children, parents = _branch(deduced[:, undecided], boxes)
        moving = np.flatnonzero(~is_settled & ~is_dead)
        states = np.concatenate([states, children, deduced[:, moving].T])
        all_owners = np.concatenate([all_owners, owners[undecided[parents]], owners[moving]])
    return SearchResult(np.minimum(num_solutions, limit), num_dead_ends)


def deduce(states: NDArray[np.uint16], boxes: BoxShape, hidden_singles: bool) -> _Pass:
    """Make one pass over states [cells, m]: cells with one candidate bar it from their units and, if asked for,
    digits with one place in a unit go there."""
    cells_of_unit, units_of_cell = units(boxes)
    one = np.uint16(1)
    # Products with 0 or 1 stand for `where`, which takes six times as long.
    is_open = (states & (states - one)) != 0
    in_units = (states * ~is_open).take(cells_of_unit.T, axis=0)  # [side, units, m]
    placed = np.bitwise_or.reduce(in_units, axis=0)
    # Distinct bits add up to what they make together.
    is_dead = (np.add.reduce(in_units, axis=0, dtype=np.uint16) != placed).any(axis=0)
    after = states & ~(_of_cells(placed, units_of_cell) * is_open)
    is_dead |= ~after.all(axis=0)
    if hidden_singles:
        once, is_dead_too = _digits_with_one_place(after.take(cells_of_unit.T, axis=0), boxes)
        is_dead |= is_dead_too
        here = _of_cells(once, units_of_cell) & after
        after *= here == 0
        after |= here
    return _Pass(after, is_dead, (after == states).all(axis=0))


def _of_cells(sets: NDArray[np.uint16], units_of_cell: tuple[NDArray[np.intp], ...]) -> NDArray[np.uint16]:
    """Return what a cell's row, column and box hold together, of sets [units, m]; [cells, m]."""
    row, col, box = units_of_cell
    together = sets.take(row, axis=0)
    together |= sets.take(col, axis=0)
    together |= sets.take(box, axis=0)
    return together


def _digits_with_one_place(
    in_units: NDArray[np.uint16], boxes: BoxShape
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Return the digits that only one cell of a unit may hold [units, m], and whether none may hold some [m]."""
    seen = in_units[0].copy()
    twice = np.zeros_like(seen)
    scratch = np.empty_like(seen)
    for candidates in in_units[1:]:
        twice |= np.bitwise_and(seen, candidates, out=scratch)
        seen |= candidates
    return seen & ~twice, (seen != np.uint16((1 << boxes.side) - 1)).any(axis=0)


def _branch(states: NDArray[np.uint16], boxes: BoxShape) -> tuple[States, NDArray[np.intp]]:
    """Return a state for each digit of the first cell with the fewest candidates, and its parent's index."""
    counts = candidate_counts(boxes)[states]
    counts[counts == 1] = boxes.side + 1
    cells = counts.argmin(axis=0)
    candidates = states[cells, np.arange(states.shape[1])]
    digits, parents = np.nonzero(candidates >> np.arange(boxes.side, dtype=np.uint16)[:, None] & np.uint16(1))
    children = states.T[parents]
    children[np.arange(len(parents)), cells[parents]] = (1 << digits).astype(np.uint16)
    return children, parents


@functools.cache
def candidate_counts(boxes: BoxShape) -> NDArray[np.uint8]:
    """Count the candidates in each set of them, as bits; [2**side]."""
    sets = np.arange(1 << boxes.side)
    return (sets[:, None] >> np.arange(boxes.side) & 1).sum(axis=1).astype(np.uint8)
