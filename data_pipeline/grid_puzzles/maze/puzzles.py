"""Mazes as token arrays: what they may hold, shortest paths, symmetries.

A maze is a square of walls `#` and free cells with a start S and a goal G; its label marks the free cells of a
shortest path between them by `o`. Steps go up, down, left and right.
"""

import math

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.random import Bits, random_bits
from data_pipeline.grid_puzzles.blocks import in_blocks
from data_pipeline.grid_puzzles.csv_source import Cells, Column, CsvBlock

CHARSET = "# SGo"
PAD_ID = 0
WALL_ID, FREE_ID, START_ID, GOAL_ID, PATH_ID = range(1, 1 + len(CHARSET))
VOCAB_SIZE = 1 + len(CHARSET)
NUM_DIHEDRAL = 8
MAX_SIDE = 64  # a row is the bits of a word

_BLOCK = 512  # mazes at a time, so that the intermediate arrays stay small

Mazes = NDArray[np.uint8]  # [n, side * side], tokens


def read_block(block: CsvBlock) -> tuple[Mazes, Mazes]:
    """Return inputs and labels of a block of lines; raise InputError at the first that is not as it should be."""
    num_cells = block.questions.shape[1]
    side = math.isqrt(num_cells)
    if side * side != num_cells or not 2 <= side <= MAX_SIDE:
        why = f"its {num_cells} cells are no square of 2 to {MAX_SIDE} rows; write all rows one after another, without"
        raise block.bad_row(0, "question", f"{why} separators")
    inputs = _tokens(block, "question", block.questions, CHARSET[:-1])
    labels = _tokens(block, "answer", block.answers, CHARSET)
    for token, what in ((START_ID, "start S"), (GOAL_ID, "goal G")):
        counts = (inputs == token).sum(axis=1)
        if (counts != 1).any():
            row = int((counts != 1).argmax())
            why = f"it has {counts[row]} cells {what[-1]}; put exactly one {what}"
            raise block.bad_row(row, "question", why)
    differs = (inputs != labels) & ~((labels == PATH_ID) & (inputs == FREE_ID))
    block.refuse_cells(
        "answer", differs, "the answer is the question with o on free cells only; copy the rest"
    )
    is_right = is_shortest_path(inputs, labels)
    if not is_right.all():
        row = int(is_right.argmin())
        length = int(path_lengths(inputs[row : row + 1])[0])
        found = "no path joins S and G" if length < 0 else f"the shortest one takes {length} steps"
        marked = (
            f"its {int((labels[row] == PATH_ID).sum())} cells o are not a shortest path from S to G ({found})"
        )
        raise block.bad_row(row, "answer", f"{marked}; mark one that is, or take out the line")
    return inputs, labels


def _tokens(block: CsvBlock, column: Column, cells: Cells, charset: str) -> Mazes:
    token_of_byte = np.full(256, PAD_ID, dtype=np.uint8)
    token_of_byte[list(charset.encode())] = np.arange(1, 1 + len(charset), dtype=np.uint8)
    tokens = token_of_byte[cells]
    block.refuse_cells(column, tokens == PAD_ID, f"use one of {', '.join(map(repr, charset))}")
    return tokens


@in_blocks(_BLOCK)
def distances(is_open: NDArray[np.bool_], starts: NDArray[np.integer]) -> NDArray[np.int32]:
    """Count the steps from a start to each cell, -1 if out of reach; open cells and result [n, side * side].

    All mazes are flooded at once, one step at a time.
    """
    side = math.isqrt(is_open.shape[1])
    rows = np.arange(len(is_open))
    # A wall to the right of each row keeps steps from leaving at one side and coming back at the other.
    dry = np.zeros((len(is_open), side, side + 1), dtype=np.uint8)
    dry[:, :, :side] = is_open.reshape(len(is_open), side, side)
    dry = dry.reshape(len(is_open), side * (side + 1))
    front = np.zeros_like(dry)
    front[rows, starts // side * (side + 1) + starts % side] = 1
    dry &= ~front & 1
    steps = front.astype(np.int32)  # 1 more than the distance, 0 where not reached
    step = 1
    while front.any():
        step += 1
        wet = np.zeros_like(front)
        for shift in (1, side + 1):
            wet[:, shift:] |= front[:, :-shift]
            wet[:, :-shift] |= front[:, shift:]
        wet &= dry
        dry ^= wet
        steps += wet * np.int32(step)
        front = wet
    return steps.reshape(len(is_open), side, side + 1)[:, :, :side].reshape(is_open.shape) - 1


def steps_between(
    is_open: NDArray[np.bool_], starts: NDArray[np.integer], goals: NDArray[np.integer]
) -> NDArray[np.int32]:
    """Count the steps on the shortest path between two cells of each maze, -1 where there is none; [n].

    Knowing less than `distances` it is ten times as fast: a row of cells is the bits of one word.
    """
    side, n = math.isqrt(is_open.shape[1]), len(is_open)
    one, rows, lanes = np.uint64(1), np.arange(side)[:, None], np.arange(n)
    bit_of_column = one << np.arange(side, dtype=np.uint64)
    dry = (is_open.reshape(n, side, side) * bit_of_column).sum(axis=2, dtype=np.uint64).T.copy()
    front = np.where(rows == starts // side, bit_of_column[starts % side], np.uint64(0))
    goal_rows, goal_bits = goals // side, bit_of_column[goals % side]
    steps = np.where(starts == goals, 0, -1).astype(np.int32)
    step = 0
    while front.any() and (steps < 0).any():
        step += 1
        wet = front << one | front >> one
        wet[1:] |= front[:-1]
        wet[:-1] |= front[1:]
        wet &= dry
        dry ^= wet
        steps[(wet[goal_rows, lanes] & goal_bits != 0) & (steps < 0)] = step
        front = wet
    return steps


@in_blocks(_BLOCK)
def path_lengths(inputs: Mazes) -> NDArray[np.int32]:
    """Count the steps on the shortest path from S to G, -1 where there is none; [n]."""
    ends = ((inputs == token).argmax(axis=1) for token in (START_ID, GOAL_ID))
    return steps_between(inputs != WALL_ID, *ends)


@in_blocks(_BLOCK)
def is_path(inputs: Mazes, labels: Mazes) -> NDArray[np.bool_]:
    """Tell whether the cells `o` of a label are one path from S to G, and all else is as in the input; [n].

    In a path all cells are connected, each `o` has exactly two neighbours among S, `o` and G, and S and G have one.
    """
    is_copied = ((labels == inputs) | ((labels == PATH_ID) & (inputs == FREE_ID))).all(axis=1)
    # The shortest way along the marks takes all of them only if none is a branch, a loop or apart from the others.
    along_marks = path_lengths(np.where(labels == FREE_ID, WALL_ID, labels).astype(np.uint8))
    return is_copied & (along_marks == _num_steps(labels))


def is_shortest_path(inputs: Mazes, labels: Mazes) -> NDArray[np.bool_]:
    """Tell whether the cells `o` of a label are a path as short as any from S to G; [n]."""
    return is_path(inputs, labels) & (path_lengths(inputs) == _num_steps(labels))


def _num_steps(labels: Mazes) -> NDArray[np.int64]:
    """Count the steps of a path with the marked cells."""
    return (labels == PATH_ID).sum(axis=1) + 1


def framed(steps: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the squares of steps [n, side * side] with -1 around them, [n, side + 2, side + 2]."""
    side = math.isqrt(steps.shape[1])
    return np.pad(steps.reshape(len(steps), side, side), ((0, 0), (1, 1), (1, 1)), constant_values=-1)


def mark_shortest_paths(inputs: Mazes) -> Mazes:
    """Return the labels: each maze with the free cells of one shortest path marked.

    Of several, it is the one that, walked back from G, goes up rather than left, right or down, in this order;
    a fixed choice is one that a model can learn. There must be a path.
    """
    side = math.isqrt(inputs.shape[1])
    rows = np.arange(len(inputs))
    at: NDArray[np.intp] = (inputs == GOAL_ID).argmax(axis=1)
    steps = distances(inputs != WALL_ID, (inputs == START_ID).argmax(axis=1))
    flat = framed(steps).reshape(len(inputs), (side + 2) ** 2)
    at = (at // side + 1) * (side + 2) + at % side + 1
    marks = np.zeros(flat.shape, dtype=np.bool_)
    left = flat[rows, at]
    moves: NDArray[np.intp] = np.array([-(side + 2), -1, 1, side + 2])
    for _ in range(int(left.max(initial=0)) - 1):
        left = np.maximum(left - 1, 0)
        goes_on = left > 0
        closer = flat[rows[:, None], at[:, None] + moves] == left[:, None]
        at = np.where(goes_on, at + moves[closer.argmax(axis=1)], at)
        marks[rows[goes_on], at[goes_on]] = True
    inner = marks.reshape(-1, side + 2, side + 2)[:, 1:-1, 1:-1].reshape(inputs.shape)
    return np.where(inner, np.uint8(PATH_ID), inputs)


def dihedral(mazes: Mazes, t: int) -> Mazes:
    """Turn mazes by t quarter turns (0..3), mirror them left-right (4), up-down (5), or transpose them along
    the main (6) or the other diagonal (7): the ids of `data_pipeline.arc.augment`."""
    return mazes[:, _dihedral_sources(math.isqrt(mazes.shape[1]))[t]]


def augment(mazes: Mazes, ts: NDArray[np.integer]) -> Mazes:
    """Return dihedral image ts[i] of maze i; [n, cells]."""
    return np.take_along_axis(mazes, _dihedral_sources(math.isqrt(mazes.shape[1]))[ts], axis=1)


def _dihedral_sources(side: int) -> NDArray[np.intp]:
    """Return where each cell of an image comes from; [8, cells]."""
    cells = np.arange(side * side).reshape(side, side)
    turned = [np.rot90(cells, k) for k in range(4)]
    images = [*turned, np.fliplr(cells), np.flipud(cells), cells.T, np.fliplr(turned[1])]
    return np.stack([image.reshape(-1) for image in images])


@in_blocks(_BLOCK)
def content_keys(inputs: Mazes) -> Bits:
    """Return a key per maze that its eight symmetries share; [n]. Start and goal are not interchangeable."""
    weights = random_bits(VOCAB_SIZE * inputs.shape[1], "maze cells").reshape(VOCAB_SIZE, inputs.shape[1])
    cells = np.arange(int(inputs.shape[1]))
    images = (weights[dihedral(inputs, t), cells].sum(axis=1, dtype=np.uint64) for t in range(NUM_DIHEDRAL))
    return np.min([*images], axis=0)
