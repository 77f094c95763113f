"""Sudoku and mazes, as the builder sees them: puzzles as token arrays [n, 2, tokens], input before label."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.random import Bits
from data_pipeline.grid_puzzles import maze, maze_generator, sudoku, sudoku_generator, sudoku_symmetry
from data_pipeline.grid_puzzles.csv_source import Selection
from data_pipeline.options import Kind
from data_pipeline.schema import SplitName

Examples = NDArray[np.uint8]  # [n, 2, tokens]


class Tokens(NamedTuple):
    """Inputs and labels apart, [n, tokens] each: millions of puzzles are not copied without need."""

    inputs: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @staticmethod
    def empty(width: int) -> "Tokens":
        """No puzzles of so many tokens."""
        return Tokens(*np.zeros((2, 0, width), dtype=np.uint8))

    @property
    def num_puzzles(self) -> int:
        return len(self.inputs)

    def take(self, places: NDArray[np.bool_] | slice) -> "Tokens":
        """Some of the puzzles."""
        return Tokens(self.inputs[places], self.labels[places])

    def examples(self) -> Examples:
        """Them together."""
        return np.stack([self.inputs, self.labels], axis=1)


class Game(Protocol):
    """A kind of puzzles of one size."""

    @property
    def kind(self) -> Kind: ...

    @property
    def side(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def augment(
        self, examples: Examples, seed: int, puzzles: NDArray[np.int64], augmentations: NDArray[np.int64]
    ) -> Examples:
        """Augmentation augmentations[i] of the puzzle with number puzzles[i], examples[i]; 0 changes nothing."""
        ...

    def content_keys(self, examples: Examples) -> Bits:
        """A key per puzzle that no augmentation changes, [n]."""
        ...

    def generate(self, seed: int, split: SplitName, indices: NDArray[np.int64]) -> Examples:
        """New puzzles, each a function of its index; raises InputError where there are none as hard as asked."""
        ...

    def same_keys(self, examples: Examples) -> Bits:
        """A key per puzzle that those share of which one is enough, [n]."""
        ...


class SudokuGame(NamedTuple):
    """Sudoku with 4, 6 or 9 digits."""

    side: int
    min_difficulty: int = 0

    @staticmethod
    def read_csv(files: list[Path], selection: Selection, *, show_progress: bool) -> Tokens:
        """The Sudokus of CSV files; raises InputError."""
        puzzles = sudoku.read_csv(files, selection, show_progress=show_progress)
        for grids in (puzzles.inputs, puzzles.labels):
            grids += sudoku.FIRST_TOKEN_ID  # as `encode` does, but in place
        return Tokens(puzzles.inputs, puzzles.labels)

    @property
    def kind(self) -> Kind:
        return "sudoku"

    @property
    def vocab_size(self) -> int:
        return self._boxes.vocab_size

    @property
    def _boxes(self) -> sudoku.BoxShape:
        return sudoku.BOX_SHAPES[self.side]

    def augment(
        self, examples: Examples, seed: int, puzzles: NDArray[np.int64], augmentations: NDArray[np.int64]
    ) -> Examples:
        numbers = sudoku_symmetry.draw(seed, puzzles, augmentations, self._boxes)
        return _sudoku_examples(sudoku_symmetry.augment(self._array(examples), numbers))

    def content_keys(self, examples: Examples) -> Bits:
        return sudoku.content_keys(self._array(examples))

    def same_keys(self, examples: Examples) -> Bits:
        return sudoku.relabelling_keys(self._array(examples))

    def generate(self, seed: int, split: SplitName, indices: NDArray[np.int64]) -> Examples:
        recipe = sudoku_generator.Recipe(self._boxes, self.min_difficulty, seed)
        return _sudoku_examples(sudoku_generator.generate(recipe, split, indices))

    def _array(self, examples: Examples) -> sudoku.PuzzleArray:
        inputs, labels = (sudoku.decode(examples[:, side]) for side in (0, 1))
        return sudoku.PuzzleArray(inputs, labels, np.zeros(len(examples), dtype=np.int32), self._boxes)


class MazeGame(NamedTuple):
    """Square mazes."""

    side: int
    min_steps: int = 0

    @staticmethod
    def read_csv(files: list[Path], selection: Selection, *, show_progress: bool) -> Tokens:
        """The mazes of CSV files; raises InputError."""
        mazes = maze.read_csv(files, selection, show_progress=show_progress)
        return Tokens(mazes.inputs, mazes.labels)

    @property
    def kind(self) -> Kind:
        return "maze"

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

    def same_keys(self, examples: Examples) -> Bits:
        return self.content_keys(examples)

    def generate(self, seed: int, split: SplitName, indices: NDArray[np.int64]) -> Examples:
        recipe = maze_generator.MazeRecipe(self.side, self.min_steps, seed)
        mazes = maze_generator.generate(recipe, split, indices)
        return np.stack([mazes.inputs, mazes.labels], axis=1)


def _sudoku_examples(puzzles: sudoku.PuzzleArray) -> Examples:
    return np.stack([sudoku.encode(puzzles.inputs), sudoku.encode(puzzles.labels)], axis=1)
