"""New mazes whose shortest path takes more steps than asked for.

Corridors are dug cell by cell, mostly onward from the last one and now and then from any (the growing-tree
method), never next to another corridor, so that a maze begins as a tree without loops or rooms. That works for
even sides as well as odd ones, needs no wall around the maze, and gives far longer shortest paths than walls
strewn at random, of which only one 30 x 30 maze in two hundred has a path of more than 110 steps. Start and goal
are put far apart; then walls are taken away at random, which makes loops, detours and rooms, but only as many
as leave the path long enough.

Maze `index` depends on the recipe, the split and the index alone: any worker can make any of them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.base.random import WORDS_PER_COUNTER, Bits, below, stream_key, words_at, words_from
from data_pipeline.grid_puzzles.csv_source import Puzzles
from data_pipeline.grid_puzzles.maze.puzzles import (
    FREE_ID,
    GOAL_ID,
    MAX_SIDE,
    START_ID,
    WALL_ID,
    Mazes,
    content_keys,
    distances,
    is_shortest_path,
    mark_shortest_paths,
    path_lengths,
    steps_between,
)
from data_pipeline.grid_puzzles.puzzle_type import belongs_to
from data_pipeline.schema import SplitName

MAX_IN_VAIN = 2_000
"""Mazes dug before the length is given up as out of reach, if none of them has it."""

_LANES = 512  # mazes at a time
_COUNTERS_PER_ATTEMPT = 1 << 16  # of four random words each
_OPENING_COUNTER = 1 << 15  # the ones before are for digging
_PLACING_COUNTER = _COUNTERS_PER_ATTEMPT - 1
_MAX_BRANCHING = 0.2  # the largest share of digs that begin at a random cell
_MAX_OPENED = 0.3  # the largest share of the walls that are taken away
"""Each maze draws its own shares, from 0 to these."""


class MazeRecipe(NamedTuple):
    """What decides the generated mazes, beside their split and index."""

    side: int = 30
    min_steps: int = 110
    """The shortest path takes more steps than this."""
    seed: int = 0


class _Shares(NamedTuple):
    """What a maze draws for itself; [n] each."""

    branching: NDArray[np.float64]
    opened: NDArray[np.float64]
    goal: Bits
    turned: Bits


def generate(recipe: MazeRecipe, split: SplitName, indices: NDArray[np.integer]) -> Puzzles:
    """Make the mazes with these numbers; their rating is the number of steps.

    A maze belongs to a split by a bit of a key that its symmetries share, so no maze of one split is an image of
    one of the other. Raise InputError when the length is not reached.
    """
    if not 2 <= recipe.side <= MAX_SIDE:
        raise InputError(f"side {recipe.side} of a maze: choose from 2 to {MAX_SIDE}.")
    made = np.zeros((len(indices), recipe.side**2), dtype=np.uint8)
    key = stream_key(recipe.seed, "maze", recipe.side, recipe.min_steps, split)
    num_tried, num_made = 0, 0
    for start in range(0, len(indices), _LANES):
        block = np.asarray(indices[start : start + _LANES], dtype=np.int64)
        missing, attempt = np.arange(len(block)), 0
        while len(missing):
            found, inputs = _candidates(recipe, split, block[missing], attempt, key)
            made[start + missing[found]] = inputs
            num_tried, num_made = num_tried + len(missing), num_made + len(found)
            missing, attempt = np.delete(missing, found), attempt + 1
            if num_tried >= MAX_IN_VAIN and num_made == 0:
                raise InputError(
                    f"min steps {recipe.min_steps} of side {recipe.side}: none of {num_tried} mazes has so long a "
                    "shortest path; ask for fewer steps or a larger side."
                )
    labels = mark_shortest_paths(made)
    lengths = path_lengths(made)
    if not (is_shortest_path(made, labels) & (lengths > recipe.min_steps)).all():
        raise AssertionError("a generated maze does not have the path that it was made for")
    return Puzzles(made, labels, lengths)


def _candidates(
    recipe: MazeRecipe, split: SplitName, indices: NDArray[np.int64], attempt: int, key: tuple[int, int]
) -> tuple[NDArray[np.intp], Mazes]:
    """Make those of the mazes that have a path long enough and belong to the split, after their numbers."""
    first_counter = attempt * _COUNTERS_PER_ATTEMPT
    shares = _draw_shares(words_at(indices, first_counter + _PLACING_COUNTER, key))
    is_open = _dig(recipe.side, indices, first_counter, key, shares.branching)
    starts, goals, is_long = _place_ends(is_open, recipe.min_steps, shares)
    numbers = np.flatnonzero(is_long)
    is_open, starts, goals = is_open[numbers], starts[numbers], goals[numbers]
    words = words_from(indices[numbers], first_counter + _OPENING_COUNTER, recipe.side**2, key)
    orders = np.argsort(words, axis=1, kind="stable")
    is_open = _take_away_walls(is_open, starts, goals, orders, recipe.min_steps, shares.opened[numbers])
    inputs = np.where(is_open, FREE_ID, WALL_ID).astype(np.uint8)
    lanes = np.arange(len(numbers))
    inputs[lanes, starts], inputs[lanes, goals] = START_ID, GOAL_ID
    ours = belongs_to(split, content_keys(inputs))
    return numbers[ours], inputs[ours]


def _draw_shares(words: Bits) -> _Shares:
    shares: NDArray[np.float64] = (words[:, :2] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return _Shares(shares[:, 0] * _MAX_BRANCHING, shares[:, 1] * _MAX_OPENED, words[:, 2], words[:, 3])


def _dig(
    side: int, indices: NDArray[np.int64], counter: int, key: tuple[int, int], branching: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Dig corridors; return which cells are free, [n, side * side].

    All mazes are dug at once. `ends` lists the cells of each that may be gone on from; one from which nothing
    can be dug is struck off. Each turn uses half a random word: 16 bits where to dig from, 16 which way.
    """
    n, width = len(indices), side + 2
    lanes = np.arange(n)
    # How many free neighbours a cell has; the frame has too many ever to be dug.
    crowding = np.full((n, width, width), 9, dtype=np.int8)
    crowding[:, 1:-1, 1:-1] = 0
    crowding = crowding.reshape(n, width * width)
    ends = np.zeros((n, side * side), dtype=np.int32)
    num_ends = np.ones(n, dtype=np.int64)
    moves = np.array([-width, -1, 1, width])
    random = words_at(indices, counter, key)
    first = below(random[:, 0], side * side)
    ends[:, 0] = (first // side + 1) * width + first % side + 1
    # A free cell is marked by being too crowded to be dug.
    crowding[lanes, ends[:, 0]] = 9
    crowding[lanes[:, None], ends[:, :1] + moves] += 1
    is_rare = (branching * 2**16).astype(np.int64)
    turn = 0
    while (num_ends > 0).any():
        if turn % (2 * WORDS_PER_COUNTER) == 0:
            random = words_at(indices, counter + 1 + turn // (2 * WORDS_PER_COUNTER), key)
        half = random[:, turn // 2 % WORDS_PER_COUNTER] >> np.uint64(32 * (turn % 2))
        where, way = (half & np.uint64(0xFFFF)).astype(np.int64), (half >> np.uint64(16) & np.uint64(0xFFFF))
        # Below the share, the bits still say evenly which of the cells.
        anywhere = where * num_ends // np.maximum(is_rare, 1)
        chosen = np.where(where < is_rare, anywhere, num_ends - 1).clip(0)
        cells = ends[lanes, chosen]
        can_dig = crowding[lanes[:, None], cells[:, None] + moves] == 1
        num_ways = can_dig.sum(axis=1)
        nth = (way * num_ways.astype(np.uint64) >> np.uint64(16)).astype(np.int64)
        move = (can_dig.cumsum(axis=1) <= nth[:, None]).sum(axis=1).clip(0, 3)
        digs = np.flatnonzero((num_ways > 0) & (num_ends > 0))
        stuck = np.flatnonzero((num_ways == 0) & (num_ends > 0))
        dug = cells[digs] + moves[move[digs]]
        crowding[digs, dug] = 9
        crowding[digs[:, None], dug[:, None] + moves] += 1
        ends[digs, num_ends[digs]] = dug
        num_ends[digs] += 1
        num_ends[stuck] -= 1
        ends[stuck, chosen[stuck]] = ends[stuck, num_ends[stuck]]
        turn += 1
    free = crowding.reshape(n, width, width)[:, 1:-1, 1:-1] >= 9
    return free.reshape(n, side * side)


def _place_ends(
    is_open: NDArray[np.bool_], min_steps: int, shares: _Shares
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Choose start and goal of each maze, and tell whether they are far enough apart; [n] each.

    One is a cell as far as can be from some cell, the other any that is far enough from it.
    """
    one: NDArray[np.intp] = distances(is_open, is_open.argmax(axis=1)).argmax(axis=1)
    is_far = distances(is_open, one) > min_steps
    nth = below(shares.goal, is_far.sum(axis=1).astype(np.uint64))
    other: NDArray[np.intp] = (is_far.cumsum(axis=1) > nth[:, None]).argmax(axis=1)
    swapped = (shares.turned & np.uint64(1)) == 1
    starts, goals = np.where(swapped, (other, one), (one, other))
    return starts, goals, np.asarray(is_far.any(axis=1))


def _take_away_walls(
    is_open: NDArray[np.bool_],
    starts: NDArray[np.intp],
    goals: NDArray[np.intp],
    orders: NDArray[np.intp],
    min_steps: int,
    shares: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Take away each maze's share of walls in this order, or as many as leave the path long enough.

    Each wall less can only shorten the path, so how many may go is found by halving.
    """
    is_wall = np.take_along_axis(~is_open, orders, axis=1)
    turn = np.empty(orders.shape, dtype=np.int64)
    np.put_along_axis(turn, orders, is_wall.cumsum(axis=1), axis=1)
    least = np.zeros(len(is_open), dtype=np.int64)
    most = (is_wall.sum(axis=1) * shares).astype(np.int64)
    while (unsure := np.flatnonzero(least < most)).size:
        middle = (least[unsure] + most[unsure] + 1) // 2
        opened = is_open[unsure] | (turn[unsure] <= middle[:, None])
        is_long = steps_between(opened, starts[unsure], goals[unsure]) > min_steps
        least[unsure] = np.where(is_long, middle, least[unsure])
        most[unsure] = np.where(is_long, most[unsure], middle - 1)
    return is_open | (turn <= least[:, None])
