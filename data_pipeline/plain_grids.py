"""Grids as people write them, to tokens and back: for kinds whose tokens each have a character.

A grid is rows of text (["..2.", ...], or all in one text, with or without ends of lines) or of numbers (lists, or an
array); its answer is written in the same way.
"""

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.kind import PADDING, Kind

_NUM_CHARACTERS = 256
_NO_TOKEN = 255
_NO_CHARACTER = 0
_NO_DIGIT = -1

PlainGrid = str | Sequence[str] | Sequence[Sequence[str]] | Sequence[Sequence[int]] | NDArray[Any]


class PlainGrids(NamedTuple):
    """How the puzzles of a dataset are written."""

    characters: str
    """Of tokens 1, 2, ..."""
    given: str
    """Those of them that a question may have."""
    token_of: NDArray[np.uint8]  # [256] by character; _NO_TOKEN for one that no question has
    side: int
    """Rows and columns."""
    padding: str

    @classmethod
    def of(cls, kind: Kind, canvas: int, vocab_size: int) -> "PlainGrids":
        """Return how the puzzles of a kind and size are written; the kind must have characters."""
        characters = kind.characters[: vocab_size - 1]
        given = "".join(char for char in characters if char not in kind.answers_only)
        look = kind.look(canvas)
        token_of = np.full(_NUM_CHARACTERS, _NO_TOKEN, dtype=np.uint8)
        for token, char in enumerate(characters, start=1):
            shown = look.tokens[token].letter or look.tokens[token].text
            for spelled in (char, shown) if char in given else ():
                if len(spelled) == 1:
                    token_of[ord(spelled)] = token
        return cls(characters, given, token_of, canvas, look.tokens[0].letter or PADDING.letter)

    def encode(self, grid: PlainGrid, name: str) -> NDArray[np.uint8]:
        """Return the tokens of a grid, [side * side]; raise InputError, in which it is called `name`."""
        rows = self._rows(grid, name)
        if len(rows) != self.side:
            raise InputError(
                f"{name}: has {len(rows)} rows, but the model is of puzzles of {self.side} x {self.side}."
            )
        tokens = np.empty((self.side, self.side), dtype=np.uint8)
        for number, row in enumerate(rows):
            tokens[number] = self._row(row, f"{name}: row {number}")
        return tokens.reshape(-1)

    def decode(self, tokens: NDArray[np.uint8], like: PlainGrid) -> Any:
        """Return the grid that tokens [side * side] are, written as `like` is.

        Padding, which hardly any model answers, is the character of padding in a text and -1 among numbers.
        """
        rows = [
            "".join((self.padding + self.characters)[token] for token in row) for row in self._square(tokens)
        ]
        if isinstance(like, str):
            return ("\n" if "\n" in like.strip("\n") else "").join(rows)
        if isinstance(like[0], str):
            return rows
        if isinstance(like[0][0], str):
            cells = [list(row) for row in rows]
        else:
            cells = [[int(char) if char.isdecimal() else _NO_DIGIT for char in row] for row in rows]
        return np.array(cells) if isinstance(like, np.ndarray) else cells

    def _square(self, tokens: NDArray[np.uint8]) -> list[list[int]]:
        return tokens.reshape(self.side, self.side).tolist()

    def _rows(self, grid: Any, name: str) -> list[Any]:
        if not isinstance(grid, str):
            rows = _as_list(grid)
            if rows is None:
                raise InputError(f"{name}: is {_shown(grid)}, which is no grid; {self._how}.")
            return rows
        grid = grid.strip("\n")  # what a line of a file ends with
        if "\n" in grid:
            return grid.split("\n")
        if len(grid) != self.side**2:
            raise InputError(
                f"{name}: is a text of {len(grid)} characters, but the model is of puzzles of {self.side} x "
                f"{self.side}, which have {self.side**2} cells."
            )
        return [grid[start : start + self.side] for start in range(0, len(grid), self.side)]

    def _row(self, row: Any, name: str) -> NDArray[np.uint8]:
        """Return the tokens of a row, [side]."""
        cells = list(row) if isinstance(row, str) else _as_list(row) or [row]
        if len(cells) != self.side:
            raise InputError(
                f"{name} has {len(cells)} cells, but the model is of puzzles of {self.side} x {self.side}."
            )
        tokens = self.token_of[[_character(cell) for cell in cells]]
        if (tokens == _NO_TOKEN).any():
            column = int((tokens == _NO_TOKEN).argmax())
            raise InputError(f"{name}, column {column} is {_shown(cells[column])}; {self._how}.")
        return tokens

    @property
    def _how(self) -> str:
        """Return what to write."""
        if self.given.isdecimal():
            first = "0 (blank)" if self.given[0] == "0" else self.given[0]
            return f"write {self.side} rows of digits from {first} to {self.given[-1]}"
        return f"write {self.side} rows of text with {', '.join(map(repr, self.given))}"


def _as_list(value: Any) -> list[Any] | None:
    """Return the items of a list, tuple or array; None for anything else."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else None


def _character(cell: Any) -> int:
    """Return the number of the character that a cell is, or _NO_CHARACTER."""
    if isinstance(cell, str):
        return ord(cell) if len(cell) == 1 and ord(cell) < _NUM_CHARACTERS else _NO_CHARACTER
    if isinstance(cell, bool) or not isinstance(cell, SupportsIndex):
        return _NO_CHARACTER
    digit = index(cell)
    return ord("0") + digit if 0 <= digit <= 9 else _NO_CHARACTER


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
