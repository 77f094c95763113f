"""Build a dataset: puzzles in, compressed shards of augmented and encoded puzzles out.

examples:
  python -m data_pipeline.build arc-agi-1 --out data/arc1
      the published ARC-AGI-1 data: 1000 augmentations, evaluation tasks' test pairs held out
  python -m data_pipeline.build arc-agi-1 --source ConceptARC/corpus --out data/arc1-concept
      the same with another 160 tasks, all of which train
  python -m data_pipeline.build arc --source arc-agi_test_challenges.json --holdout all --out data/test
      tasks of a file alone
  python -m data_pipeline.build sudoku --source hub:sapientinc/sudoku-extreme --subsample 1000 --num-aug 1000 \\
      --out data/sudoku-extreme-1k-aug-1000
      the published Sudoku data
  python -m data_pipeline.build maze --num-train 1000 --num-test 1000 --out data/mazes
      new mazes of 30 x 30 with shortest paths of more than 110 steps

The same sources, options and seed give the same bytes on any machine with any number of workers. A build that was
stopped, by whatever, goes on with the same command. To share one among machines with a common disk, give each its
--part: I/N for I from 0 to N-1 with the same N; then run `python -m data_pipeline.merge DIR`.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from data_pipeline.arc import dataset as arc_dataset
from data_pipeline.arc.tokens import MAX_GRID_SIDE
from data_pipeline.base.errors import EXIT_FAILED, EXIT_INTERRUPTED, exit_code
from data_pipeline.base.parallel import SHOWN_AFTER_SECONDS, Part, parse_part
from data_pipeline.grid_puzzles import dataset as puzzle_dataset
from data_pipeline.grid_puzzles.maze import MAX_SIDE, NUM_DIHEDRAL
from data_pipeline.grid_puzzles.sudoku import BOX_SHAPES
from data_pipeline.options import ArcOptions, Generator, PuzzleOptions
from data_pipeline.schema import BUILDING, HOW_TO_HOLD_OUT, MAX_GROUPS, NOTHING_HELD_OUT, DatasetInfo
from data_pipeline.shards import build_dir as build_folder
from data_pipeline.shards.plan import Content, Request
from data_pipeline.shards.write_parallel import shard_places, write_shards

_SOURCE_FORM = "PATH[:train|:evaluation]"


def main() -> int:
    """Parse the command line and build."""
    request = parse_arguments()
    for number in (signal.SIGTERM, signal.SIGUSR2):  # Slurm sends both
        signal.signal(number, signal.default_int_handler)
    try:
        build(request)
    except KeyboardInterrupt:
        print(
            f"interrupted; {request.out} may not be complete; the same command goes on with it",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    except BrokenProcessPool:
        print(
            "error: a worker process was killed, perhaps since memory ran out; the same command goes on, with "
            "--workers 1 in the least memory",
            file=sys.stderr,
        )
        return EXIT_FAILED
    return 0


def build(request: Request) -> DatasetInfo | None:
    """Build the dataset, or what is missing of it, unless the very same is there already.

    None stands for a part, which makes no dataset. Raises InputError for sources that cannot be read and an output
    that cannot be written.
    """
    started = time.monotonic()
    content = read(request)
    info = build_folder.find(request.out, content.identity)
    if info is not None:
        _say(request, f"{request.out}: already built")
        return info
    num_written = _write_missing(request, content)
    if request.part.count > 1:
        _say(
            request,
            f"{request.out}: part {request.part.number} of {request.part.count} is built, {num_written} new shards "
            f"in {time.monotonic() - started:.1f} s; after all parts: python -m data_pipeline.merge {request.out}",
        )
        return None
    info = build_folder.finish(request.out, show_progress=not request.quiet)
    _say(request, f"{summary(request.out, info)} in {time.monotonic() - started:.1f} s")
    return info


def read(request: Request) -> Content:
    """Read the sources of a dataset. Raises InputError."""
    return puzzle_dataset.read(request) if request.preset in ("sudoku", "maze") else arc_dataset.read(request)


def _write_missing(request: Request, content: Content) -> int:
    """Write those shards of the part that are not there; gives their number."""
    with build_folder.begin(request.out, content.identity, request.part) as journal:
        plan = content.plan(request.out / BUILDING)
        layouts = plan.layouts()
        build_folder.write_layouts(request.out, plan.head, layouts.values(), plan.documents)
        places = request.part.share([place for layout in layouts.values() for place in shard_places(layout)])
        written = build_folder.written_shards(request.out)
        missing = [place for place in places if place not in written]
        with tqdm(
            total=len(places), initial=len(places) - len(missing), desc="shards", unit="shard",
            delay=SHOWN_AFTER_SECONDS, disable=request.quiet,
        ) as progress:  # fmt: skip
            for shards in write_shards(request.out, layouts, plan.rows, missing, request.workers):
                journal.add(shards)
                progress.update(len(shards))
    return len(missing)


def _say(request: Request, text: str) -> None:
    if not request.quiet:
        print(text)


def summary(out: Path, info: DatasetInfo) -> str:
    """The sizes of a dataset, for people."""
    train, test = info.splits.train, info.splits.test
    lines = [
        f"{out}: {train.total_groups} groups, {max(train.num_puzzles, info.num_puzzle_identifiers - 1)} puzzles",
        f"  train: {train.num_examples} examples in {train.num_rows} rows",
        f"  test: {test.num_examples} examples of {test.total_groups} held-out groups"
        if test.total_groups
        else f"  test: {NOTHING_HELD_OUT} (to hold out: {HOW_TO_HOLD_OUT})",
    ]
    if info.num_tasks_left_out:
        lines.append(f"  tasks left out as larger than the canvas: {info.num_tasks_left_out}")
    if info.leaks.num_pairs:
        fate = "removed from training" if info.leaks.dropped else "which stay in training"
        lines.append(f"  held-out pairs that also stood in the training data: {info.leaks.num_pairs}, {fate}")
    lines.append(f"  {(train.size_bytes + test.size_bytes) / 1e6:.1f} MB")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> Request:
    """What the command line asks for; ends the process where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    presets = parser.add_subparsers(dest="preset", metavar="PRESET", required=True)
    for preset, what in (
        ("arc-agi-1", "the 800 tasks of ARC-AGI-1, and those of further sources"),
        ("arc-agi-2", "the 1120 tasks of ARC-AGI-2, and those of further sources"),
        ("arc", "ARC tasks of given sources alone"),
    ):
        _add_arc_arguments(presets.add_parser(preset, help=what, description=what))
    what = "Sudokus of a CSV file (source,question,answer,rating), or new ones where there is no --source"
    _add_sudoku_arguments(presets.add_parser("sudoku", help=what, description=what))
    what = "mazes of a CSV file (source,question,answer,rating), or new ones where there is no --source"
    _add_maze_arguments(presets.add_parser("maze", help=what, description=what))
    given = parser.parse_args(arguments)
    options = _puzzle_options(parser, given) if given.preset in ("sudoku", "maze") else _arc_options(given)
    return Request(
        given.preset, given.source, given.out, options, given.seed, given.workers, given.quiet, given.part
    )


def _add_arc_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    source_help = (
        "task file, folder of task files, Kaggle *_challenges.json, or arc-agi-1 or arc-agi-2, to add; repeatable. "
        "Test pairs are held out for tasks in folders named `evaluation` and in Kaggle files with `evaluation` or "
        "`test` in their names, unless :train or :evaluation says otherwise"
    )
    add("--source", action="append", default=[], metavar=_SOURCE_FORM, help=source_help)
    num_aug_help = "augmentations per task, at most (default: %(default)s)"
    add("--num-aug", type=_at_least(0), default=1000, metavar="N", help=num_aug_help)
    holdout_help = "whose test pairs stay out of training (default: %(default)s)"
    add("--holdout", choices=("evaluation", "all"), default="evaluation", help=holdout_help)
    canvas_help = "side of the canvas; tasks with a larger grid are left out (default: %(default)s)"
    add("--canvas", type=_at_least(1, MAX_GRID_SIDE), default=MAX_GRID_SIDE, metavar="N", help=canvas_help)
    conflicts_help = "two different tasks of one id: refuse them, or take the first (default: %(default)s)"
    add("--conflicts", choices=("refuse", "first"), default="refuse", help=conflicts_help)
    _add_common_arguments(parser, "keep the first N tasks by id")


def _add_sudoku_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    num_aug_help = "augmentations per training puzzle (default: %(default)s)"
    add("--num-aug", type=_at_least(0), default=0, metavar="N", help=num_aug_help)
    difficulty_help = "smallest rating to keep; of new puzzles the backtracks of a solver"
    add("--min-difficulty", type=_at_least(0), metavar="N", help=difficulty_help)
    add("--side", type=int, choices=tuple(BOX_SHAPES), help="digits of new puzzles (default: 9)")
    _add_puzzle_arguments(parser)


def _add_maze_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    num_aug_help = "rotations and reflections of each training maze, at most 7 (default: %(default)s)"
    add("--num-aug", type=_at_least(0, NUM_DIHEDRAL - 1), default=0, metavar="N", help=num_aug_help)
    add("--min-difficulty", type=_at_least(0), metavar="N", help="smallest rating to keep of a --source")
    add(
        "--side", type=_at_least(2, MAX_SIDE), metavar="N", help="rows and columns of new mazes (default: 30)"
    )
    steps_help = "shortest paths of new mazes take more steps than this (default: 110)"
    add("--min-steps", type=_at_least(0), metavar="N", help=steps_help)
    _add_puzzle_arguments(parser)


def _add_puzzle_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    source_help = (
        "CSV file, folder with train.csv or test.csv, or hub:OWNER/NAME[@REVISION]; repeatable. A file with `test` "
        "or `evaluation` in its name is the test split, unless :train or :evaluation says otherwise"
    )
    add("--source", action="append", default=[], metavar=_SOURCE_FORM, help=source_help)
    add("--subsample", type=_at_least(1), metavar="N", help="keep N of the training puzzles, drawn at random")
    add(
        "--num-train",
        type=_at_least(1, MAX_GROUPS),
        metavar="N",
        help="new puzzles to train on (default: 1000)",
    )
    add(
        "--num-test",
        type=_at_least(1, MAX_GROUPS),
        metavar="N",
        help="new puzzles to test on (default: 1000)",
    )
    _add_common_arguments(parser, "keep the first N puzzles of each split")


def _add_common_arguments(parser: argparse.ArgumentParser, limit_help: str) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    leaks_help = (
        "held-out pairs that also stand in the training data: refuse to build (but for those that a published preset "
        "has), drop them from training, or keep them (default: %(default)s)"
    )
    add("--leaks", choices=("refuse", "drop", "keep"), default="refuse", help=leaks_help)
    add("--limit-groups", type=_at_least(1), metavar="N", help=limit_help)
    add("--seed", type=_at_least(0), default=42, metavar="N", help="of all draws (default: %(default)s)")
    workers_help = "processes (default: one per CPU)"
    add("--workers", type=_at_least(1), default=os.cpu_count() or 1, metavar="N", help=workers_help)
    part_help = "build one of N parts, I from 0; see data_pipeline.merge"
    add("--part", type=parse_part, default=Part(), metavar="I/N", help=part_help)
    add("--quiet", action="store_true", help="no progress bar, no summary")


def _arc_options(given: argparse.Namespace) -> ArcOptions:
    return ArcOptions(
        num_aug=given.num_aug,
        holdout=given.holdout,
        canvas=given.canvas,
        limit_groups=given.limit_groups,
        leaks=given.leaks,
        conflicts=given.conflicts,
    )


def _puzzle_options(parser: argparse.ArgumentParser, given: argparse.Namespace) -> PuzzleOptions:
    is_maze = given.preset == "maze"
    of_source = {
        "--subsample": given.subsample,
        "--min-difficulty": given.min_difficulty if is_maze else None,
    }
    of_generator = {
        "--side": given.side,
        "--num-train": given.num_train,
        "--num-test": given.num_test,
        "--min-steps": given.min_steps if is_maze else None,
    }
    misplaced = [
        option for option, value in (of_generator if given.source else of_source).items() if value is not None
    ]
    if misplaced:
        what = (
            "new puzzles; leave it out or leave out"
            if given.source
            else "puzzles of a source; leave it out or add"
        )
        parser.error(f"{', '.join(misplaced)}: only for {what} --source")
    generator = None
    if not given.source:
        generator = Generator(
            side=given.side or (30 if is_maze else 9),
            num_train=given.num_train or 1000,
            num_test=given.num_test or 1000,
            min_steps=(110 if given.min_steps is None else given.min_steps) if is_maze else None,
        )
    return PuzzleOptions(
        num_aug=given.num_aug,
        subsample=given.subsample,
        min_difficulty=given.min_difficulty,
        limit_groups=given.limit_groups,
        leaks=given.leaks,
        generator=generator,
    )


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
