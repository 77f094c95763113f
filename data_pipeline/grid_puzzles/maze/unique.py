"""Mazes with exactly one shortest path, as a kind of grid puzzles.

A new one begins as a maze of `maze_generator`, with loops and rooms. Its goal moves to a random cell at a distance that
is asked for, and each detour that is no longer than the path is walled up where it comes back to the path. Of the
shortest paths that leaves one, and the detours as dead ends.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from data_pipeline.base.errors import InputError
from data_pipeline.base.random import Bits, below, stream_key, words_at
from data_pipeline.grid_puzzles.csv_source import Cells, CsvBlock
from data_pipeline.grid_puzzles.dataset import kind_of
from data_pipeline.grid_puzzles.maze import generator as maze_generator
from data_pipeline.grid_puzzles.maze import puzzles as maze
from data_pipeline.grid_puzzles.maze.kind import MazeOptions, MazeType
from data_pipeline.grid_puzzles.maze.puzzles import FREE_ID, GOAL_ID, START_ID, WALL_ID, Mazes
from data_pipeline.grid_puzzles.puzzle_type import Examples, NewPuzzles, belongs_to
from data_pipeline.schema import SplitName

MAX_COUNTED = 1000
"""More paths than these are not told apart."""

_GOALS_PER_MAZE = 16  # tried before another maze is dug
_MAX_ATTEMPTS = 20 * _GOALS_PER_MAZE
_INDICES_PER_ATTEMPT = 1 << 32


class NewUniqueMazes(NewPuzzles):
    side: int = Field(default=30, ge=2, le=maze.MAX_SIDE)
    """Rows and columns of new mazes."""
    min_steps: int = Field(default=100, ge=1)
    """Fewest steps on the shortest path of a new maze."""
    max_steps: int = Field(default=140, ge=1)
    """Most steps on the shortest path of a new maze."""

    @model_validator(mode="after")
    def _band_is_not_empty(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"min_steps={self.min_steps} is more than max_steps={self.max_steps}; change one of them"
            )
        return self


class MazeUniqueOptions(MazeOptions):
    generator: NewUniqueMazes | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class MazeUniqueType(MazeType):
    """Square mazes with exactly one shortest path."""

    kind = "maze-unique"
    options = MazeUniqueOptions
    new = NewUniqueMazes

    max_steps: int = 0

    @staticmethod
    def read_block(block: CsvBlock) -> tuple[Cells, Cells]:
        inputs, labels = maze.read_block(block)
        counts = num_shortest_paths(inputs)
        if (counts > 1).any():
            row = int((counts > 1).argmax())
            number = f"{counts[row]}{' or more' if counts[row] == MAX_COUNTED else ''}"
            why = f"it has {number} shortest paths from S to G where one is due; take out the line, or build kind maze"
            raise block.bad_row(row, "question", why)
        return inputs, labels

    def generate(self, seed: int, split: SplitName, indices: NDArray[np.int64]) -> Examples:
        """Make new mazes. One belongs to a split by a bit of the key that its symmetries share."""
        made = np.zeros((len(indices), 2, self.side**2), dtype=np.uint8)
        key = stream_key(seed, self.kind, self.side, self.min_steps, self.max_steps, split)
        dug, missing = made[:, 0], np.arange(len(indices))
        for attempt in range(_MAX_ATTEMPTS):
            if attempt % _GOALS_PER_MAZE == 0:
                dug = self._dig(seed, split, indices[missing] + attempt * _INDICES_PER_ATTEMPT)
            mazes = self._with_one_path(dug, words_at(indices[missing], attempt, key)[:, 0])
            ours = belongs_to(split, self.content_keys(mazes))
            made[missing[ours]] = mazes[ours]
            dug, missing = dug[~ours], missing[~ours]
            if not len(missing):
                break
        else:
            raise InputError(
                f"{split} mazes of side {self.side}: too few have one shortest path of {self.min_steps} to "
                f"{self.max_steps} steps; ask for a larger side."
            )
        inputs, labels = made[:, 0], made[:, 1]
        lengths = maze.path_lengths(inputs)
        is_good = (
            (lengths >= self.min_steps) & (lengths <= self.max_steps) & (num_shortest_paths(inputs) == 1)
        )
        if not (is_good & maze.is_shortest_path(inputs, labels)).all():
            raise AssertionError("a generated maze does not have the one path that it was made for")
        return made

    def _dig(self, seed: int, split: SplitName, indices: NDArray[np.int64]) -> Mazes:
        """Return mazes with cells as far from the start as is asked for."""
        recipe = maze_generator.MazeRecipe(self.side, self.min_steps - 1, seed)
        try:
            return maze_generator.generate(recipe, split, indices).inputs
        except InputError:
            raise InputError(
                f"min steps {self.min_steps} of side {self.side}: no maze has so long a shortest path; ask for fewer "
                "steps or a larger side."
            ) from None

    def _with_one_path(self, dug: Mazes, words: Bits) -> Examples:
        """Return the mazes with one shortest path, to a goal that the random words choose; of any split."""
        steps = maze.distances(dug != WALL_ID, (dug == START_ID).argmax(axis=1))
        is_far = (steps >= self.min_steps) & (steps <= self.max_steps)
        nth = below(words, is_far.sum(axis=1).astype(np.uint64))
        goals = (is_far.cumsum(axis=1) > nth[:, None]).argmax(axis=1)
        inputs = np.where(dug == GOAL_ID, np.uint8(FREE_ID), dug)
        inputs[np.arange(len(inputs)), goals] = GOAL_ID
        labels = maze.mark_shortest_paths(inputs)
        detours = _ends_of_detours(labels, steps)
        inputs[detours] = labels[detours] = WALL_ID
        return np.stack([inputs, labels], axis=1)


def _ends_of_detours(labels: Mazes, steps: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return the cells off the marked path from which a step leads to a later cell of it, on a shortest path.

    Without them, whatever leaves the path comes back to it too late. The steps are those from the start.
    """
    is_marked = labels >= START_ID
    marked = maze.framed(np.where(is_marked, steps, np.int32(-1)))
    neighbours = (marked[:, :-2, 1:-1], marked[:, 2:, 1:-1], marked[:, 1:-1, :-2], marked[:, 1:-1, 2:])
    following = (steps + 1).reshape(neighbours[0].shape)
    leads_back = np.any([neighbour == following for neighbour in neighbours], axis=0).reshape(steps.shape)
    return leads_back & ~is_marked & (steps >= 0)


def num_shortest_paths(inputs: Mazes) -> NDArray[np.int64]:
    """Count the shortest paths from S to G, up to MAX_COUNTED; [n]."""
    steps = maze.framed(maze.distances(inputs != WALL_ID, (inputs == START_ID).argmax(axis=1)))
    width = steps.shape[2]
    reached = np.flatnonzero(steps >= 0)
    reached = reached[np.argsort(steps.flat[reached], kind="stable")]
    firsts = np.flatnonzero(np.diff(steps.flat[reached])) + 1
    starts, *others = np.split(reached, firsts)
    counts = np.zeros(steps.size, dtype=np.int64)
    counts[starts] = 1
    for cells in others:  # with as many steps; a neighbour has one less, or has not been counted yet
        before = [counts[cells + move] for move in (-width, -1, 1, width)]
        counts[cells] = np.sum(before, axis=0).clip(max=MAX_COUNTED)
    return counts.reshape(steps.shape)[:, 1:-1, 1:-1].reshape(inputs.shape)[inputs == GOAL_ID]


MAZE_UNIQUE = kind_of(MazeUniqueType, "mazes with exactly one shortest path")
