"""Copies of a task, from files and sources that have it more than once."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import Grid
from data_pipeline.base.errors import InputError


def merge(tasks: Iterable[Task], *, first_wins: bool = False) -> list[Task]:
    """Return the tasks sorted by id, each once; held out if any copy of it is.

    A copy whose outputs are all hidden adds nothing to one that has them, and does not hold it out, unless its source
    is given with :evaluation: what Kaggle gives as test challenges repeats other tasks until it is replaced.
    Copies may have their pairs in another order, as 772 tasks of ARC-AGI-1 have in ARC-AGI-2; the order is that
    of the first copy, or of the first that is held out. Raise InputError when two tasks of one id differ in more
    than that, unless the first of them is to win.
    """
    by_id: dict[str, Task] = {}
    for task in tasks:
        seen = by_id.setdefault(task.id, task)
        if seen is not task:
            by_id[task.id] = _joined(seen, task, first_wins=first_wins)
    return [by_id[task_id] for task_id in sorted(by_id)]


def decides(task: Task) -> bool:
    """Tell whether a copy says if the task is held out: it has outputs to train on, or its source asks for it."""
    return task.asked_for or not task.tests or any(pair.output is not None for pair in task.tests)


def is_copy(task: Task, other: Task) -> bool:
    """Tell whether two tasks of one id differ in no more than the order of pairs and what is hidden."""
    return _joined_tests(task, other) is not None


def _joined(first: Task, second: Task, *, first_wins: bool) -> Task:
    deciding = [copy for copy in (first, second) if decides(copy)] or [first, second]
    held_out = [copy for copy in deciding if copy.held_out]
    base = (held_out or deciding)[0]
    tests = _joined_tests(base, second if base is first else first)
    if tests is None and not first_wins:
        raise InputError(
            f"task {first.id}: its content in {second.origin} differs from that in {first.origin}, and names must be "
            "unique; take out or rename one of the two, or build with --conflicts first to take the one that comes "
            "first."
        )
    if tests is None:
        return dataclasses.replace(first, held_out=bool(held_out) or first.has_hidden_output)
    asked_for = first.asked_for or second.asked_for
    return dataclasses.replace(base, tests=tests, held_out=bool(held_out), asked_for=asked_for)


def _joined_tests(base: Task, other: Task) -> tuple[Pair, ...] | None:
    """Return the test pairs of a task with the outputs that only its copy has; None if it is another task."""
    if _sorted(base.demos) != _sorted(other.demos):
        return None
    if sorted(_key(pair.input) for pair in base.tests) != sorted(_key(pair.input) for pair in other.tests):
        return None
    for hiding, known in ((other, base), (base, other)):
        if all(pair.output is None for pair in hiding.tests):
            return known.tests
    outputs = {_key(pair.input): pair.output for pair in other.tests}
    if len(outputs) < len(
        other.tests
    ):  # an input that comes twice: nobody knows which hidden output is whose
        return base.tests if _sorted(base.tests) == _sorted(other.tests) else None
    joined: list[Pair] = []
    for pair in base.tests:
        theirs = outputs[_key(pair.input)]
        if pair.output is not None and theirs is not None and not np.array_equal(pair.output, theirs):
            return None
        joined.append(Pair(pair.input, theirs if pair.output is None else pair.output))
    return tuple(joined)


def _sorted(pairs: Iterable[Pair]) -> list[tuple[object, ...]]:
    return sorted((_key(pair.input), _key(pair.output)) for pair in pairs)


def _key(grid: Grid | None) -> tuple[tuple[int, ...], bytes]:
    return ((), b"") if grid is None else (grid.shape, grid.tobytes())
