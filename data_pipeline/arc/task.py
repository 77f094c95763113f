"""One ARC task, whatever file it came from."""

from dataclasses import dataclass
from typing import NamedTuple

from data_pipeline.arc.tokens import Grid


class Pair(NamedTuple):
    """An input grid and what it becomes; the output is None where a release hides it."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True, eq=False)
class Task:
    """Demonstration pairs, test pairs, and whether the test pairs are kept out of training."""

    id: str
    demos: tuple[Pair, ...]
    tests: tuple[Pair, ...]
    held_out: bool
    origin: str  # the file it was read from, for messages
    asked_for: bool = False  # held out since its source is given with :evaluation, not by a name
    left_out: frozenset[int] = frozenset()  # numbers of `pairs` that must not train, held out elsewhere

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return self.demos + self.tests

    @property
    def training_pairs(self) -> tuple[Pair, ...]:
        """Return the pairs that may train: the demonstrations, and test pairs that are neither held out nor hidden."""
        last = len(self.demos) if self.held_out else len(self.pairs)
        return tuple(
            pair
            for number, pair in enumerate(self.pairs[:last])
            if pair.output is not None and number not in self.left_out
        )

    @property
    def has_hidden_output(self) -> bool:
        return any(pair.output is None for pair in self.tests)

    @property
    def largest_side(self) -> int:
        """Count the cells along the longest side of any of its grids."""
        return max(side for pair in self.pairs for grid in pair if grid is not None for side in grid.shape)
