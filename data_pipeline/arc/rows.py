"""What each row of a split holds.

Train: row r holds one puzzle of every group, so a pass over the groups reads one row from end to end. The
rows take a group's puzzles in a random order, begun again when they are used up; the offsets on the canvas are
drawn anew for each row. Test: row r holds the r-th puzzle of every held-out group that has that many.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.augment import (
    NUM_DIHEDRAL,
    TRANSPOSING,
    AugmentationTable,
    dihedral,
    plan_augmentations,
)
from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import FIRST_COLOUR_ID, PAD_ID, VOCAB_SIZE, Grid, encode
from data_pipeline.base.random import below, permutation, random_bits
from data_pipeline.schema import GroupTable, SplitName
from data_pipeline.shards.sample_format import Samples, windows
from data_pipeline.shards.writer import Compression

FIRST_IDENTIFIER = 1  # 0 is the blank one


@dataclass(frozen=True, eq=False)
class Group:
    """A task with its augmentations; its puzzles' identifiers are first_identifier, +1, ..."""

    task: Task
    augmentations: AugmentationTable
    first_identifier: int

    @property
    def num_puzzles(self) -> int:
        return len(self.augmentations.dihedrals)

    def pairs(self, split: SplitName) -> tuple[Pair, ...]:
        """Return the examples of each of its puzzles in a split; none if it is not in it."""
        if split == "train":
            return self.task.training_pairs
        return self.task.tests if self.task.held_out else ()

    def names(self) -> list[str]:
        """Return the names of its puzzles, in order of identifiers."""
        return self.augmentations.names(self.task.id)


def plan_groups(tasks: list[Task], num_aug: int, seed: int) -> list[Group]:
    """Return one group per task, in the order given."""
    groups: list[Group] = []
    identifier = FIRST_IDENTIFIER
    for task in tasks:
        groups.append(Group(task, plan_augmentations(task, num_aug, seed), identifier))
        identifier += groups[-1].num_puzzles
    return groups


class SplitPlan:
    """The rows of one split, to be asked for in any order and from any process."""

    compression: Compression = "small"

    def __init__(self, split: SplitName, groups: list[Group], canvas: int, seed: int) -> None:
        self.split: SplitName = split
        self.groups = [group for group in groups if group.pairs(split)]
        self.num_rows = max((group.num_puzzles for group in self.groups), default=0)
        self.group_table = GroupTable(
            num_puzzles=np.array([group.num_puzzles for group in self.groups], dtype=np.int32),
            num_examples=np.array([len(group.pairs(split)) for group in self.groups], dtype=np.int32),
            first_identifier=np.array([group.first_identifier for group in self.groups], dtype=np.int32),
            names=tuple(group.task.id for group in self.groups),
        )
        """The groups as the split's index lists them."""
        self._canvas = canvas
        self._seed = seed

    def samples(self, row: int, groups: NDArray[np.int64]) -> Samples:
        """Return the samples of these groups in a row."""
        tables = self._tables
        puzzles = (
            self._order.puzzles_in_row(row, groups) if self.split == "train" else np.full(len(groups), row)
        )
        entries = tables.first_puzzle[groups] + puzzles
        num_examples = self.group_table.num_examples[groups].astype(np.int64)
        first_examples = tables.first_example[groups]
        starts = np.cumsum(num_examples) - num_examples
        numbers = np.repeat(first_examples - starts, num_examples) + np.arange(int(num_examples.sum()))
        dihedrals = np.repeat(tables.dihedrals[entries], num_examples)
        offsets = None
        if self.split == "train":
            room = tables.images.room(numbers, dihedrals)
            offsets = self._offsets.in_row(row, numbers, room)
        examples = tables.images.moved(numbers, dihedrals, offsets)
        tables.images.recolour(examples, starts, tables.palettes[entries])
        identifiers = self.group_table.first_identifier[groups].astype(np.int64) + puzzles
        return Samples(groups, identifiers, num_examples, examples)

    # Made where they are used: in the worker processes.

    @cached_property
    def _tables(self) -> "_Tables":
        return _Tables(self.split, self.groups, self._canvas)

    @cached_property
    def _order(self) -> "_PuzzleOrder":
        return _PuzzleOrder(self.groups, self._seed)

    @cached_property
    def _offsets(self) -> "_Offsets":
        return _Offsets(self.groups, self.group_table.num_examples, self.num_rows, self._seed)


class _Tables:
    """All groups' examples, and all their puzzles' augmentations, one after the other."""

    def __init__(self, split: SplitName, groups: list[Group], canvas: int) -> None:
        self.images = CanvasImages([pair for group in groups for pair in group.pairs(split)], canvas)
        self.first_example = _begins([len(group.pairs(split)) for group in groups])
        self.first_puzzle = _begins([group.num_puzzles for group in groups])
        self.dihedrals = np.concatenate([group.augmentations.dihedrals for group in groups])
        self.palettes = np.concatenate([group.augmentations.palettes for group in groups])


class _PuzzleOrder:
    """The order in which the rows of a training split take the puzzles of each group."""

    def __init__(self, groups: list[Group], seed: int) -> None:
        counts = [group.num_puzzles for group in groups]
        self._begins = _begins(counts)
        self._counts = np.array(counts, dtype=np.int64)
        orders = [permutation(group.num_puzzles, seed, "puzzle order", group.task.id) for group in groups]
        self._puzzles = np.concatenate(orders).astype(np.int32)

    def puzzles_in_row(self, row: int, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of these groups' puzzles in a row, [n]."""
        return self._puzzles[self._begins[groups] + row % self._counts[groups]].astype(np.int64)


class _Offsets:
    """Offsets on the canvas of all examples of a training split in every row."""

    def __init__(
        self, groups: list[Group], num_examples: NDArray[np.int32], num_rows: int, seed: int
    ) -> None:
        begins = _begins(num_examples.tolist())
        total = int(num_examples.sum())
        # `below` looks at the upper half of a word only, so that half is all that is kept.
        self._bits = np.empty((num_rows, total, 2), dtype=np.uint32)
        self._unmoved = np.empty((num_rows, len(groups)), dtype=np.int32)
        """The one example of each group that stays at the top left."""
        for g, (group, begin, count) in enumerate(zip(groups, begins, num_examples.tolist(), strict=True)):
            bits = random_bits(num_rows * (2 * count + 1), seed, "translation", group.task.id)
            bits = bits.reshape(num_rows, 2 * count + 1)
            self._unmoved[:, g] = begin + below(bits[:, 0], count)
            halves = (bits[:, 1:] >> np.uint64(32)).astype(np.uint32)
            self._bits[:, begin : begin + count] = halves.reshape(num_rows, count, 2)

    def in_row(self, row: int, numbers: NDArray[np.int64], room: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (down, right) of these examples, [k, 2]: uniform over the room that each has, and (0, 0)
        for one of each group."""
        bits = self._bits[row][numbers].astype(np.uint64) << np.uint64(32)
        offsets = below(bits, (room + 1).astype(np.uint64))
        moves = np.ones(len(self._bits[row]), dtype=bool)
        moves[self._unmoved[row]] = False
        return offsets * moves[numbers, None]


def _begins(counts: list[int]) -> NDArray[np.int64]:
    """Return where each stretch begins when stretches of these lengths follow one another."""
    return np.cumsum([0, *counts[:-1]])


_SWAPS_SIDES = np.isin(np.arange(NUM_DIHEDRAL), TRANSPOSING)


class CanvasImages:
    """The eight images of examples 0..E-1 on the canvas, encoded once, then moved and recoloured.

    A hidden output is padding.

    As the rows of the canvas follow one another in a token sequence, moving a grid down and right is a shift of the
    sequence: each image is stored behind as many tokens of padding, and the moved one is read from somewhat before it.
    """

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
