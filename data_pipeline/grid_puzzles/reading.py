"""The puzzles that a dataset takes from its files, and what becomes of the others."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.base.progress import progress_bar
from data_pipeline.base.random import stream_key, words_at
from data_pipeline.grid_puzzles.csv_files import CsvFile, is_published
from data_pipeline.grid_puzzles.csv_source import Cells, CsvBlock, Puzzles, read_blocks
from data_pipeline.grid_puzzles.published import AUGMENTED, PublishedSplit


class Selection(NamedTuple):
    """Which lines of a source to keep, as published: hard enough ones, and of these a random choice."""

    min_difficulty: int | None = None
    """Smallest rating to keep."""
    subsample: int | None = None
    """How many to keep, if there are more."""
    seed: int = 0
    drawn_by: str = "--subsample"
    """What a user calls that."""


Decode = Callable[[CsvBlock], tuple[Cells, Cells]]
"""Checks and translates a block, into inputs and labels."""


@dataclass
class Fate:
    """What became of the puzzles of a file."""

    file: CsvFile
    num_read: int = 0
    left_out: Counter[str] = field(default_factory=Counter[str])
    """By the reason."""

    @property
    def num_kept(self) -> int:
        return self.num_read - self.left_out.total()


def leave_out(fates: Sequence[Fate], why: str, kept: NDArray[np.integer]) -> None:
    """Note that of the kept puzzles of these files, one after another, only those with these numbers stay."""
    ends = np.cumsum([fate.num_kept for fate in fates])
    of_file = np.diff(np.searchsorted(kept, ends), prepend=0)
    for fate, num_kept in zip(fates, of_file.tolist(), strict=True):
        fate.left_out[why] += fate.num_kept - num_kept


class Reading(NamedTuple):
    """The chosen puzzles of some files, one file after another."""

    puzzles: Puzzles
    fates: list[Fate]


def read_puzzles(
    files: Sequence[CsvFile],
    decode: Decode,
    selection: Selection | None = None,
    *,
    characters: bytes = b"",
    show_progress: bool = False,
) -> Reading:
    """Read the puzzles of the files that the selection keeps; every one is checked, kept or not.

    `characters` are those of tokens 1, 2, ... in CSV files. Raise InputError at the first line that is not as it should
    be, and where none is left.
    """
    selection = selection or Selection()
    kept = _Kept(selection)
    width: int | None = None
    with progress_bar("reading", " puzzles", None, shown=show_progress) as progress:
        for file in files:
            kept.fates.append(Fate(file))
            rated = selection.min_difficulty is not None
            if is_published(file):
                blocks = _published_blocks(PublishedSplit(file, characters), kept.fates[-1], rated=rated)
            else:
                blocks = read_blocks(file, width, rated=rated)
            for block in blocks:
                width = block.questions.shape[1]
                inputs, labels = decode(block)
                kept.add(Puzzles(inputs, labels, block.ratings))
                progress.update(len(block.ratings))
    puzzles = kept.puzzles()
    if puzzles is None or not puzzles.num_puzzles:
        names = ", ".join(map(str, files))
        wanted = selection.min_difficulty
        reason = "no puzzle in the file" if wanted is None else f"no puzzle is rated {wanted} or higher"
        remedy = "give another file" + ("" if wanted is None else " or ask for a lower difficulty")
        raise InputError(f"{names}: {reason}; {remedy}.")
    return Reading(puzzles, kept.fates)


def _published_blocks(split: PublishedSplit, fate: Fate, *, rated: bool) -> Iterator[CsvBlock]:
    if rated:
        raise InputError(f"{fate.file}: does not say how hard a puzzle is; leave out --min-difficulty.")
    fate.num_read += split.num_puzzles - split.num_groups
    fate.left_out[AUGMENTED] += split.num_puzzles - split.num_groups
    return split.blocks()


class _Kept:
    """Gathers puzzles; of those that a subsample leaves out it never holds many.

    A subsample keeps those with the smallest random words. A word depends on the seed and on the number of the
    puzzle among those hard enough, so how the file was cut into blocks does not matter.
    """

    def __init__(self, selection: Selection) -> None:
        self.fates: list[Fate] = []
        """Of the files so far; what is added is of the last one."""
        self._selection = selection
        self._key = stream_key(selection.seed, "subsample")
        self._puzzles: Puzzles | None = None
        self._words = np.zeros(0, dtype=np.uint64)
        self._num_seen = 0

    def add(self, more: Puzzles) -> None:
        selection, fate = self._selection, self.fates[-1]
        fate.num_read += more.num_puzzles
        if selection.min_difficulty is not None:
            is_hard = more.ratings >= selection.min_difficulty
            fate.left_out["rated below --min-difficulty"] += int((~is_hard).sum())
            more = more.take(is_hard)
        self._puzzles = more if self._puzzles is None else _extended(self._puzzles, more)
        if selection.subsample is not None:
            numbers = np.arange(self._num_seen, self._num_seen + more.num_puzzles)
            self._words = np.append(self._words, words_at(numbers, 0, self._key)[:, 0])
            if len(self._words) > 2 * selection.subsample + 65536:
                self._thin_out(selection.subsample)
        self._num_seen += more.num_puzzles

    def puzzles(self) -> Puzzles | None:
        if self._selection.subsample is not None:
            self._thin_out(self._selection.subsample)
        return self._puzzles

    def _thin_out(self, size: int) -> None:
        if self._puzzles is not None:
            chosen = np.sort(np.argsort(self._words, kind="stable")[:size])
            self._puzzles, self._words = self._puzzles.take(chosen), self._words[chosen]
            leave_out(self.fates, f"not drawn by {self._selection.drawn_by}", chosen)


def _extended(puzzles: Puzzles, more: Puzzles) -> Puzzles:
    """Add puzzles to others, which are changed, so that there are never two copies of millions."""
    for column, addition in zip(puzzles, more, strict=True):
        length = len(column)
        column.resize((length + len(addition), *column.shape[1:]), refcheck=False)
        column[length:] = addition
    return puzzles
