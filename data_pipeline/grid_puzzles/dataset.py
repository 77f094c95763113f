"""A dataset of grid puzzles: from CSV files, or new ones."""

import hashlib
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline import leaks
from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import map_threads
from data_pipeline.base.progress import progress_bar
from data_pipeline.base.random import Bits
from data_pipeline.grid_puzzles import scratch
from data_pipeline.grid_puzzles.csv_files import HUB_PREFIX, CsvFile, find_files, is_published, open_bytes
from data_pipeline.grid_puzzles.csv_source import HEADER, Puzzles
from data_pipeline.grid_puzzles.generate import Blocks, generate
from data_pipeline.grid_puzzles.puzzle_type import Examples, PuzzleOptions, PuzzleType
from data_pipeline.grid_puzzles.reading import Fate, Selection, leave_out, read_puzzles
from data_pipeline.grid_puzzles.rows import PuzzleRows
from data_pipeline.kind import Kind, Look
from data_pipeline.readings import left_out
from data_pipeline.schema import (
    BLANK_NAME,
    MAX_GROUPS,
    SPLITS,
    DatasetHead,
    DatasetMetadata,
    Identity,
    Leak,
    Leaks,
    LeftOut,
    SourceInfo,
    SourceReading,
    SplitName,
    Subsets,
)
from data_pipeline.shards.plan import DatasetPlan, Request

_BLOCK = 16384  # puzzles that are handled together


@dataclass(frozen=True)
class PuzzleContent:
    """The chosen puzzles, or what makes them."""

    request: Request
    options: PuzzleOptions
    identity: Identity
    puzzle_type: PuzzleType
    leaks: Leaks
    readings: tuple[SourceReading, ...] = ()
    puzzles: dict[SplitName, Puzzles] | None = None
    """None where they are still to be generated."""

    def write_scratch(self, folder: Path) -> None:
        """Write the puzzles of each split to a file, unless it is sound already."""
        for split in SPLITS:
            file = _scratch_file(folder, split)
            if scratch.is_sound(file):
                continue
            if self.puzzles is None:
                scratch.write(file, [self._generate(split, folder)])
            else:
                puzzles = self.puzzles.pop(split)  # no longer needed here
                scratch.write(file, (_examples(block) for block in _blocks(puzzles)))

    def plan(self, folder: Path) -> DatasetPlan:
        """Return the rows of the puzzles in the scratch files."""
        num_aug: dict[SplitName, int] = {"train": self.options.num_aug, "test": 0}
        rows: dict[SplitName, PuzzleRows] = {
            split: PuzzleRows(
                self.puzzle_type, _scratch_file(folder, split), num_aug[split], self.request.seed
            )
            for split in SPLITS
        }
        head = DatasetHead(
            **dict(self.identity),
            canvas=self.puzzle_type.side,
            seq_len=self.puzzle_type.side**2,
            vocab_size=self.puzzle_type.vocab_size,
            num_puzzle_identifiers=1,
            leaks=self.leaks,
            readings=self.readings,
            subsets=Subsets(train=rows["train"].subset(), test=rows["test"].subset()),
        )
        return DatasetPlan(head, rows, {"identifiers.json": [BLANK_NAME], "test_puzzles.json": {}})

    def _generate(self, split: SplitName, folder: Path) -> Examples:
        new, request = self.options.generator, self.request
        assert new is not None
        count = new.num_train if split == "train" else new.num_test
        blocks = Blocks(self.puzzle_type, request.seed, split, folder)
        return generate(blocks, count, request.part, request.workers, show_progress=not request.quiet)


def _scratch_file(folder: Path, split: SplitName) -> Path:
    return folder / f"{split}.tokens"


def read(puzzle_type: type[PuzzleType], request: Request) -> PuzzleContent:
    """Read and choose the puzzles of the sources; raise InputError for what cannot be used as asked."""
    options = request.options
    assert isinstance(options, PuzzleOptions)
    if options.generator is not None:
        identity = request.identity(puzzle_type.kind, ())
        # No leaks: see the generators.
        return PuzzleContent(request, options, identity, puzzle_type.of_new(options), Leaks())
    found = [find_files(source) for source in request.sources]
    files: dict[SplitName, list[CsvFile]] = {
        "train": [file for some in found for file in some.train],
        "test": [file for some in found for file in some.test],
    }
    digests = {split: [_content_sha256(file) for file in files[split]] for split in SPLITS}
    puzzles, fates = _read_files(puzzle_type, request, options, files)
    sized = puzzle_type(math.isqrt(puzzles["train"].inputs.shape[1]))
    found_leaks = _find_leaks(sized, puzzles, request)
    settled = leaks.settle(
        found_leaks.named(),
        options.leaks,
        num_pairs=found_leaks.num_pairs,
        is_published=all(source.startswith(HUB_PREFIX) for source in request.sources),
    )
    if settled.dropped:
        puzzles["train"] = _without(puzzles.pop("train"), found_leaks.is_leaked_train)
        if not puzzles["train"].num_puzzles:
            raise InputError(
                "--leaks drop leaves no training puzzle, since all are held out too; give others."
            )
        leave_out(fates["train"], "held out too (--leaks drop)", np.flatnonzero(~found_leaks.is_leaked_train))
    sources = tuple(
        SourceInfo(name=_name(fate.file, split), sha256=digest, num_tasks=fate.num_read)
        for split in SPLITS
        for fate, digest in zip(fates[split], digests[split], strict=True)
    )
    identity = request.identity(puzzle_type.kind, sources)
    not_read: defaultdict[str, list[str]] = defaultdict(list)
    for why, file in (pair for some in found for pair in some.not_read):
        not_read[why].append(file.name)
    told = _source_readings(fates, tuple(left_out(why, names) for why, names in not_read.items()))
    return PuzzleContent(request, options, identity, sized, settled, told, puzzles)


def _name(file: CsvFile, split: SplitName) -> str:
    if is_published(file):
        return "/".join(file.resolve().parts[-2:])
    return f"{file.name}:{'evaluation' if split == 'test' else 'train'}"


def _content_sha256(file: CsvFile) -> str:
    """Return the checksum of a file's bytes, unpacked, or of all files of a split."""
    digest = hashlib.sha256()
    parts = [file / "dataset.json", *sorted(file.glob("*__*.npy"))] if is_published(file) else [file]
    for part in parts:
        with open_bytes(part) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _source_readings(
    fates: dict[SplitName, list[Fate]], untold: tuple[LeftOut, ...]
) -> tuple[SourceReading, ...]:
    """Return what to tell of each file; of those that were not read, `untold`, once."""
    readings: list[SourceReading] = []
    for split in SPLITS:
        for fate in fates[split]:
            readings.append(
                SourceReading(
                    source=_name(fate.file, split),
                    num_tasks=fate.num_read,
                    num_trained=fate.num_kept if split == "train" else 0,
                    num_held_out=fate.num_kept if split == "test" else 0,
                    left_out=tuple(LeftOut(why=why, num=num) for why, num in fate.left_out.items() if num),
                    not_read=untold,
                )
            )
            untold = ()
    return tuple(readings)


def _read_files(
    puzzle_type: type[PuzzleType],
    request: Request,
    options: PuzzleOptions,
    files: dict[SplitName, list[CsvFile]],
) -> tuple[dict[SplitName, Puzzles], dict[SplitName, list[Fate]]]:
    """Return the chosen puzzles of each split, none of one that has no files, and what became of the others."""
    puzzles: dict[SplitName, Puzzles] = {}
    fates: dict[SplitName, list[Fate]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        if not files[split]:
            continue
        draw = (options.subsample, "") if split == "train" else (options.subsample_test, "-test")
        selection = Selection(options.min_difficulty, draw[0], request.seed, f"--subsample{draw[1]}")
        found, fates[split] = read_puzzles(
            files[split],
            puzzle_type.read_block,
            selection,
            characters=puzzle_type.characters,
            show_progress=not request.quiet,
        )
        limit = options.limit_groups
        if limit is not None:
            found = found.take(slice(limit))
            leave_out(fates[split], "beyond --limit-groups", np.arange(limit))
        if found.num_puzzles > MAX_GROUPS:
            raise InputError(
                f"{files[split][0]}: {found.num_puzzles} puzzles, but a split holds at most "
                f"{MAX_GROUPS}; add --limit-groups {MAX_GROUPS} or less."
            )
        puzzles[split] = found
    widths = {split: found.inputs.shape[1] for split, found in puzzles.items()}
    if len(set(widths.values())) > 1:
        raise InputError(
            f"{files['test'][0]}: its puzzles have {widths['test']} cells, but those of {files['train'][0]} have "
            f"{widths['train']}; all puzzles of a dataset are equally large."
        )
    if "train" not in puzzles:
        print(
            "warning: every puzzle is held out, so there is nothing to train on (--source PATH:train trains on all of "
            "a source)",
            file=sys.stderr,
        )
    [some, *_] = puzzles.values()
    return {split: puzzles.get(split, some.take(slice(0))) for split in SPLITS}, fates


class _PuzzleLeaks:
    """Which puzzles of the splits are the same but for an augmentation, by their keys."""

    def __init__(self, train_keys: Bits, test_keys: Bits) -> None:
        self._train_keys, self._test_keys = train_keys, test_keys
        self.is_leaked_train = _is_in(train_keys, test_keys)
        self.is_leaked_test = _is_in(test_keys, train_keys)

    @property
    def num_pairs(self) -> int:
        return int(self.is_leaked_test.sum())

    def named(self) -> list[Leak]:
        """Name the first of them by their numbers, from 0, among the chosen puzzles of their split."""
        found = np.flatnonzero(self.is_leaked_test)[: leaks.MAX_RECORDED]
        trained: dict[int, list[int]] = defaultdict(list)
        for number in np.flatnonzero(self.is_leaked_train).tolist():
            trained[int(self._train_keys[number])].append(number)
        return [
            leaks.leak(
                f"test puzzle {number}",
                [f"train puzzle {other}" for other in trained[int(self._test_keys[number])]],
            )
            for number in found.tolist()
        ]


def _is_in(keys: Bits, others: Bits) -> NDArray[np.bool_]:
    """Tell which of the keys are among the others, in less memory than np.isin."""
    if not len(others):
        return np.zeros(len(keys), dtype=np.bool_)
    ordered = np.sort(others)
    return ordered[np.searchsorted(ordered, keys).clip(max=len(ordered) - 1)] == keys


def _find_leaks(puzzle_type: PuzzleType, puzzles: dict[SplitName, Puzzles], request: Request) -> _PuzzleLeaks:
    if not all(chosen.num_puzzles for chosen in puzzles.values()):
        none = np.zeros(0, dtype=np.uint64)
        return _PuzzleLeaks(none, none)
    blocks = [block for split in SPLITS for block in _blocks(puzzles[split])]

    def keys_of(block: Puzzles) -> Bits:
        return puzzle_type.content_keys(_examples(block))

    keys: list[Bits] = []
    num_puzzles = sum(block.num_puzzles for block in blocks)
    with progress_bar("looking for leaks", "puzzle", num_puzzles, shown=not request.quiet) as progress:
        for of_block in map_threads(keys_of, blocks, request.workers):
            keys.append(of_block)
            progress.update(len(of_block))
    all_keys = np.concatenate(keys)
    num_train = puzzles["train"].num_puzzles
    return _PuzzleLeaks(all_keys[:num_train], all_keys[num_train:])


def _without(puzzles: Puzzles, is_dropped: NDArray[np.bool_]) -> Puzzles:
    """Return the other puzzles, moved together in place: millions of them are not to be there twice."""
    num_kept = 0
    for start in range(0, puzzles.num_puzzles, _BLOCK):
        block = slice(start, start + _BLOCK)
        kept = puzzles.take(block).take(~is_dropped[block])
        for column, values in zip(puzzles, kept, strict=True):
            column[num_kept : num_kept + kept.num_puzzles] = values
        num_kept += kept.num_puzzles
    return puzzles.take(slice(num_kept))


def _blocks(puzzles: Puzzles) -> list[Puzzles]:
    return [puzzles.take(slice(start, start + _BLOCK)) for start in range(0, puzzles.num_puzzles, _BLOCK)]


def _examples(puzzles: Puzzles) -> Examples:
    return np.stack([puzzles.inputs, puzzles.labels], axis=1)


def kind_of(puzzle_type: type[PuzzleType], puzzles: str) -> Kind:
    """Return what the registry lists of a type of grid puzzles; `puzzles` is their plural."""

    def expect(request: Request) -> DatasetMetadata:
        options = request.options
        assert isinstance(options, PuzzleOptions)
        sized = puzzle_type.of_new(options)
        return DatasetMetadata(
            seq_len=sized.side**2, vocab_size=sized.vocab_size, num_puzzle_identifiers=1,
            total_groups=options.generator.num_train if options.generator else 1000, mean_puzzle_examples=1.0,
        )  # fmt: skip

    def look(canvas: int) -> Look:
        return puzzle_type(canvas).look()

    def images(examples: Examples, puzzles: NDArray[np.int64], numbers: NDArray[np.int64]) -> Examples:
        return puzzle_type(math.isqrt(examples.shape[2])).augment(examples, 0, puzzles, numbers)

    return Kind(
        name=puzzle_type.kind,
        presets={
            puzzle_type.kind: f"{puzzles} of CSV files (such as {HEADER}), or new ones where there is no --source"
        },
        source_help="CSV file, folder or zip archive of some, dataset of the published code, or "
        "hub:OWNER/NAME[@REVISION]; repeatable. A file with the word `test` or `evaluation` in its name is the test "
        "split, unless :train or :evaluation says otherwise",
        options=puzzle_type.options,
        read=partial(read, puzzle_type),
        expect=expect,
        look=look,
        checks=puzzle_type.checks,
        characters=puzzle_type.characters.decode(),
        answers_only=puzzle_type.answers_only.decode(),
        images=None if puzzle_type.augment is PuzzleType.augment else images,
    )
