"""What a run says to puzzles, whatever kind they are of, and which of many puzzles a page shows."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from tools.report.payload import Puzzle, Result, Score, Status

CLOSE = 0.9
"""Share of cells that are right from which on an answer is close."""
SHOWN_CANDIDATES = 6
"""The best of an input; beside them that which is right."""


class Shown(NamedTuple):
    """A puzzle, which has no results yet, and what a run makes of it."""

    puzzle: Puzzle
    result: Result | None


class Column(Protocol):
    """The answers of a run."""

    scores: list[Score]
    statuses: dict[str, Status | None]
    """Of all puzzles, by id, in the order of the dataset; None where there is no answer."""
    warnings: list[str]

    def shown(self, ids: Collection[str]) -> dict[str, Shown]:
        """Return these puzzles, as far as the run has them."""
        ...


Statuses = tuple[Status | None, ...]


def choose(columns: Sequence[Column], most: int) -> tuple[list[str], int]:
    """Return the ids of the puzzles to show, in order, and how many there are.

    Of every combination of what runs make of a puzzle as many are shown, as far as there are, so that what few solve is
    seen too; within a combination they are spread evenly.
    """
    ids = list(dict.fromkeys(one for column in columns for one in column.statuses))
    if len(ids) <= most:
        return ids, len(ids)
    numbers: dict[Statuses, list[int]] = {}
    for number, one in enumerate(ids):
        numbers.setdefault(tuple(column.statuses.get(one) for column in columns), []).append(number)
    shares = _shares([len(group) for group in numbers.values()], most)
    chosen = [
        group[n]
        for group, share in zip(numbers.values(), shares, strict=True)
        for n in np.linspace(0, len(group) - 1, share).astype(int).tolist()
    ]
    return [ids[number] for number in sorted(chosen)], len(ids)


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """Return how many of each group make up the total: as many of each, but of small groups all."""
    shares = [0] * len(sizes)
    left = total
    for rank, n in enumerate(sorted(range(len(sizes)), key=lambda n: sizes[n])):
        shares[n] = min(sizes[n], left // (len(sizes) - rank))
        left -= shares[n]
    return shares


def puzzles(columns: Sequence[Column], ids: Sequence[str]) -> list[Puzzle]:
    """Return these puzzles with the results of all runs."""
    found = [column.shown(set(ids)) for column in columns]
    return [
        next(some[one].puzzle for some in found if one in some).model_copy(
            update={"results": [some[one].result if one in some else None for some in found]}
        )
        for one in ids
    ]
