"""Sudoku as a kind of grid puzzles."""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from data_pipeline.base.random import Bits
from data_pipeline.grid_puzzles.csv_source import Cells, CsvBlock
from data_pipeline.grid_puzzles.dataset import kind_of
from data_pipeline.grid_puzzles.puzzle_type import Examples, NewPuzzles, PuzzleOptions, PuzzleType
from data_pipeline.grid_puzzles.sudoku import generator as sudoku_generator
from data_pipeline.grid_puzzles.sudoku import puzzles as sudoku
from data_pipeline.grid_puzzles.sudoku import symmetry as sudoku_symmetry
from data_pipeline.kind import PADDING, Boards, Look, Measured, Token
from data_pipeline.schema import SplitName


def _number(value: object) -> object:
    """Turn the text of a configuration into the number that a literal is compared with."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class NewSudokus(NewPuzzles):
    side: Annotated[Literal[4, 6, 9], BeforeValidator(_number)] = 9  # pyright: ignore[reportIncompatibleVariableOverride]
    """Digits of new puzzles."""
    min_steps: None = None
    """No option: dataset.json has had the key of all new puzzles."""


class SudokuOptions(PuzzleOptions):
    min_difficulty: int | None = Field(default=None, ge=0)
    """Smallest rating to keep; of new puzzles the backtracks of a solver."""
    generator: NewSudokus | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


def is_valid(inputs: Cells, preds: Cells) -> NDArray[np.bool_]:
    """Tell whether a prediction, in tokens, is a complete grid that obeys the rules and keeps the givens; [n]."""
    grids = sudoku.decode(preds)
    boxes = sudoku.BOX_SHAPES[math.isqrt(grids.shape[1])]
    return sudoku.keeps_givens(sudoku.decode(inputs), grids) & sudoku.is_solution(grids, boxes)


@dataclass(frozen=True)
class SudokuType(PuzzleType):
    """Sudoku with 4, 6 or 9 digits."""

    kind = "sudoku"
    options = SudokuOptions
    new = NewSudokus
    characters = b"0123456789"
    checks = MappingProxyType({"valid_accuracy": is_valid})

    min_difficulty: int = 0

    @staticmethod
    def read_block(block: CsvBlock) -> tuple[Cells, Cells]:
        inputs, labels = sudoku.read_block(block)
        return sudoku.encode(inputs), sudoku.encode(labels)

    @property
    def vocab_size(self) -> int:
        return self._boxes.vocab_size

    def augment(
        self, examples: Examples, seed: int, puzzles: NDArray[np.int64], augmentations: NDArray[np.int64]
    ) -> Examples:
        numbers = sudoku_symmetry.draw(seed, puzzles, augmentations, self._boxes)
        return _examples(sudoku_symmetry.augment(_grids(examples), numbers))

    def content_keys(self, examples: Examples) -> Bits:
        return sudoku.content_keys(_grids(examples))

    def same_keys(self, examples: Examples) -> Bits:
        return sudoku.relabelling_keys(_grids(examples))

    def generate(self, seed: int, split: SplitName, indices: NDArray[np.int64]) -> Examples:
        recipe = sudoku_generator.Recipe(self._boxes, self.min_difficulty, seed)
        return _examples(sudoku_generator.generate(recipe, split, indices))

    def look(self) -> Look:
        boxes = sudoku.BOX_SHAPES.get(self.side)
        digits = (Token(f"digit {i}", "white", str(i)) for i in range(1, self.side + 1))
        tokens = (PADDING, Token("blank", "white", letter="."), *digits)
        return Look(tokens, "givens", _num_givens, boxes and (boxes.rows, boxes.cols), sudoku.FIRST_TOKEN_ID)

    @property
    def _boxes(self) -> sudoku.BoxShape:
        return sudoku.BOX_SHAPES[self.side]


def _grids(examples: Examples) -> sudoku.Sudokus:
    inputs, labels = (sudoku.decode(examples[:, side]) for side in (0, 1))
    return sudoku.Sudokus(inputs, labels, np.zeros(len(examples), dtype=np.int32))


def _examples(grids: sudoku.Sudokus) -> Examples:
    return np.stack([sudoku.encode(grids.inputs), sudoku.encode(grids.labels)], axis=1)


def _num_givens(inputs: Boards, labels: Boards) -> Measured:
    return {"": (inputs > sudoku.FIRST_TOKEN_ID).sum(axis=(1, 2))}


SUDOKU = kind_of(SudokuType, "Sudokus")
