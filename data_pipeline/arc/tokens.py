"""Grids as token sequences, and back.

A grid lies on a square canvas, read row by row. An EOS row below it and an EOS column to its right mark where
it ends, so that the size can be read off a prediction; where they meet, and everywhere else, is PAD.
"""

import math

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.uint8]  # [height, width], colours 0..9
Tokens = NDArray[np.uint8]  # [..., canvas * canvas]

PAD_ID = 0
EOS_ID = 1
FIRST_COLOUR_ID = 2
NUM_COLOURS = 10
VOCAB_SIZE = FIRST_COLOUR_ID + NUM_COLOURS
MAX_GRID_SIDE = 30
COLOURS = (
    ("black", "#000000"),
    ("blue", "#0074d9"),
    ("red", "#ff4136"),
    ("green", "#2ecc40"),
    ("yellow", "#ffdc00"),
    ("grey", "#aaaaaa"),
    ("magenta", "#f012be"),
    ("orange", "#ff851b"),
    ("light blue", "#7fdbff"),
    ("maroon", "#870c25"),
)
"""Colours 0 to 9 as people know them."""

_CROP_CHUNK = 1024  # predictions at a time, whose boards stay in the cache


def encode(grid: Grid, canvas: int, row: int = 0, col: int = 0) -> Tokens:
    """Return the tokens of a grid whose top left cell is put at (row, col); [canvas * canvas].

    The caller has made sure that the grid fits there. Grids of one size [..., height, width] may come together.
    """
    *many, height, width = grid.shape
    bottom, right = row + height, col + width
    board = np.full((*many, canvas, canvas), PAD_ID, dtype=np.uint8)
    board[..., row:bottom, col:right] = grid + FIRST_COLOUR_ID
    if bottom < canvas:
        board[..., bottom, col:right] = EOS_ID
    if right < canvas:
        board[..., row:bottom, right] = EOS_ID
    return board.reshape(*many, canvas * canvas)


def crop_sizes(tokens: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return heights [N] and widths [N] of the grids that token sequences [N, canvas * canvas] spell.

    A grid is the largest rectangle at the top left that holds nothing but colours; on a tie, the one with
    the fewest rows. Both are 0 where the first cell is no colour.
    """
    canvas = math.isqrt(tokens.shape[1])
    heights = np.zeros(len(tokens), dtype=np.int64)
    widths = np.zeros(len(tokens), dtype=np.int64)
    rows = np.arange(1, canvas + 1)
    # One column more, blocked, so that every row has a first blocked cell.
    blocked = np.ones((min(len(tokens), _CROP_CHUNK), canvas, canvas + 1), dtype=bool)
    for start in range(0, len(tokens), _CROP_CHUNK):
        board = tokens[start : start + _CROP_CHUNK].reshape(-1, canvas, canvas)
        blocked_here = blocked[: len(board)]
        colours = (board - FIRST_COLOUR_ID).astype(
            np.uint8, copy=False
        )  # what is none wraps around to above them
        np.greater_equal(colours, NUM_COLOURS, out=blocked_here[:, :, :canvas])
        leading = blocked_here.argmax(axis=2)
        width_of_rows = np.minimum.accumulate(leading, axis=1)
        area = width_of_rows * rows
        best = area.argmax(axis=1)  # the first maximum, i.e. the fewest rows
        found = area[:, 0] > 0
        stop = start + len(board)
        heights[start:stop] = np.where(found, best + 1, 0)
        widths[start:stop] = np.take_along_axis(width_of_rows, best[:, None], axis=1)[:, 0] * found
    return heights, widths
