"""Mazes as a kind of grid puzzles."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data_pipeline.base.random import Bits
from data_pipeline.grid_puzzles.csv_source import Cells, CsvBlock
from data_pipeline.grid_puzzles.dataset import kind_of
from data_pipeline.grid_puzzles.maze import generator as maze_generator
from data_pipeline.grid_puzzles.maze import puzzles as maze
from data_pipeline.grid_puzzles.puzzle_type import Examples, NewPuzzles, PuzzleOptions, PuzzleType
from data_pipeline.kind import PADDING, Boards, Look, Measured, Token
from data_pipeline.options import OF_SOURCE
from data_pipeline.schema import SplitName

_CELLS = (
    ("wall", "#30343b"),
    ("free", "#ffffff"),
    ("start", "#2ecc40"),
    ("goal", "#ff4136"),
    ("path", "#ffb84d"),
)


class NewMazes(NewPuzzles):
    side: int = Field(default=30, ge=2, le=maze.MAX_SIDE)
    """Rows and columns of new mazes."""
    min_steps: int = Field(default=110, ge=0)
    """Shortest paths of new mazes take more steps than this."""


class MazeOptions(PuzzleOptions):
    num_aug: int = Field(default=0, ge=0, le=maze.NUM_DIHEDRAL - 1)
    """Rotations and reflections of each training maze."""
    min_difficulty: Annotated[int | None, OF_SOURCE] = Field(default=None, ge=0)
    """Smallest rating to keep of a source."""
    generator: NewMazes | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class MazeType(PuzzleType):
    """Square mazes."""

    kind = "maze"
    options = MazeOptions
    new = NewMazes
    characters = maze.CHARSET.encode()
    answers_only = maze.CHARSET[-1:].encode()
    checks = MappingProxyType({"valid_path": maze.is_path, "optimal_path": maze.is_shortest_path})

    min_steps: int = 0

    @staticmethod
    def read_block(block: CsvBlock) -> tuple[Cells, Cells]:
        return maze.read_block(block)

    @property
    def vocab_size(self) -> int:
        return maze.VOCAB_SIZE

    def augment(
        self, examples: Examples, seed: int, puzzles: NDArray[np.int64], augmentations: NDArray[np.int64]
    ) -> Examples:
        both = examples.reshape(2 * len(examples), -1)
        return maze.augment(both, np.repeat(augmentations, 2)).reshape(examples.shape)

    def content_keys(self, examples: Examples) -> Bits:
        return maze.content_keys(examples[:, 0])

    def generate(self, seed: int, split: SplitName, indices: NDArray[np.int64]) -> Examples:
        recipe = maze_generator.MazeRecipe(self.side, self.min_steps, seed)
        mazes = maze_generator.generate(recipe, split, indices)
        return np.stack([mazes.inputs, mazes.labels], axis=1)

    def look(self) -> Look:
        cells = (
            Token(f"{char!r} {name}", code, letter=char)
            for char, (name, code) in zip(maze.CHARSET, _CELLS, strict=True)
        )
        return Look((PADDING, *cells), "length of the path", _path_lengths, blank=maze.FREE_ID)


def _path_lengths(inputs: Boards, labels: Boards) -> Measured:
    return {"": (labels == maze.PATH_ID).sum(axis=(1, 2)) + 1}


MAZE = kind_of(MazeType, "mazes")
