"""Grids as the page's script reads them, and the ids of puzzles that have no name."""

import hashlib
import string

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.kind import PADDING, Kind, Look, Token
from tools.report.payload import CellToken, Grid

_DIGITS = (string.digits + string.ascii_lowercase).encode()
_TABLE = bytes.maketrans(bytes(range(len(_DIGITS))), _DIGITS)
_DIGITS_OF_ID = 10

Cells = NDArray[np.uint8]  # [height, width]


def spelled(cells: Cells) -> Grid:
    """Return a grid as a string; empty if it has no cells."""
    height, width = cells.shape
    text = cells.tobytes().translate(_TABLE).decode("ascii")
    return "/".join(text[start : start + width] for start in range(0, height * width, width)) if width else ""


def character(token: int) -> str:
    """Return what stands for a token in the grids of kinds that show all of their tokens."""
    return chr(_DIGITS[token])


def number_wrong(grid: Grid, truth: Grid) -> int | None:
    """Return how many cells are wrong; None where the sizes differ."""
    if len(grid) != len(truth) or grid.find("/") != truth.find("/"):
        return None
    return sum(a != b for a, b in zip(grid, truth, strict=True))


def number_of_cells(grid: Grid) -> int:
    """Return how many cells a grid has."""
    return len(grid) - grid.count("/")


def shape(grid: Grid) -> tuple[int, int]:
    """Return a grid's height and width."""
    rows = grid.split("/")
    return (len(rows) if grid else 0), len(rows[0])


def puzzle_id(kind: str, asked: Grid) -> str:
    """Return an id that follows from a puzzle's input alone: the first digits of a sha256."""
    return hashlib.sha256(f"{kind}\n{asked}".encode()).hexdigest()[:_DIGITS_OF_ID]


def tokens_of(kind: Kind, look: Look) -> list[CellToken]:
    """Return what the characters of grids stand for: of ARC the colours alone, since a grid holds nothing else."""
    tokens = look.tokens
    if kind.scorer == "votes":
        tokens = tuple(token for token in tokens if token != PADDING)[1:]
    if len(tokens) > len(_DIGITS):
        raise InputError(
            f"kind {kind.name!r}: has {len(tokens)} tokens, but the page spells {len(_DIGITS)} at most; "
            "look at single puzzles with tools.show."
        )
    return [
        CellToken(
            meaning=token.meaning,
            colour=token.colour,
            text=_text(kind, token),
            letter=token.letter or token.text,
        )
        for token in tokens
    ]


def _text(kind: Kind, token: Token) -> str:
    """Return what is always written into a cell: of a maze also its ends and its path, lest colour alone tells them.

    Colours of ARC are told by their numbers, on demand.
    """
    is_letter = kind.scorer != "votes" and token.letter.isalpha()
    return token.text or (token.letter if is_letter else "")
