"""A dataset of Sudokus or mazes: from CSV files, or new ones."""

import hashlib
import math
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_pipeline import leaks
from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import SHOWN_AFTER_SECONDS
from data_pipeline.base.random import Bits
from data_pipeline.grid_puzzles import generate as generated
from data_pipeline.grid_puzzles import scratch
from data_pipeline.grid_puzzles.csv_source import HUB_PREFIX, Selection, find_files
from data_pipeline.grid_puzzles.puzzle_type import Game, MazeGame, SudokuGame, Tokens
from data_pipeline.grid_puzzles.rows import PuzzleRows
from data_pipeline.options import Generator, Identity, PuzzleOptions, SourceInfo
from data_pipeline.schema import BLANK_NAME, MAX_GROUPS, SPLITS, DatasetHead, Leak, Leaks, SplitName
from data_pipeline.shards.plan import DatasetPlan, Request

_BLOCK = 16384  # puzzles that are handled together
_GAMES = {"sudoku": SudokuGame, "maze": MazeGame}


@dataclass(frozen=True)
class PuzzleContent:
    """The chosen puzzles, or what makes them."""

    identity: Identity
    options: PuzzleOptions
    request: Request
    game: Game
    leaks: Leaks
    puzzles: dict[SplitName, Tokens] | None
    """None where they are still to be generated."""

    def plan(self, folder: Path) -> DatasetPlan:
        """Put the puzzles where workers find them."""
        rows: dict[SplitName, PuzzleRows] = {}
        for split in SPLITS:
            file = folder / f"{split}.tokens"
            if not scratch.is_sound(file):
                self._write(split, file)
            num_aug = self.options.num_aug if split == "train" else 0
            rows[split] = PuzzleRows(self.game, file, num_aug, self.identity.seed)
        head = DatasetHead(
            **dict(self.identity),
            canvas=self.game.side,
            seq_len=self.game.side**2,
            vocab_size=self.game.vocab_size,
            pad_id=0,
            ignore_label_id=0,
            blank_identifier_id=0,
            num_puzzle_identifiers=1,
            sets=("all",),
            num_tasks_left_out=0,
            leaks=self.leaks,
        )
        return DatasetPlan(head, rows, {"identifiers.json": [BLANK_NAME], "test_puzzles.json": {}})

    def _write(self, split: SplitName, file: Path) -> None:
        if self.puzzles is not None:
            tokens = self.puzzles.pop(split)  # no longer needed here
            scratch.write(file, (block.examples() for block in _blocks(tokens)))
            return
        generator, request = self.options.generator, self.request
        assert generator is not None
        count = generator.num_train if split == "train" else generator.num_test
        examples = generated.generate(
            self.game, request.seed, split, count, file.parent, request.part, request.workers,
            show_progress=not request.quiet,
        )  # fmt: skip
        scratch.write(file, [examples])


def read(request: Request) -> PuzzleContent:
    """Read and choose the puzzles of the sources; raises InputError for what cannot be used as asked."""
    options = request.options
    assert isinstance(options, PuzzleOptions)
    generator = options.generator
    if generator is not None:
        identity = _identity(request, ())
        no_leaks = Leaks(dropped=False, num_pairs=0, pairs=())  # see the generators
        return PuzzleContent(identity, options, request, _generating_game(request, generator), no_leaks, None)
    files: dict[SplitName, list[Path]] = {"train": [], "test": []}
    for source in request.sources:
        found = find_files(source)
        files["train"] += found.train
        files["test"] += found.test
    sources = tuple(_source_info(file, split) for split in SPLITS for file in files[split])
    puzzles = _read_files(request, options, files)
    side = math.isqrt(puzzles["train"].inputs.shape[1])
    game = _GAMES[request.preset](side)
    found_leaks = _find_leaks(game, puzzles, request)
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
    return PuzzleContent(_identity(request, sources), options, request, game, settled, puzzles)


def _identity(request: Request, sources: tuple[SourceInfo, ...]) -> Identity:
    kind = "sudoku" if request.preset == "sudoku" else "maze"
    return Identity(kind=kind, options=request.options, seed=request.seed, sources=sources)


def _generating_game(request: Request, generator: Generator) -> Game:
    if request.preset == "sudoku":
        assert isinstance(request.options, PuzzleOptions)
        return SudokuGame(generator.side, request.options.min_difficulty or 0)
    return MazeGame(generator.side, generator.min_steps or 0)


def _source_info(file: Path, split: SplitName) -> SourceInfo:
    """A file by its bytes; its lines after the header are puzzles."""
    digest = hashlib.sha256()
    num_lines, last = 0, b"\n"
    try:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
                num_lines += piece.count(b"\n")
                last = piece[-1:]
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); check the path and its rights."
        ) from None
    return SourceInfo(
        name=f"{file.name}:{'evaluation' if split == 'test' else 'train'}",
        sha256=digest.hexdigest(),
        num_tasks=max(0, num_lines - (last == b"\n")),
    )


def _read_files(
    request: Request, options: PuzzleOptions, files: dict[SplitName, list[Path]]
) -> dict[SplitName, Tokens]:
    game = _GAMES[request.preset]
    puzzles: dict[SplitName, Tokens] = {}
    for split in SPLITS:
        if files[split]:
            subsample = options.subsample if split == "train" else None  # as published
            selection = Selection(options.min_difficulty, subsample, request.seed)
            found = game.read_csv(files[split], selection, show_progress=not request.quiet)
            puzzles[split] = found.take(slice(options.limit_groups))
            if puzzles[split].num_puzzles > MAX_GROUPS:
                raise InputError(
                    f"{files[split][0]}: {puzzles[split].num_puzzles} puzzles, but a split holds at most "
                    f"{MAX_GROUPS}; add --limit-groups {MAX_GROUPS} or less."
                )
    widths = {split: tokens.inputs.shape[1] for split, tokens in puzzles.items()}
    if len(set(widths.values())) > 1:
        raise InputError(
            f"{files['test'][0]}: its puzzles have {widths['test']} cells, but those of {files['train'][0]} have "
            f"{widths['train']}; all puzzles of a dataset are equally large."
        )
    [width] = set(widths.values())
    return {split: puzzles.get(split, Tokens.empty(width)) for split in SPLITS}


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
        """The first of them, by their numbers, from 0, among the chosen puzzles of their split."""
        found = np.flatnonzero(self.is_leaked_test)[: leaks.MAX_RECORDED]
        trained: dict[int, list[int]] = defaultdict(list)
        for place in np.flatnonzero(self.is_leaked_train).tolist():
            trained[int(self._train_keys[place])].append(place)
        return [
            leaks.leak(
                f"test puzzle {place}",
                [f"train puzzle {other}" for other in trained[int(self._test_keys[place])]],
            )
            for place in found.tolist()
        ]


def _is_in(keys: Bits, others: Bits) -> NDArray[np.bool_]:
    """Which of the keys are among the others; in less memory than np.isin."""
    if not len(others):
        return np.zeros(len(keys), dtype=np.bool_)
    ordered = np.sort(others)
    return ordered[np.searchsorted(ordered, keys).clip(max=len(ordered) - 1)] == keys


def _find_leaks(game: Game, puzzles: dict[SplitName, Tokens], request: Request) -> _PuzzleLeaks:
    if not all(tokens.num_puzzles for tokens in puzzles.values()):
        none = np.zeros(0, dtype=np.uint64)
        return _PuzzleLeaks(none, none)
    blocks = [block for split in SPLITS for block in _blocks(puzzles[split])]

    def keys_of(block: Tokens) -> Bits:
        return game.content_keys(block.examples())

    keys: list[Bits] = []
    with (
        ThreadPoolExecutor(request.workers) as pool,
        tqdm(
            total=sum(block.num_puzzles for block in blocks), desc="looking for leaks", unit="puzzle",
            delay=SHOWN_AFTER_SECONDS, disable=request.quiet,
        ) as progress,
    ):  # fmt: skip
        for of_block in pool.map(keys_of, blocks):
            keys.append(of_block)
            progress.update(len(of_block))
    all_keys = np.concatenate(keys)
    num_train = puzzles["train"].num_puzzles
    return _PuzzleLeaks(all_keys[:num_train], all_keys[num_train:])


def _without(tokens: Tokens, is_dropped: NDArray[np.bool_]) -> Tokens:
    """The other puzzles, moved together in place: millions of them are not to be there twice."""
    num_kept = 0
    for start in range(0, tokens.num_puzzles, _BLOCK):
        part = slice(start, start + _BLOCK)
        kept = tokens.take(part).take(~is_dropped[part])
        for column, values in zip(tokens, kept, strict=True):
            column[num_kept : num_kept + kept.num_puzzles] = values
        num_kept += kept.num_puzzles
    return tokens.take(slice(num_kept))


def _blocks(tokens: Tokens) -> list[Tokens]:
    return [tokens.take(slice(start, start + _BLOCK)) for start in range(0, tokens.num_puzzles, _BLOCK)]
