"""Held-out pairs that also stand in the training data, as they are or as an augmentation makes them."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from data_pipeline.arc.augment import NUM_DIHEDRAL, dihedral
from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import NUM_COLOURS
from data_pipeline.base.errors import InputError
from data_pipeline.options import LeakPolicy
from data_pipeline.schema import Leak, Leaks

MAX_RECORDED = 1000
"""Leaks listed in dataset.json; their number is always told."""

MAX_PLACES = 10
"""Places in the training data that are listed for each."""

_SHOWN = 3


class _Place(NamedTuple):
    """A pair of a task, by its number in `Task.pairs`."""

    task: Task
    number: int

    def __str__(self) -> str:
        num_demos = len(self.task.demos)
        if self.number < num_demos:
            return f"{self.task.id} train {self.number}"
        return f"{self.task.id} test {self.number - num_demos}"


class TaskLeaks(NamedTuple):
    """Which held-out pairs of ARC tasks train, and where."""

    of_held_out: dict[_Place, list[_Place]]

    def names(self) -> dict[str, frozenset[str]]:
        """Names of the held-out pairs, and of where each trains."""
        return {str(held_out): frozenset(map(str, trained)) for held_out, trained in self.of_held_out.items()}

    def record(self) -> list[Leak]:
        """Them as dataset.json lists them."""
        return [
            leak(str(held_out), list(map(str, trained))) for held_out, trained in self.of_held_out.items()
        ]


def find_in_tasks(tasks: Sequence[Task]) -> TaskLeaks:
    """Held-out test pairs that some augmentation turns into a pair that trains, that of a task's own included.

    Pairs whose output is hidden cannot be told.
    """
    trained: dict[bytes, list[_Place]] = defaultdict(list)
    held_out: list[_Place] = []
    for task in tasks:
        for number, pair in enumerate(task.pairs):
            if task.held_out and number >= len(task.demos):
                held_out.append(_Place(task, number))
            elif pair.output is not None:
                trained[pair_key(pair)].append(_Place(task, number))
    keys = [
        None if place.task.pairs[place.number].output is None else pair_key(place.task.pairs[place.number])
        for place in held_out
    ]
    return TaskLeaks(
        {place: trained[key] for place, key in zip(held_out, keys, strict=True) if key in trained}
    )


def drop_from_training(tasks: Sequence[Task], found: TaskLeaks) -> list[Task]:
    """The tasks, with the pairs that are held out elsewhere kept out of training."""
    left_out: dict[str, set[int]] = defaultdict(set)
    for trained in found.of_held_out.values():
        for place in trained:
            left_out[place.task.id].add(place.number)
    return [
        replace(task, left_out=frozenset(left_out[task.id])) if task.id in left_out else task
        for task in tasks
    ]


def pair_key(pair: Pair) -> bytes:
    """What all augmentations of a pair have in common, and no other pair has.

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


def leak(held_out: str, in_training: Sequence[str]) -> Leak:
    """A leak with as many of its places in training as are recorded."""
    return Leak(
        held_out=held_out, num_in_training=len(in_training), in_training=tuple(in_training[:MAX_PLACES])
    )


def settle(
    pairs: Sequence[Leak], policy: LeakPolicy, *, is_published: bool, num_pairs: int | None = None
) -> Leaks:
    """What dataset.json says of the leaks; a warning if they stay because the dataset is published with them.

    Raises InputError where nobody has decided what becomes of them.
    """
    num_pairs = len(pairs) if num_pairs is None else num_pairs
    if num_pairs and policy == "refuse":
        shown = "; ".join(f"{leak.held_out} = {_first(leak)}" for leak in pairs[:_SHOWN])
        pairs_stand = "held-out pair also stands" if num_pairs == 1 else "held-out pairs also stand"
        what = (
            f"{num_pairs} {pairs_stand} in the training data, as they are or augmented: {shown}"
            f"{'; ...' if num_pairs > _SHOWN else ''}"
        )
        if not is_published:
            raise InputError(
                f"{what}. Build with --leaks drop to remove them from training, or with --leaks keep to train on them."
            )
        print(
            f"warning: {what}. They do so in the published data; --leaks drop removes them from training.",
            file=sys.stderr,
        )
    return Leaks(dropped=policy == "drop", num_pairs=num_pairs, pairs=tuple(pairs[:MAX_RECORDED]))


def _first(leak: Leak) -> str:
    more = leak.num_in_training - _SHOWN
    return ", ".join(leak.in_training[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
