"""What stands in each row of a split.

Train: row r holds one puzzle of every group, so a pass over the groups reads one row from end to end. The
rows take a group's puzzles in a random order, begun again when they are used up; the places on the canvas are
drawn anew for each row. Test: row r holds the r-th puzzle of every held-out group that has so many.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment import NUM_DIHEDRAL, AugmentationTable, dihedral, plan_augmentations
from data_pipeline.randomness import below, permutation, random_bits
from data_pipeline.sample_format import Sample
from data_pipeline.schema import GroupIndex
from data_pipeline.task import Pair, Task
from data_pipeline.tokens import FIRST_COLOUR_ID, PAD_ID, Grid, Tokens, encode

Split = Literal["train", "test"]
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

    def pairs(self, split: Split) -> tuple[Pair, ...]:
        """The examples of each of its puzzles in a split; none if it has no part in it."""
        if split == "test":
            return self.task.tests if self.task.held_out else ()
        if self.task.held_out:
            return self.task.demos
        return self.task.demos + tuple(pair for pair in self.task.tests if pair.output is not None)

    def names(self) -> list[str]:
        """Names of its puzzles, in order of identifiers."""
        return self.augmentations.names(self.task.id)


def plan_groups(tasks: list[Task], num_aug: int, seed: int) -> list[Group]:
    """One group per task, in the order given."""
    groups: list[Group] = []
    identifier = FIRST_IDENTIFIER
    for task in tasks:
        groups.append(Group(task, plan_augmentations(task, num_aug, seed), identifier))
        identifier += groups[-1].num_puzzles
    return groups


class SplitPlan:
    """The rows of one split, to be asked for in any order and from any process."""

    def __init__(self, split: Split, groups: list[Group], canvas: int, seed: int) -> None:
        self.split: Split = split
        self.groups = [group for group in groups if group.pairs(split)]
        self.num_rows = max((group.num_puzzles for group in self.groups), default=0)
        self._canvas = canvas
        self._seed = seed

    def group_index(self) -> tuple[GroupIndex, ...]:
        """The groups as the split's index lists them."""
        return tuple(
            GroupIndex(
                name=group.task.id,
                num_puzzles=group.num_puzzles,
                num_examples=len(group.pairs(self.split)),
                first_identifier=group.first_identifier,
            )
            for group in self.groups
        )

    def groups_in_row(self, row: int) -> list[int]:
        """Places of the groups that have a sample in a row."""
        if self.split == "train":
            return list(range(len(self.groups)))
        return [g for g, group in enumerate(self.groups) if row < group.num_puzzles]

    def samples(self, row: int, groups: list[int]) -> Iterator[Sample]:
        """The samples of these groups in a row."""
        for g in groups:
            encoder = self._encoders[g]
            puzzle, examples = (
                encoder.train_puzzle(row) if self.split == "train" else encoder.test_puzzle(row)
            )
            yield Sample(g, self.groups[g].first_identifier + puzzle, examples)

    @cached_property
    def _encoders(self) -> list["_GroupEncoder"]:
        return [
            _GroupEncoder(group, self.split, self._canvas, self._seed, self.num_rows) for group in self.groups
        ]


class _GroupEncoder:
    """Makes the token arrays of one group's puzzles.

    The eight dihedral images are encoded once; a puzzle is then a table look-up for its colours and, as the
    rows of the canvas follow one another, a shift of the sequence for its place.
    """

    def __init__(self, group: Group, split: Split, canvas: int, seed: int, num_rows: int) -> None:
        pairs = group.pairs(split)
        self._augmentations = group.augmentations
        self._canvas = canvas
        self._images = np.stack([_encode_pairs(pairs, canvas, t) for t in range(NUM_DIHEDRAL)])
        self._sizes = np.array([[_size(pair.input), _size(pair.output)] for pair in pairs])  # [e, 2, 2]
        if split == "train":
            task_id = group.task.id
            self._order = permutation(group.num_puzzles, seed, "puzzle order", task_id)
            self._offsets = _Offsets(len(pairs), num_rows, seed, task_id)

    def test_puzzle(self, row: int) -> tuple[int, NDArray[np.uint8]]:
        """Puzzle number, and its examples [e, 2, tokens] at the top left."""
        return row, self._palette(row)[self._images[self._augmentations.dihedrals[row]]]

    def train_puzzle(self, row: int) -> tuple[int, NDArray[np.uint8]]:
        """Puzzle number, and its examples [e, 2, tokens], all but one moved to a random place."""
        puzzle = int(self._order[row % len(self._order)])
        t = int(self._augmentations.dihedrals[puzzle])
        images = self._images[t]
        sizes = self._sizes[:, :, ::-1] if _swaps_sides(t) else self._sizes
        moved = np.full_like(images, PAD_ID)
        for e, (down, right) in enumerate(self._offsets.of_row(row, self._canvas - sizes.max(axis=1))):
            shift = down * self._canvas + right
            moved[e, :, shift:] = images[e, :, : images.shape[-1] - shift]
            if right > 0:
                for grid, width in enumerate(sizes[e, :, 1].tolist()):
                    if (
                        width + right == self._canvas
                    ):  # its EOS column has left the canvas: wrapped to column 0
                        moved[e, grid].reshape(self._canvas, self._canvas)[:, 0] = PAD_ID
        return puzzle, self._palette(puzzle)[moved]

    def _palette(self, puzzle: int) -> Tokens:
        """The image of each token."""
        colours = self._augmentations.palettes[puzzle] + np.uint8(FIRST_COLOUR_ID)
        return np.concatenate([np.arange(FIRST_COLOUR_ID, dtype=np.uint8), colours])


class _Offsets:
    """Places on the canvas of a group's examples in every row."""

    def __init__(self, num_examples: int, num_rows: int, seed: int, task_id: str) -> None:
        bits = random_bits(num_rows * (2 * num_examples + 1), seed, "translation", task_id)
        bits = bits.reshape(num_rows, 2 * num_examples + 1)
        self._unmoved = below(bits[:, 0], num_examples).astype(np.int32)
        # `below` looks at the upper half of a word only, so that half is all that is kept.
        self._bits = (bits[:, 1:] >> np.uint64(32)).astype(np.uint32).reshape(num_rows, num_examples, 2)

    def of_row(self, row: int, room: NDArray[np.int64]) -> list[list[int]]:
        """(down, right) per example, uniform over the room [e, 2] that it has, and (0, 0) for one of them."""
        bits = self._bits[row].astype(np.uint64) << np.uint64(32)
        offsets = below(bits, (room + 1).astype(np.uint64))
        offsets[self._unmoved[row]] = 0
        return offsets.tolist()


def _encode_pairs(pairs: tuple[Pair, ...], canvas: int, t: int) -> NDArray[np.uint8]:
    """Dihedral image t of each pair at the top left; a hidden output is all padding; [e, 2, tokens]."""
    tokens = np.full((len(pairs), 2, canvas * canvas), PAD_ID, dtype=np.uint8)
    for e, pair in enumerate(pairs):
        for i, grid in enumerate(pair):
            if grid is not None:
                tokens[e, i] = encode(dihedral(grid, t), canvas)
    return tokens


def _size(grid: Grid | None) -> tuple[int, int]:
    return (0, 0) if grid is None else (grid.shape[0], grid.shape[1])


def _swaps_sides(t: int) -> bool:
    return t in (1, 3, 6, 7)
