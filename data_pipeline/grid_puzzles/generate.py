"""New puzzles for a dataset, made by many processes and kept on disk until it is built.

Puzzles are made in blocks, each a file in the folder of the build. A build that was killed finds those again, and
the parts of a build, which all need all of them, make each but once: every part begins at another block.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import Part, run_jobs
from data_pipeline.base.progress import progress_bar
from data_pipeline.grid_puzzles import scratch
from data_pipeline.grid_puzzles.puzzle_type import Examples, PuzzleType
from data_pipeline.schema import SplitName

_BLOCK = 128  # puzzles in a block
_MAX_REPEATS = 5_000  # puzzles in a row that were there before


class Blocks(NamedTuple):
    """The blocks of one split."""

    puzzle_type: PuzzleType
    seed: int
    split: SplitName
    folder: Path

    def make(self, number: int) -> None:
        """Make a block unless it is there."""
        if not scratch.is_sound(self._file(number)):
            indices = np.arange(number * _BLOCK, (number + 1) * _BLOCK)
            scratch.write(self._file(number), [self.puzzle_type.generate(self.seed, self.split, indices)])

    def read(self, number: int) -> Examples:
        """Return a block's puzzles."""
        self.make(number)
        file = self._file(number)
        return scratch.read(file, scratch.num_bytes(file)).reshape(_BLOCK, 2, -1)

    def _file(self, number: int) -> Path:
        return self.folder / f"generated-{self.split}-{number:06d}.tokens"


def generate(blocks: Blocks, count: int, part: Part, workers: int, *, show_progress: bool) -> Examples:
    """Return `count` puzzles of which no two are the same (but for the names of digits, or turned).

    They are those numbered 0, 1, ... less the ones that were there before, so fewer are a prefix of more. Raise
    InputError where there are not that many, or none as hard as asked for.
    """
    num_blocks = -(-count // _BLOCK)
    first = num_blocks * part.number // part.count
    numbers = [*range(first, num_blocks), *range(first)]
    size = num_blocks * _BLOCK
    with progress_bar(f"new {blocks.split} puzzles", "puzzle", size, shown=show_progress) as progress:
        for _ in run_jobs(Blocks.make, blocks, numbers, workers):
            progress.update(_BLOCK)
    return _distinct(blocks, count)


def _distinct(blocks: Blocks, count: int) -> Examples:
    puzzle_type = blocks.puzzle_type
    kept = [np.zeros((0, 2, puzzle_type.side**2), dtype=np.uint8)]
    seen: set[int] = set()
    in_vain = 0
    for number in itertools.count():
        if len(seen) == count:
            break
        if in_vain >= _MAX_REPEATS:
            raise InputError(
                f"{count} {blocks.split} puzzles of kind {puzzle_type.kind} and side {puzzle_type.side}: only "
                f"{len(seen)} different ones as hard as asked for came up, since there are few so small; "
                "ask for fewer, or for a larger side."
            )
        examples = blocks.read(number)
        fresh: list[int] = []
        for i, key in enumerate(puzzle_type.same_keys(examples).tolist()):
            if key in seen:
                in_vain += 1
            elif len(seen) < count:
                seen.add(key)
                fresh.append(i)
                in_vain = 0
        kept.append(examples[fresh])
    return np.concatenate(kept)
