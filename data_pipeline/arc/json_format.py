"""Strict reading of ARC's JSON. A message names the file, the task, the pair, the value and the remedy."""

import json
from pathlib import Path
from typing import cast

import numpy as np

from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import MAX_GRID_SIDE, NUM_COLOURS, Grid
from data_pipeline.base.errors import InputError, unreadable


def read_json(file: Path) -> object:
    """Return the content of a UTF-8 JSON file; raise InputError."""
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise unreadable(file, error) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text ({error}); download the file again.") from None
    except RecursionError:
        raise InputError(f"{file}: nested too deeply to be a task; download the file again.") from None
    except ValueError as error:
        raise InputError(f"{file}: malformed JSON ({error}); download the file again.") from None


def describe(value: object) -> str:
    """Return a value as a message shows it: short, whatever it is."""
    if value is None:
        return "nothing"
    try:
        text = json.dumps(value)
    except ValueError:  # an integer with thousands of digits
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_list(value: object) -> list[object]:
    """Return the value, or an empty list for anything that is none: both are useless where items are needed."""
    return cast(list[object], value) if isinstance(value, list) else []


def parse_task(content: object, task_id: str, held_out: bool, origin: str) -> Task:
    """Parse a task in the published layout: {"train": [{"input", "output"}, ...], "test": [{"input"}, ...]}."""
    where = f"{origin}: task {task_id}"
    if not isinstance(content, dict):
        raise InputError(
            f'{where}: {describe(content)} is no object; a task is {{"train": [...], "test": [...]}}, and a '
            "Kaggle file of many tasks must keep its name *_challenges.json."
        )
    fields = cast(dict[str, object], content)
    demos = _parse_pairs(fields.get("train"), "train", where, may_hide_output=False)
    tests = _parse_pairs(fields.get("test"), "test", where, may_hide_output=True)
    return Task(task_id, demos, tests, held_out, origin)


def _parse_pairs(value: object, key: str, where: str, *, may_hide_output: bool) -> tuple[Pair, ...]:
    items = as_list(value)
    if not items:
        what = "demonstration" if key == "train" else "test"
        raise InputError(
            f'{where}: "{key}" is {describe(value)}, but a task needs at least one {what} pair in a list; '
            "complete the file or take it out of the source (a Kaggle file of many tasks must keep its name "
            "*_challenges.json)."
        )
    pairs: list[Pair] = []
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise InputError(
                f"{where}: {key} pair {i}: {describe(item)} is no object; "
                'a pair is {"input": grid, "output": grid}.'
            )
        pair = cast(dict[str, object], item)
        before = parse_grid(pair.get("input"), f"{where}: {key} pair {i}: input")
        # Releases hide outputs by leaving the key out or by null.
        hidden = may_hide_output and pair.get("output") is None
        after = None if hidden else parse_grid(pair.get("output"), f"{where}: {key} pair {i}: output")
        pairs.append(Pair(before, after))
    return tuple(pairs)


def parse_grid(value: object, where: str) -> Grid:
    """Parse a grid; `where` opens the message of the InputError raised for anything else."""
    rows = as_list(value)
    if not rows:
        raise InputError(f"{where}: {describe(value)} is no grid; a grid is a non-empty list of rows.")
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
            if type(cell) is not int or not 0 <= cell < NUM_COLOURS:
                raise InputError(
                    f"{where}: row {r}, column {c}: {describe(cell)} is no colour; "
                    "use a whole number from 0 to 9."
                )
        cells.append(cast(list[int], row))
    if len(cells) > MAX_GRID_SIDE or len(cells[0]) > MAX_GRID_SIDE:
        raise InputError(
            f"{where}: {len(cells)} x {len(cells[0])} cells, but an ARC grid has at most {MAX_GRID_SIDE} x "
            f"{MAX_GRID_SIDE}; crop it or take the task out of the source."
        )
    return np.array(cells, dtype=np.uint8)
