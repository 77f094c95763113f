"""Build a dataset: puzzles in, compressed shards of augmented and encoded puzzles out.

examples:
  python -m data_pipeline.build arc-agi-1 --out data/arc1
      the published ARC-AGI-1 data: 1000 augmentations, evaluation tasks' test pairs held out
  python -m data_pipeline.build arc-agi-1 --source ConceptARC/corpus --out data/arc1-concept
      the same with another 160 tasks, all of which train
  python -m data_pipeline.build arc --source arc-agi_test_challenges.json --holdout all --out data/test
      tasks of a file alone
  python -m data_pipeline.build sudoku --subset sudoku-extreme-1k --num-aug 1000 --out data/sudoku-extreme-1k-aug-1000
      1,000 puzzles of the published Sudoku data, drawn with a fixed seed; `--subset NAME@HASH` refuses any others
  python -m data_pipeline.build --subsets
      lists the subsets that have a name
  python -m data_pipeline.build sudoku --source hub:sapientinc/sudoku-extreme --subsample 500 --out data/sudoku-500
      a draw of one's own
  python -m data_pipeline.build maze --num-train 1000 --num-test 1000 --out data/mazes
      new mazes of 30 x 30 with shortest paths of more than 110 steps

The same sources, options and seed give the same bytes on any machine with any number of workers. A build that was
stopped, by whatever, is resumed by the same command. To share one among machines with a common disk, give each its
--part: I/N for I from 0 to N-1 with the same N; then run `python -m data_pipeline.merge DIR`.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from data_pipeline import subsets
from data_pipeline.base import signals
from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import EXIT_FAILED, EXIT_INTERRUPTED, exit_code
from data_pipeline.base.parallel import Part, parse_part
from data_pipeline.base.paths import path_argument
from data_pipeline.base.progress import progress_bar
from data_pipeline.base.sizes import size_text
from data_pipeline.build_spec import BuildSpec
from data_pipeline.kind import Kind
from data_pipeline.kinds import KIND_OF_PRESET, KINDS
from data_pipeline.readings import reading_table
from data_pipeline.schema import BUILDING, HOW_TO_HOLD_OUT, NOTHING_HELD_OUT, DatasetInfo
from data_pipeline.shards import build_dir
from data_pipeline.shards.plan import Content, Request
from data_pipeline.shards.writer import shard_ids, write_shards
from data_pipeline.windows import load_windows, told_of_windows

_SOURCE_FORM = "PATH[:train|:evaluation]"
_SUBSET_HELP = (
    "the puzzles of a benchmark by name (see `python -m data_pipeline.build --subsets`); with 8 or more digits of its "
    "hash, any others are refused"
)


def main() -> int:
    """Parse the command line and build."""
    request = parse_arguments()
    signals.catch(signal.default_int_handler)
    try:
        build(request)
    except KeyboardInterrupt:
        print(
            f"interrupted; {request.out} may not be complete; the same command resumes it",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    except BrokenProcessPool:
        print(
            "error: a worker process was killed, perhaps since memory ran out; the same command resumes it, with "
            "--workers 1 in the least memory",
            file=sys.stderr,
        )
        return EXIT_FAILED
    return 0


def build(request: Request) -> DatasetInfo | None:
    """Build the dataset, or what is missing of it, unless the very same is there already.

    Return None for a part, which makes no dataset. Raise InputError for sources that cannot be read and an output
    that cannot be written.
    """
    started = time.monotonic()
    content = read(request)
    info = build_dir.find(request.out, content.identity)
    if info is not None:
        if request.subset is not None:
            subsets.check(info.subsets, request.subset)
        _say(request, f"{request.out}: already built")
        return info
    num_written = _write_missing(request, content)
    if request.part.count > 1:
        _say(
            request,
            f"{request.out}: part {request.part.number} of {request.part.count} is built, {num_written} new shards "
            f"in {time.monotonic() - started:.1f} s; after all parts: python -m "
            f"data_pipeline.merge {shlex.quote(str(request.out))}",
        )
        return None
    info = build_dir.finish(request.out, show_progress=not request.quiet)
    _say(request, f"{summary(request.out, info)} in {time.monotonic() - started:.1f} s")
    return info


def read(request: Request) -> Content:
    """Read the sources of a dataset; raise InputError for what cannot be used as asked."""
    return KIND_OF_PRESET[request.preset].read(request)


def _write_missing(request: Request, content: Content) -> int:
    """Write those shards of the part that are not there; return their number."""
    with build_dir.begin(request.out, content.identity, request.part) as journal:
        content.write_scratch(request.out / BUILDING)
        plan = content.plan(request.out / BUILDING)
        layouts = plan.layouts()
        head = plan.head
        if head.subsets is not None:
            named = subsets.named(head.subsets, request.subset)
            head = head.model_copy(update={"subsets": named})
        build_dir.write_layouts(request.out, head, layouts.values(), plan.documents)
        ids = request.part.share([shard_id for layout in layouts.values() for shard_id in shard_ids(layout)])
        written = build_dir.written_shards(request.out)
        missing = [shard_id for shard_id in ids if shard_id not in written]
        num_there = len(ids) - len(missing)
        with progress_bar("shards", "shard", len(ids), shown=not request.quiet, done=num_there) as progress:
            for shards in write_shards(request.out, layouts, plan.rows, missing, request.workers):
                build_dir.note(journal, shards)
                progress.update(len(shards))
    return len(missing)


def _say(request: Request, text: str) -> None:
    if not request.quiet:
        print(text)


def summary(out: Path, info: DatasetInfo) -> str:
    """Return the sizes of a dataset, for people."""
    train, test = info.splits.train, info.splits.test
    lines = [
        f"{out}: {train.total_groups} groups, {max(train.num_puzzles, info.num_puzzle_identifiers - 1)} puzzles",
        f"  train: {train.num_examples} examples in {train.num_rows} rows",
        f"  test: {test.num_examples} examples of {test.total_groups} held-out groups"
        if test.total_groups
        else f"  test: {NOTHING_HELD_OUT} (to hold out: {HOW_TO_HOLD_OUT})",
    ]
    lines[1:1] = reading_table(info.readings)
    if train.total_groups and info.readings and not any(reading.num_trained for reading in info.readings):
        lines.append("  every task is held out, so nothing but their demonstrations trains")
    if info.leaks.num_pairs:
        fate = "removed from training" if info.leaks.dropped else "which stay in training"
        lines.append(f"  held-out pairs that also stood in the training data: {info.leaks.num_pairs}, {fate}")
    lines += [f"  windows: {text}" for text in told_of_windows(load_windows(out, info))]
    lines += [f"  subset: {text}" for text in [info.subset_of_both()] if text]
    lines.append(f"  {size_text(train.size_bytes + test.size_bytes)}")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> Request:
    """Return what the command line asks for; end the process where it is wrong."""
    parser = command_parser("data_pipeline.build", __doc__)
    parser.add_argument("--subsets", action=_ListSubsets, help="list the subsets of benchmarks, and exit")
    presets = parser.add_subparsers(dest="preset", metavar="PRESET", required=True)
    for kind in KINDS:
        for preset, what in kind.presets.items():
            _add_arguments(presets.add_parser(preset, help=what, description=what), kind)
    given = vars(parser.parse_args(arguments))
    out, workers, part, quiet = (given.pop(name) for name in ("out", "workers", "part", "quiet"))
    try:
        spec = BuildSpec.model_validate(given, context="--")
    except ValidationError as error:
        flags: defaultdict[str, list[str]] = defaultdict(list)
        for problem in error.errors():
            flags[problem["msg"].removeprefix("Value error, ")] += [
                _flag(name)
                for name in problem["loc"]
                if isinstance(name, str)  # not the number of a source
            ]
        parser.error(
            "; ".join(f"{', '.join(names)}: {why}" if names else why for why, names in flags.items())
        )
    return spec.request(out, workers=workers, quiet=quiet, part=part)


def _add_arguments(parser: argparse.ArgumentParser, kind: Kind) -> None:
    add = parser.add_argument
    add("--source", action="append", default=[], metavar=_SOURCE_FORM, help=kind.source_help)
    add("--subset", metavar="NAME[@HASH]", help=_SUBSET_HELP)
    fields = {name: option.field for name, option in kind.options.by_name().items()}
    for name, field in {**fields, "seed": BuildSpec.model_fields["seed"]}.items():
        _add_option(parser, name, field)
    add("--out", type=path_argument, required=True, metavar="DIR", help="folder to make")
    workers_help = "processes (default: one per CPU)"
    add("--workers", type=whole_number(1), default=os.cpu_count() or 1, metavar="N", help=workers_help)
    part_help = "build one of N parts, I from 0; see data_pipeline.merge"
    add("--part", type=parse_part, default=Part(), metavar="I/N", help=part_help)
    add("--quiet", action="store_true", help="no progress bar, no summary")


class _ListSubsets(argparse.Action):
    """Print the subsets, and end the process."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(subsets.subset_table())
        parser.exit()


def _add_option(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    """Add the flag of an option: a choice, or a whole number."""
    low = next((int(str(bound.ge)) for bound in field.metadata if isinstance(bound, Ge)), 0)
    high = next((int(str(bound.le)) for bound in field.metadata if isinstance(bound, Le)), None)
    choices: tuple[object, ...] = (
        get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    )
    notes = [f"{low} to {high}"] if high else []
    notes += [f"default: {field.default}"] if field.default is not None else []
    meaning = (field.description or "").rstrip(".")
    parser.add_argument(
        _flag(name),
        type=(int if isinstance(choices[0], int) else str) if choices else whole_number(low, high),
        choices=choices or None,
        metavar=None if choices else "N",
        default=argparse.SUPPRESS,
        help=f"{meaning[:1].lower()}{meaning[1:]}" + (f" ({'; '.join(notes)})" if notes else ""),
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    sys.exit(exit_code(main))
