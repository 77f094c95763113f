"""Verify a dataset, say what is in it, and draw some of its puzzles.

examples:
  python -m data_pipeline.inspect data/arc1
      verifies every checksum; then prints counts, the sizes of groups and grids, and the vocabulary
  python -m data_pipeline.inspect data/arc1 --picture arc1.png --groups 12
      draws puzzles of twelve groups, too, up to four of each, and around them their windows (docs/data.md)

Whatever is missing, damaged, unlike what other files say, or left over is named, all of it, with exit code 2.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.extras import require
from data_pipeline.base.files import replace_file
from data_pipeline.base.paths import path_argument
from data_pipeline.base.sizes import size_text
from data_pipeline.base.table import table
from data_pipeline.inspect.plot import draw, read_puzzles
from data_pipeline.inspect.verify import Dataset, verify
from data_pipeline.kind import Look, Token
from data_pipeline.kinds import kind_named
from data_pipeline.options import side_by_side
from data_pipeline.readings import reading_table
from data_pipeline.schema import NOTHING_HELD_OUT, REBUILD, DatasetInfo, SplitIndex, SplitName
from data_pipeline.shards.reader import read_shard
from data_pipeline.windows import Windows, load_windows, told_of_windows

MAX_GROUPS_DRAWN = 100

_MAX_BARS = 10  # of a histogram
_BAR_WIDTHS = {1: 60, 2: 30, 4: 10}  # by the number of histograms side by side

Counts = NDArray[np.int64]  # [largest value + 1], how often each value comes


def look_of(info: DatasetInfo) -> Look:
    """Return how a dataset's puzzles are drawn and measured."""
    return kind_named(info.kind).look(info.canvas)


def main() -> int:
    """Parse the command line, verify, print and draw."""
    args = _parse_arguments()
    folder: Path = args.dataset_dir
    if args.picture:
        _check_picture_path(args.picture)
    started = time.monotonic()
    dataset = verify(folder, args.workers, show_progress=not args.quiet)
    seconds = time.monotonic() - started
    text = summary(dataset)
    if args.picture:
        _write_picture(dataset, args.picture, args.groups)
    num_shards = sum(len(index.shards) for index in dataset.indexes.values())
    print(f"{folder}: sound; {num_shards} shards verified in {seconds:.1f} s\n\n{text}")
    if args.picture:
        print(f"\npicture of puzzles: {args.picture}")
    return 0


def _check_picture_path(path: Path) -> None:
    """Refuse what cannot be drawn before the long work, not after it."""
    require("report", "--picture")
    if path.suffix != ".png":
        raise InputError(f"--picture {path}: is drawn as PNG; give a name that ends in .png.")
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "it is a folder" if path.is_dir() else f"no folder {path.parent} to write to"
        raise InputError(f"--picture {path}: cannot be written ({reason}); give another path.")


def _write_picture(dataset: Dataset, path: Path, num_groups: int) -> None:
    split = dataset.splits_with_rows[0]
    index = dataset.indexes[split]
    windows = load_windows(dataset.folder, dataset.info)
    lines = read_puzzles(
        dataset.folder / split, index, dataset.names, num_groups, windows.table() if windows else None
    )
    look = look_of(dataset.info)
    replace_file(path, draw(lines, look.tokens, look.box))


def summary(dataset: Dataset) -> str:
    """Return what is in a sound dataset, for people; at most 100 columns wide."""
    info, look = dataset.info, look_of(dataset.info)
    if info.vocab_size != len(look.tokens):
        raise InputError(
            f"{dataset.folder / 'dataset.json'}: vocab_size is {info.vocab_size}, but {info.kind} has "
            f"{len(look.tokens)} tokens; {REBUILD}."
        )
    splits: dict[SplitName, SplitIndex] = {
        split: dataset.indexes[split] for split in dataset.splits_with_rows
    }
    group_sizes = {split: np.bincount(index.groups.num_puzzles) for split, index in splits.items()}
    puzzle_sizes = {
        split: np.bincount(index.groups.num_examples, weights=index.groups.num_puzzles).astype(np.int64)
        for split, index in splits.items()
    }
    first_rows = {split: _count_first_row(dataset, split, look) for split in splits}
    measured = {
        f"{split} {name}".strip(): counts
        for split, (_, found) in first_rows.items()
        for name, counts in found.items()
    }
    vocabulary_split = dataset.splits_with_rows[0]
    readings = reading_table(info.readings)
    sections = (
        _head(info, load_windows(dataset.folder, info)),
        *([["what was read", *readings]] if readings else []),
        _size_table(dataset),
        histograms("puzzles per group (number of groups)", group_sizes),
        histograms("examples per puzzle (number of puzzles)", puzzle_sizes),
        histograms(f"{look.measured}, row 0 of each split", measured),
        _vocabulary(look.tokens, first_rows[vocabulary_split][0], vocabulary_split),
    )
    return "\n\n".join("\n".join(section) for section in sections)


def _count_first_row(
    dataset: Dataset, split: SplitName, look: Look
) -> tuple[NDArray[np.int64], dict[str, Counts]]:
    """Count the tokens in row 0 of a split, of inputs and of labels [2, vocab_size], and what is measured there."""
    index, vocab_size = dataset.indexes[split], len(look.tokens)
    counted = np.zeros((2, vocab_size), dtype=np.int64)
    measured: defaultdict[str, Counts] = defaultdict(lambda: np.zeros(index.seq_len + 2, dtype=np.int64))
    for entry in index.shards:
        if entry.row > 0:
            break
        shard = read_shard(dataset.folder / split, index, entry, verified=True)
        boards = shard.examples(slice(None)).reshape(-1, 2, index.canvas, index.canvas)
        if boards.max() >= vocab_size:
            raise InputError(
                f"{dataset.folder / split / entry.file}: has token {boards.max()}, but the last of the "
                f"vocabulary is {vocab_size - 1}; {REBUILD}."
            )
        for side in range(2):
            counted[side] += np.bincount(boards[:, side].reshape(-1), minlength=vocab_size)
        for name, values in look.measure(boards[:, 0], boards[:, 1]).items():
            measured[name] += np.bincount(values, minlength=index.seq_len + 2)
    return counted, measured


def _head(info: DatasetInfo, windows: Windows | None) -> list[str]:
    options = {"seed": info.seed, **side_by_side(info.options)}
    lines = [
        f"  kind         {info.kind}, grids on a canvas of {info.canvas} x {info.canvas}",
        f"  options      {' '.join(f'{key}={value}' for key, value in options.items() if value is not None)}",
    ]
    for source in info.sources:
        checksum = f"sha256 {source.sha256[:16]}..."
        lines.append(f"  source       {source.name}: {source.num_tasks:,} entries, {checksum}")
    if subset := info.subset_of_both():
        lines.append(f"  subset       {subset}")
    if info.num_tasks_left_out and not info.readings:  # of an earlier version
        lines.append(f"  left out     {info.num_tasks_left_out:,} tasks with a grid larger than the canvas")
    if not info.splits.test.total_groups:
        lines.append(f"  held out     {NOTHING_HELD_OUT}")
    if info.leaks.num_pairs:
        fate = "removed from training" if info.leaks.dropped else "which also train"
        lines.append(
            f"  leaks        {info.leaks.num_pairs:,} held-out pairs that stood in the training data, {fate}"
        )
    lines += [f"  windows      {text}" for text in told_of_windows(windows)]
    return [*lines, f"  identifiers  {info.num_puzzle_identifiers:,} with the blank one"]


def _size_table(dataset: Dataset) -> list[str]:
    indexes = list(dataset.indexes.values())
    sizes = [index.sizes() for index in indexes]
    return table(
        [
            ("", *(index.split for index in indexes)),
            ("groups", *(f"{size.total_groups:,}" for size in sizes)),
            ("puzzles", *(f"{size.num_puzzles:,}" for size in sizes)),
            ("examples", *(f"{size.num_examples:,}" for size in sizes)),
            ("rows", *(f"{size.num_rows:,}" for size in sizes)),
            ("shards", *(f"{len(index.shards):,}" for index in indexes)),
            ("size", *(size_text(size.size_bytes) for size in sizes)),
        ],
        "<>",
        indent="  ",
    )


def histograms(title: str, columns: Mapping[str, Counts]) -> list[str]:
    """Return histograms side by side, a bar for each value or, where there are many, for each range of values."""
    length = max(len(counts) for counts in columns.values())
    counts = np.stack([np.pad(column, (0, length - len(column))) for column in columns.values()])
    values = np.flatnonzero(counts.any(axis=0))
    if not values.size:
        return [title, "  none"]
    steps = (digit * 10**power for power in range(8) for digit in (1, 2, 3, 5))
    step = next(step for step in steps if len(np.unique((values - 1) // step)) <= _MAX_BARS)
    _, firsts = np.unique((values - 1) // step, return_index=True)
    ranges = np.split(values, firsts[1:])
    sums = np.stack([counts[:, members].sum(axis=1) for members in ranges])  # [ranges, columns]
    width = max(10, len(f"{sums.max():,}"))
    bar_width = _BAR_WIDTHS[len(columns)] - (width - 10)
    bars = -(-sums * bar_width // np.maximum(sums.max(axis=0), 1))  # rounded up: what is there is seen
    lines = [title, f"{'':9}" + "".join(f"   {name:{width - 1 + bar_width}}" for name in columns)]
    for members, row, row_bars in zip(ranges, sums.tolist(), bars.tolist(), strict=True):
        low, high = members[0], members[-1]
        label = f"{low}" if low == high else f"{low}-{high}"
        cells = (f" {n:>{width},} {'#' * bar:{bar_width}}" for n, bar in zip(row, row_bars, strict=True))
        lines.append(f"{label:>9}" + "".join(cells))
    return [line.rstrip() for line in lines]


def _vocabulary(tokens: Sequence[Token], counted: NDArray[np.int64], split: SplitName) -> list[str]:
    inputs, labels = 100 * counted / counted.sum(axis=1, keepdims=True)
    rows = [
        (str(i), f"{inputs[i]:.2f}%", f"{labels[i]:.2f}%", token.meaning) for i, token in enumerate(tokens)
    ]
    title = f"vocabulary, share of the cells in row 0 of {split}"
    return [title, *table([("", "inputs", "labels", ""), *rows], ">>><", indent="  ")]


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser("data_pipeline.inspect", __doc__)
    add = parser.add_argument
    add("dataset_dir", type=path_argument, metavar="DIR", help="dataset folder")
    add("--picture", type=path_argument, metavar="FILE.png", help="draw some puzzles into this file")
    groups_help = "groups in the picture (default: %(default)s)"
    add("--groups", type=whole_number(1, MAX_GROUPS_DRAWN), default=6, metavar="N", help=groups_help)
    workers_help = "threads that verify (default: one per CPU)"
    add("--workers", type=whole_number(1, 1024), default=os.cpu_count() or 1, metavar="N", help=workers_help)
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(exit_code(main))
