"""An ARC dataset: which tasks are in it, what is held out, what each split consists of."""

import dataclasses
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_pipeline import subsets
from data_pipeline.arc import sources as arc
from data_pipeline.arc.copies import decides, is_copy, merge
from data_pipeline.arc.json_format import pair_json, task_json
from data_pipeline.arc.leaks import TaskLeaks, drop_from_training, find_in_tasks
from data_pipeline.arc.rows import SplitPlan, plan_groups
from data_pipeline.arc.source_files import true_name
from data_pipeline.arc.sources import SourceTasks
from data_pipeline.arc.task import Task
from data_pipeline.arc.tokens import MAX_GRID_SIDE, VOCAB_SIZE
from data_pipeline.arc.windows import windows_document
from data_pipeline.base.errors import InputError
from data_pipeline.kind import split_role
from data_pipeline.leaks import settle
from data_pipeline.options import LeakPolicy, Options
from data_pipeline.readings import left_out
from data_pipeline.schema import (
    BLANK_NAME,
    SPLITS,
    WINDOWS,
    DatasetHead,
    Identity,
    Leaks,
    SourceInfo,
    SourceReading,
    SplitName,
    SubsetInfo,
    Subsets,
)
from data_pipeline.shards.plan import DatasetPlan, Request

_TRAINED, _HELD_OUT = "trained on", "held out"
_REPEATED = "copies, where each task counts once"
_WITHOUT_OUTPUTS = (
    "without outputs, which train with those from elsewhere; give their file with :evaluation to predict them"
)
_CONFLICTS = "unlike the first task of that id, left out by --conflicts first"
_TOO_LARGE = "larger than the canvas"
_BEYOND_LIMIT = "beyond --limit-groups"


class ArcOptions(Options):
    num_aug: int = Field(default=1000, ge=0)
    """Augmentations per task, at most."""
    holdout: Literal["evaluation", "all"] = "evaluation"
    """Whose test pairs stay out of training."""
    canvas: int = Field(default=MAX_GRID_SIDE, ge=1, le=MAX_GRID_SIDE)
    """Side of the canvas; tasks with a larger grid are left out."""
    limit_groups: int | None = Field(default=None, ge=1)
    """Keep the first N tasks by id."""
    leaks: LeakPolicy = "refuse"
    conflicts: Literal["refuse", "first"] = "refuse"
    """Two different tasks of one id: refuse them, or take the first."""


@dataclasses.dataclass(frozen=True)
class ArcContent:
    """The chosen tasks, in order of their ids."""

    identity: Identity
    options: ArcOptions
    tasks: list[Task]
    readings: tuple[SourceReading, ...]
    left_out_tests: dict[str, int]
    leaks: Leaks

    def write_scratch(self, folder: Path) -> None:
        """Write nothing: everything workers need comes with the rows."""

    def plan(self, folder: Path) -> DatasetPlan:
        """Return groups and rows."""
        groups = plan_groups(self.tasks, self.options.num_aug, self.identity.seed)
        names = [BLANK_NAME, *(name for group in groups for name in group.names())]
        canvas = self.options.canvas
        rows: dict[SplitName, SplitPlan] = {
            split: SplitPlan(split, groups, canvas, self.identity.seed) for split in SPLITS
        }
        head = DatasetHead(
            **dict(self.identity),
            canvas=canvas,
            seq_len=canvas**2,
            vocab_size=VOCAB_SIZE,
            num_puzzle_identifiers=len(names),
            num_tasks_left_out=sum(
                some.num for reading in self.readings for some in reading.left_out if some.why == _TOO_LARGE
            ),
            leaks=self.leaks,
            readings=self.readings,
            left_out_tests=self.left_out_tests,
            subsets=Subsets(train=_subset(rows["train"]), test=_subset(rows["test"])),
        )
        return DatasetPlan(
            head,
            rows,
            documents={
                "identifiers.json": names,
                "test_puzzles.json": {task.id: task_json(task) for task in self.tasks if task.held_out},
                WINDOWS: windows_document(groups, canvas).model_dump(),
            },
        )


def _subset(rows: SplitPlan) -> SubsetInfo:
    """Return the set of a split's tasks: what trains of them, or the held-out pairs with their demonstrations."""
    return subsets.described(
        json.dumps(
            {
                "id": group.task.id,
                "demonstrations": [pair_json(pair) for pair in group.task.demos]
                if rows.split == "test"
                else [],
                "pairs": [pair_json(pair) for pair in group.pairs(rows.split)],
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode()
        for group in rows.groups
    )


def read(request: Request) -> ArcContent:
    """Read and choose the tasks; raise InputError for sources that cannot be used as asked."""
    options = request.options
    assert isinstance(options, ArcOptions)
    batches = _read_sources(request)
    sources = tuple(
        SourceInfo(name=name, sha256=arc.content_sha256(batch.tasks), num_tasks=len(batch.tasks))
        for name, batch in batches
    )
    tasks = merge(
        (task for _, batch in batches for task in batch.tasks), first_wins=options.conflicts == "first"
    )
    fitting = [task for task in tasks if task.largest_side <= options.canvas]
    if not fitting:
        smallest = min(task.largest_side for task in tasks)
        remedy = (
            "choose a larger canvas"
            if smallest <= MAX_GRID_SIDE
            else f"ARC has at most {MAX_GRID_SIDE}; crop them"
        )
        raise InputError(
            f"--canvas {options.canvas}: no task of {', '.join(name for name, _ in batches)} fits, since the smallest "
            f"needs {smallest}; {remedy}."
        )
    chosen = _held_out(fitting, options)[: options.limit_groups]
    found = find_in_tasks(chosen)
    is_published = request.preset != "arc" and _stand_in_preset(found, batches[0][1].tasks, options)
    settled = settle(found.record(), options.leaks, is_published=is_published)
    if settled.dropped:
        chosen = drop_from_training(chosen, found)
        if not any(task.training_pairs for task in chosen):
            raise InputError(
                "--leaks drop leaves no pair to train on, since all are held out too; add tasks."
            )
    return ArcContent(
        request.identity("arc", sources),
        options,
        chosen,
        _readings(batches, tasks, chosen, options),
        _left_out_tests(_held_out(tasks, options), chosen),
        settled,
    )


def _read_sources(request: Request) -> list[tuple[str, SourceTasks]]:
    """Return (name, tasks) of each source, that of the preset first."""
    batches: list[tuple[str, SourceTasks]] = []
    if request.preset != "arc":
        batches.append((request.preset, SourceTasks(arc.bundled(request.preset))))
    for source in request.sources:
        path, role = split_role(source)
        if source in arc.BUNDLED and not path.exists():
            batches.append((source, SourceTasks(arc.bundled(source))))
            continue
        _refuse_output_within(path, request.out)
        name = true_name(path)
        batches.append((f"{name}:{role}" if role else name, arc.from_path(path, role)))
    if not batches:
        raise InputError("`arc` starts from no tasks; add --source PATH, or use arc-agi-1 or arc-agi-2.")
    return batches


def _readings(
    batches: list[tuple[str, SourceTasks]], tasks: list[Task], chosen: list[Task], options: ArcOptions
) -> tuple[SourceReading, ...]:
    """Tell what became of each source's tasks; one that comes more than once counts where it decides first."""
    merged, kept = ({task.id: task for task in some} for some in (tasks, chosen))
    deciding: dict[str, Task] = {}
    for _, batch in batches:
        for task in batch.tasks:
            there = deciding.setdefault(task.id, task)
            if decides(task) and not decides(there):
                deciding[task.id] = task
    readings: list[SourceReading] = []
    for name, batch in batches:
        fates: defaultdict[str, list[str]] = defaultdict(list, batch.left_out)
        num_read = len(batch.tasks) + sum(map(len, batch.left_out.values()))
        num_without_output = 0
        for task in batch.tasks:
            if task is not deciding[task.id]:
                trains = task.id in kept and not kept[task.id].held_out
                why = _WITHOUT_OUTPUTS if trains and not decides(task) else _REPEATED
                fates[why if is_copy(merged[task.id], task) else _CONFLICTS].append(task.id)
            elif task.id in kept:
                task = kept[task.id]
                fates[_HELD_OUT if task.held_out else _TRAINED].append(task.id)
                num_without_output += task.has_hidden_output
            elif merged[task.id].largest_side > options.canvas:
                fates[_TOO_LARGE].append(task.id)
            else:
                fates[_BEYOND_LIMIT].append(task.id)
        readings.append(
            SourceReading(
                source=name,
                num_tasks=num_read,
                num_trained=len(fates.pop(_TRAINED, ())),
                num_held_out=len(fates.pop(_HELD_OUT, ())),
                num_without_output=num_without_output,
                left_out=tuple(left_out(why, names) for why, names in sorted(fates.items())),
                not_read=tuple(left_out(why, names) for why, names in sorted(batch.not_read.items())),
            )
        )
    return tuple(readings)


def _left_out_tests(tasks: list[Task], chosen: list[Task]) -> dict[str, int]:
    """Count the test inputs of held-out tasks that are not chosen: a competition wants answers to these, too."""
    kept = {task.id for task in chosen}
    return {task.id: len(task.tests) for task in tasks if task.held_out and task.id not in kept}


def _held_out(tasks: list[Task], options: ArcOptions) -> list[Task]:
    if options.holdout == "all":
        return [dataclasses.replace(task, held_out=bool(task.tests)) for task in tasks]
    return tasks


def _stand_in_preset(found: TaskLeaks, preset: list[Task], options: ArcOptions) -> bool:
    """Return whether the bundled tasks alone, held out in the same way, have all of these leaks."""
    if not found.of_held_out:
        return True
    own = find_in_tasks(_held_out(merge(preset), options)).names()
    return all(trained <= own.get(held_out, frozenset()) for held_out, trained in found.names().items())


def _refuse_output_within(path: Path, out: Path) -> None:
    # `resolve` fails where links lead in a circle; what is wrong with those is said where they are opened.
    if path.is_dir() and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(path)):
        raise InputError(
            f"--out {out}: lies within the source {path}, whose *.json files are tasks; choose a folder outside."
        )
