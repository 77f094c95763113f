"""The eight images of many examples on the canvas.

Examples are encoded once, then moved and recoloured by the row.

As the rows of the canvas follow one another in a token sequence, moving a grid down and right is a shift of the
sequence: each image is stored behind as many tokens of padding, and the moved one is read from somewhat before it.
"""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.augment import NUM_DIHEDRAL, TRANSPOSING, dihedral
from data_pipeline.arc.task import Pair
from data_pipeline.arc.tokens import FIRST_COLOUR_ID, PAD_ID, VOCAB_SIZE, Grid, encode
from data_pipeline.shards.sample_format import windows

_SWAPS_SIDES = np.isin(np.arange(NUM_DIHEDRAL), TRANSPOSING)


class CanvasImages:
    """Examples numbered 0..E-1; a hidden output is all padding."""

    def __init__(self, pairs: list[Pair], canvas: int) -> None:
        self._canvas = canvas
        self._seq_len = canvas * canvas
        self._sizes = np.array([[_size(grid) for grid in pair] for pair in pairs]).reshape(-1, 2, 2)
        shape = (len(pairs), NUM_DIHEDRAL, 2, 2, self._seq_len)
        images = np.full(shape, PAD_ID, dtype=np.uint8)  # [E, 8, input and output, padding and image, S]
        for height_and_width, found in _grids_of_sizes(pairs).items():
            grids = np.stack([grid for _, _, grid in found]).reshape(-1, *height_and_width)
            numbers, sides = np.array([(number, side) for number, side, _ in found]).T
            for t in range(NUM_DIHEDRAL):
                images[numbers, t, sides, 1] = encode(dihedral(grids, t), canvas)
        self._windows = windows(images.reshape(-1), self._seq_len)

    def room(self, numbers: NDArray[np.int64], dihedrals: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return how far down and right the dihedral images of examples can be moved; [k, 2]."""
        return self._canvas - self._sizes_of_images(numbers, dihedrals).max(axis=1)

    def moved(
        self, numbers: NDArray[np.int64], dihedrals: NDArray[np.uint8], offsets: NDArray[np.int64] | None
    ) -> NDArray[np.uint8]:
        """Return dihedral images of examples, moved (down, right) by `offsets` [k, 2], in the original's colours;
        [k, 2, S]."""
        firsts = ((numbers * NUM_DIHEDRAL + dihedrals)[:, None] * 2 + np.arange(2)) * 2 + 1  # [k, 2]
        starts = firsts * self._seq_len
        if offsets is None:
            return self._windows[starts]
        down, right = offsets.T
        examples = self._windows[starts - (down * self._canvas + right)[:, None]]
        # Where the column of EOS has left the canvas on the right, it has come back as the first column.
        widths = self._sizes_of_images(numbers, dihedrals)[:, :, 1]
        wrapped = (widths + right[:, None] == self._canvas) & (right > 0)[:, None]
        boards = examples.reshape(-1, self._canvas, self._canvas)
        boards[wrapped.reshape(-1), :, 0] = PAD_ID
        return examples

    def recolour(
        self, examples: NDArray[np.uint8], starts: NDArray[np.int64], palettes: NDArray[np.uint8]
    ) -> None:
        """Give the examples [k, 2, S] of each of n puzzles the colours of its palette [n, 10], in place;
        `starts` [n] says where each puzzle begins."""
        tables = np.tile(np.arange(256, dtype=np.uint8), (len(palettes), 1))
        tables[:, FIRST_COLOUR_ID:VOCAB_SIZE] = palettes + FIRST_COLOUR_ID
        cells = examples.reshape(-1).data
        begins: list[int] = (starts * (2 * self._seq_len)).tolist()
        # A call per puzzle, as bytes.translate is faster than numpy's look-ups: they go through 64-bit indices.
        for begin, end, table in zip(begins, [*begins[1:], examples.size], tables, strict=True):
            cells[begin:end] = cells[begin:end].tobytes().translate(table.tobytes())

    def _sizes_of_images(self, numbers: NDArray[np.int64], dihedrals: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return (height, width) of input and output, [k, 2, 2]."""
        sizes = self._sizes[numbers]
        swaps = _SWAPS_SIDES[dihedrals]
        return np.where(swaps[:, None, None], sizes[:, :, ::-1], sizes)


def _size(grid: Grid | None) -> tuple[int, int]:
    return (0, 0) if grid is None else (grid.shape[0], grid.shape[1])


def _grids_of_sizes(pairs: list[Pair]) -> dict[tuple[int, int], list[tuple[int, int, Grid]]]:
    """List the grids of each size: number of the example, 0 or 1 for input or output, the grid."""
    found: dict[tuple[int, int], list[tuple[int, int, Grid]]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        for side, grid in enumerate(pair):
            if grid is not None:
                found[_size(grid)].append((number, side, grid))
    return found
