"""Find held-out ARC pairs that also train, as they are or as an augmentation makes them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from data_pipeline.arc.augment import NUM_DIHEDRAL, dihedral
from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import NUM_COLOURS
from data_pipeline.leaks import leak
from data_pipeline.schema import Leak


class _TaskPair(NamedTuple):
    """A pair of a task, by its number in `Task.pairs`."""

    task: Task
    number: int

    @property
    def pair(self) -> Pair:
        return self.task.pairs[self.number]

    def __str__(self) -> str:
        num_demos = len(self.task.demos)
        if self.number < num_demos:
            return f"{self.task.id} train {self.number}"
        return f"{self.task.id} test {self.number - num_demos}"


class TaskLeaks(NamedTuple):
    """Which held-out pairs of ARC tasks train, and as which training pairs."""

    of_held_out: dict[_TaskPair, list[_TaskPair]]

    def names(self) -> dict[str, frozenset[str]]:
        """Return the names of the held-out pairs, and of the pairs that each of them trains as."""
        return {str(held_out): frozenset(map(str, trained)) for held_out, trained in self.of_held_out.items()}

    def record(self) -> list[Leak]:
        """Return them as dataset.json lists them."""
        return [
            leak(str(held_out), list(map(str, trained))) for held_out, trained in self.of_held_out.items()
        ]


def find_in_tasks(tasks: Sequence[Task]) -> TaskLeaks:
    """Find held-out test pairs that some augmentation turns into a pair that trains, their own task's included.

    Pairs whose output is hidden cannot be told.
    """
    candidates: list[_TaskPair] = []
    held_out: dict[_TaskPair, bytes] = {}
    for task in tasks:
        for number, pair in enumerate(task.pairs):
            if pair.output is None:
                continue
            if task.held_out and number >= len(task.demos):
                held_out[_TaskPair(task, number)] = pair_key(pair)
            else:
                candidates.append(_TaskPair(task, number))
    outlines = {_outline(found.pair) for found in held_out}
    trained: dict[bytes, list[_TaskPair]] = defaultdict(list)
    for candidate in candidates:
        if outlines and _outline(candidate.pair) in outlines:
            trained[pair_key(candidate.pair)].append(candidate)
    return TaskLeaks({pair: trained[key] for pair, key in held_out.items() if key in trained})


def drop_from_training(tasks: Sequence[Task], found: TaskLeaks) -> list[Task]:
    """Return the tasks with the pairs that are held out elsewhere kept out of training."""
    left_out: dict[str, set[int]] = defaultdict(set)
    for trained in found.of_held_out.values():
        for found_pair in trained:
            left_out[found_pair.task.id].add(found_pair.number)
    return [
        replace(task, left_out=frozenset(left_out[task.id])) if task.id in left_out else task
        for task in tasks
    ]


def _outline(pair: Pair) -> tuple[tuple[int, ...], bytes]:
    """Return what all augmentations of a pair have in common, and few other pairs have: much sooner than its key."""
    assert pair.output is not None
    (height, width), (height_after, width_after) = pair.input.shape, pair.output.shape
    sides = min((height, width, height_after, width_after), (width, height, width_after, height_after))
    counts = np.bincount(
        np.concatenate([pair.input.reshape(-1), pair.output.reshape(-1)]), minlength=NUM_COLOURS
    )
    counts[1:].sort()
    return sides, counts.tobytes()


def pair_key(pair: Pair) -> bytes:
    """Return what all augmentations of a pair have in common, and no other pair has.

    Of the eight dihedral images, each with its colours 1..9 renamed in the order in which they first appear, it
    is the smallest.
    """
    assert pair.output is not None
    images: list[bytes] = []
    for t in range(NUM_DIHEDRAL):
        grids = [dihedral(grid, t) for grid in (pair.input, pair.output)]
        cells = np.concatenate([grid.reshape(-1) for grid in grids])
        colours, first = np.unique(cells, return_index=True)
        names = np.zeros(NUM_COLOURS, dtype=np.uint8)
        in_order = colours[np.argsort(first)]
        in_order = in_order[in_order > 0]
        names[in_order] = np.arange(1, 1 + len(in_order))
        shapes = bytes(side for grid in grids for side in grid.shape)
        images.append(shapes + names[cells].tobytes())
    return min(images)
