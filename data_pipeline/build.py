"""Build a dataset: ARC tasks in, compressed shards of augmented and encoded puzzles out.

examples:
  python -m data_pipeline.build arc-agi-1 --out data/arc1
      the published ARC-AGI-1 data: 1000 augmentations, evaluation tasks' test pairs held out
  python -m data_pipeline.build arc-agi-1 --source ConceptARC/corpus --out data/arc1-concept
      the same with another 160 tasks, all of which train
  python -m data_pipeline.build arc --source arc-agi_test_challenges.json --holdout all --out data/test
      tasks of a file alone
  python -m data_pipeline.build arc-agi-1 --canvas 6 --num-aug 32 --holdout all --out data/small
      small grids only, for a CPU

Test pairs are held out of training for tasks in folders named `evaluation` and in Kaggle files with
"evaluation" or "test" in their names; PATH:train and PATH:evaluation override that. The same sources, options
and seed give the same bytes on any machine with any number of workers. DIR appears when it is complete.
"""

import argparse
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data_pipeline import rows
from data_pipeline.errors import InputError, exit_code
from data_pipeline.row_workers import write_rows
from data_pipeline.rows import SplitPlan
from data_pipeline.schema import (
    BuildOptions,
    DatasetInfo,
    SourceInfo,
    SplitIndex,
    SplitInfo,
    SplitName,
    Splits,
    load_dataset_info,
)
from data_pipeline.sources import arc
from data_pipeline.task import Task
from data_pipeline.tokens import MAX_GRID_SIDE, PAD_ID, VOCAB_SIZE
from data_pipeline.writer import write_json

EXIT_INTERRUPTED = 1


class Request(NamedTuple):
    """What to build; everything but `out`, `workers` and `quiet` decides the bytes."""

    preset: Literal["arc-agi-1", "arc-agi-2", "arc"]
    sources: list[str]
    out: Path
    options: BuildOptions
    seed: int
    workers: int
    quiet: bool


class _Loaded(NamedTuple):
    tasks: list[Task]
    sources: tuple[SourceInfo, ...]
    num_left_out: int


def main() -> int:
    """Parse the command line and build."""
    request = _parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        build(request)
    except KeyboardInterrupt:
        print(f"interrupted; nothing was left in {request.out}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def build(request: Request) -> DatasetInfo:
    """Build the dataset, unless the very same is there already.

    Raises InputError for sources that cannot be read and an output that cannot be written.
    """
    started = time.monotonic()
    loaded = _load_tasks(request)
    if request.out.exists() and not _is_empty_folder(request.out):
        return _check_already_built(request, loaded)
    groups = rows.plan_groups(loaded.tasks, request.options.num_aug, request.seed)
    try:
        with _folder_that_appears_when_complete(request.out) as folder:
            info = _write_dataset(folder, request, loaded, groups)
    except OSError as error:
        raise InputError(
            f"{request.out}: cannot be written ({error.strerror or error}); "
            "free some space or choose another --out."
        ) from None
    if not request.quiet:
        print(_summary(request.out, info, seconds=time.monotonic() - started))
    return info


def _load_tasks(request: Request) -> _Loaded:
    batches: list[tuple[str, list[Task]]] = []
    if request.preset != "arc":
        batches.append((request.preset, arc.bundled(request.preset)))
    for source in request.sources:
        path, role = arc.split_role(source)
        name = path.name or path.resolve().name
        batches.append((f"{name}:{role}" if role else name, arc.from_path(path, role)))
    if not batches:
        raise InputError("`arc` starts from no tasks; add --source PATH, or use arc-agi-1 or arc-agi-2.")
    sources = tuple(
        SourceInfo(name=name, sha256=arc.content_sha256(tasks), num_tasks=len(tasks))
        for name, tasks in batches
    )
    tasks = arc.merge(task for _, batch in batches for task in batch)
    fitting = [task for task in tasks if task.largest_side <= request.options.canvas]
    if not fitting:
        smallest = min(task.largest_side for task in tasks)
        raise InputError(
            f"--canvas {request.options.canvas}: no task fits, since the smallest needs {smallest}; "
            "choose a larger canvas."
        )
    if request.options.holdout == "all":
        fitting = [dataclasses.replace(task, held_out=True) for task in fitting]
    return _Loaded(fitting[: request.options.limit_groups], sources, len(tasks) - len(fitting))


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check_already_built(request: Request, loaded: _Loaded) -> DatasetInfo:
    remedy = "choose another --out or delete it"
    try:
        info = load_dataset_info(request.out)
    except InputError as error:
        raise InputError(f"{request.out}: exists and is no dataset ({error}); {remedy}.") from None
    differing = [
        name
        for name, there, asked in (
            ("sources", info.sources, loaded.sources),
            ("options", info.options, request.options),
            ("seed", info.seed, request.seed),
        )
        if there != asked
    ]
    if differing:
        raise InputError(
            f"{request.out}: exists, built with other {' and '.join(differing)} than asked for; {remedy}."
        )
    if not request.quiet:
        print(f"{request.out}: already built")
    return info


@contextmanager
def _folder_that_appears_when_complete(out: Path) -> Generator[Path]:
    """A folder beside `out` that takes its name at the end, or goes if anything fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's is for its owner alone
        folder.rename(out)
    finally:
        if folder.exists():
            shutil.rmtree(folder)


def _write_dataset(folder: Path, request: Request, loaded: _Loaded, groups: list[rows.Group]) -> DatasetInfo:
    plans = [SplitPlan(split, groups, request.options.canvas, request.seed) for split in ("train", "test")]
    for plan in plans:
        (folder / plan.split).mkdir()
    shards = write_rows(folder, plans, request.workers, show_progress=not request.quiet)
    infos: dict[SplitName, SplitInfo] = {}
    for plan in plans:
        index = SplitIndex(
            split=plan.split,
            num_rows=plan.num_rows,
            canvas=request.options.canvas,
            seq_len=request.options.canvas**2,
            groups=plan.group_table,
            shards=tuple(sorted(shards[plan.split], key=lambda shard: (shard.row, shard.first_group))),
        )
        infos[plan.split] = _split_info(index)
        write_json(folder / plan.split / "index.json", index.model_dump())
    names = [arc.BLANK_NAME, *(name for group in groups for name in group.names())]
    info = DatasetInfo(
        kind="arc",
        canvas=request.options.canvas,
        seq_len=request.options.canvas**2,
        vocab_size=VOCAB_SIZE,
        pad_id=PAD_ID,
        ignore_label_id=PAD_ID,
        blank_identifier_id=0,
        num_puzzle_identifiers=len(names),
        sets=("all",),
        seed=request.seed,
        options=request.options,
        sources=loaded.sources,
        num_tasks_left_out=loaded.num_left_out,
        splits=Splits(train=infos["train"], test=infos["test"]),
    )
    write_json(folder / "identifiers.json", names)
    write_json(
        folder / "test_puzzles.json",
        {task.id: arc.task_json(task) for task in loaded.tasks if task.held_out},
    )
    write_json(folder / "dataset.json", info.model_dump())
    return info


def _split_info(index: SplitIndex) -> SplitInfo:
    num_puzzles = int(index.groups.num_puzzles.sum())
    num_examples = int(np.dot(index.groups.num_puzzles.astype(np.int64), index.groups.num_examples))
    return SplitInfo(
        total_groups=len(index.groups),
        mean_puzzle_examples=num_examples / num_puzzles if num_puzzles else 0.0,
        num_puzzles=num_puzzles,
        num_examples=num_examples,
        num_rows=index.num_rows,
        size_bytes=sum(shard.size_bytes for shard in index.shards),
    )


def _summary(out: Path, info: DatasetInfo, seconds: float) -> str:
    train, test = info.splits.train, info.splits.test
    lines = [
        f"{out}: {train.total_groups} groups, {info.num_puzzle_identifiers - 1} puzzles",
        f"  train: {train.num_examples} examples in {train.num_rows} rows",
        f"  test: {test.num_examples} examples of {test.total_groups} held-out groups",
        f"  {(train.size_bytes + test.size_bytes) / 1e6:.1f} MB in {seconds:.1f} s",
    ]
    if info.num_tasks_left_out:
        lines.append(f"  tasks left out as larger than the canvas: {info.num_tasks_left_out}")
    return "\n".join(lines)


def _parse_arguments() -> Request:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("preset", choices=("arc-agi-1", "arc-agi-2", "arc"), help="tasks to start from; `arc`: none")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    source_help = "task file, folder of task files, or Kaggle *_challenges.json to add; repeatable"
    add("--source", action="append", default=[], metavar="PATH[:train|:evaluation]", help=source_help)
    num_aug_help = "augmentations per task, at most (default: %(default)s)"
    add("--num-aug", type=_at_least(0), default=1000, metavar="N", help=num_aug_help)
    holdout_help = "whose test pairs stay out of training (default: %(default)s)"
    add("--holdout", choices=("evaluation", "all"), default="evaluation", help=holdout_help)
    canvas_help = "side of the canvas; tasks with a larger grid are left out (default: %(default)s)"
    add("--canvas", type=_at_least(1, MAX_GRID_SIDE), default=MAX_GRID_SIDE, metavar="N", help=canvas_help)
    add("--limit-groups", type=_at_least(1), metavar="N", help="keep the first N tasks by id")
    add("--seed", type=_at_least(0), default=42, metavar="N", help="of all draws (default: %(default)s)")
    workers_help = "processes (default: one per CPU)"
    add("--workers", type=_at_least(1), default=os.cpu_count() or 1, metavar="N", help=workers_help)
    add("--quiet", action="store_true", help="no progress bar, no summary")
    given = parser.parse_args()
    options = BuildOptions(
        num_aug=given.num_aug, holdout=given.holdout, canvas=given.canvas, limit_groups=given.limit_groups
    )
    return Request(given.preset, given.source, given.out, options, given.seed, given.workers, given.quiet)


def _at_least(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: whole numbers from `low`, to `high` if there is one."""

    def parse(text: str) -> int:
        bounds = f"a whole number from {low}" + (f" to {high}" if high else "")
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {bounds}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is not {bounds}")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(exit_code(main))
