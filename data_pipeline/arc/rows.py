"""What each row of a split holds.

Train: row r holds one puzzle of every group, so a pass over the groups reads one row from end to end. The
rows take a group's puzzles in a random order, begun again when they are used up; the offsets on the canvas are
drawn anew for each row. Test: row r holds the r-th puzzle of every held-out group that has that many.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.augment import AugmentationTable, plan_augmentations
from data_pipeline.arc.canvas import CanvasImages
from data_pipeline.arc.task import Pair, Task
from data_pipeline.base.random import below, permutation, random_bits
from data_pipeline.schema import GroupTable, SplitName
from data_pipeline.shards.sample_format import Samples
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
