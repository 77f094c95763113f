"""What stands in each row of a split of Sudokus or mazes.

Every puzzle of the source is a group of its own: itself and its augmentations. Row r of the training split holds
one of each group; the rows take them in order, each group beginning at a place of its own. There may be millions of
groups, so what workers need is the path of an `npy` file, which they map into memory.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.games import Examples, Game
from data_pipeline.philox import stream_key, words_at
from data_pipeline.sample_format import Samples
from data_pipeline.schema import GroupTable


@dataclass(frozen=True)
class PuzzleRows:
    """The rows of one split, to be asked for in any order and from any process."""

    game: Game
    file: Path
    """Of uint8 [groups, 2, tokens], the originals."""
    num_aug: int
    seed: int

    @property
    def group_table(self) -> GroupTable:
        """The groups as the split's index lists them; as published, all puzzles have identifier 0."""
        ones = np.ones(len(self._originals), dtype=np.int32)
        return GroupTable(
            num_puzzles=ones * (1 + self.num_aug), num_examples=ones, first_identifier=0 * ones, names=None
        )

    def samples(self, row: int, groups: NDArray[np.int64]) -> Samples:
        """The samples of these groups in a row."""
        examples = self._originals[groups]
        if self.num_aug:
            num_puzzles = 1 + self.num_aug
            first = words_at(groups, 0, stream_key(self.seed, "puzzle order", self.game.kind))[:, 0]
            augmentations = (row + first % np.uint64(num_puzzles)).astype(np.int64) % num_puzzles
            examples = self.game.augment(examples, self.seed, groups, augmentations)
        return Samples(groups, np.zeros_like(groups), np.ones_like(groups), examples)

    @cached_property
    def _originals(self) -> Examples:
        return cast(Examples, np.load(self.file, mmap_mode="r"))

    def __getstate__(self) -> dict[str, object]:
        """All but the mapped file, which is mapped again where it is used."""
        return {key: value for key, value in self.__dict__.items() if key != "_originals"}
