"""What each row of a split of grid puzzles holds.

Every puzzle of the source makes one group: itself and its augmentations. Each row of the training split holds one
puzzle of every group. From row to row each group goes through its puzzles in order, beginning with one drawn for
it. There may be millions of groups, so workers get the path of a file and read from it what a shard needs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline import subsets
from data_pipeline.base.random import stream_key, words_at
from data_pipeline.grid_puzzles import scratch
from data_pipeline.grid_puzzles.puzzle_type import Examples, PuzzleType
from data_pipeline.schema import GroupTable, SubsetInfo
from data_pipeline.shards.sample_format import Samples
from data_pipeline.shards.writer import Compression

_BLOCK = 16384  # puzzles at a time


@dataclass(frozen=True)
class PuzzleRows:
    """The rows of one split, to be asked for in any order and from any process."""

    puzzle_type: PuzzleType
    file: Path
    """The originals, uint8 [groups, 2, tokens] in a file of `scratch`."""
    num_aug: int
    seed: int

    @property
    def compression(self) -> Compression:
        """Return the fast one: the other gains nothing here."""
        return "fast"

    @property
    def group_table(self) -> GroupTable:
        """Return the groups as the split's index lists them; as published, all puzzles have identifier 0."""
        ones = np.ones(scratch.num_bytes(self.file) // self._bytes_of_puzzle, dtype=np.int32)
        return GroupTable(
            num_puzzles=ones * (1 + self.num_aug), num_examples=ones, first_identifier=0 * ones, names=None
        )

    def subset(self) -> SubsetInfo:
        """Return the set of the originals: of each its input and then its label, a token a byte."""
        size = self._bytes_of_puzzle
        blocks = scratch.blocks(self.file, _BLOCK * size)
        return subsets.described(
            block[start : start + size] for block in blocks for start in range(0, len(block), size)
        )

    def samples(self, row: int, groups: NDArray[np.int64]) -> Samples:
        """Return the samples that these groups, which follow one another, have in a row."""
        examples = self._originals(groups)
        if self.num_aug:
            num_puzzles = 1 + self.num_aug
            first = words_at(groups, 0, stream_key(self.seed, "puzzle order", self.puzzle_type.kind))[:, 0]
            augmentations = (row + (first % np.uint64(num_puzzles)).astype(np.int64)) % num_puzzles
            examples = self.puzzle_type.augment(examples, self.seed, groups, augmentations)
        return Samples(groups, np.zeros_like(groups), np.ones_like(groups), examples)

    def _originals(self, groups: NDArray[np.int64]) -> Examples:
        size = self._bytes_of_puzzle
        return scratch.read(self.file, len(groups) * size, int(groups[0]) * size).reshape(len(groups), 2, -1)

    @property
    def _bytes_of_puzzle(self) -> int:
        return 2 * self.puzzle_type.side**2
