"""Sudoku and maze datasets, from the command to the batches."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError
from data_pipeline.base.parallel import Part
from data_pipeline.build import build
from data_pipeline.grid_puzzles import dataset as puzzle_dataset
from data_pipeline.grid_puzzles import generate as generated
from data_pipeline.grid_puzzles import scratch
from data_pipeline.grid_puzzles.csv_source import HEADER
from data_pipeline.grid_puzzles.maze import puzzles as maze
from data_pipeline.grid_puzzles.maze.kind import MazeType
from data_pipeline.grid_puzzles.maze.unique import MazeUniqueType
from data_pipeline.grid_puzzles.puzzle_type import Examples, PuzzleOptions, PuzzleType
from data_pipeline.grid_puzzles.rows import PuzzleRows
from data_pipeline.grid_puzzles.sudoku.kind import SudokuType
from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestReader, TrainReader
from data_pipeline.schema import load_dataset_info, load_split_index
from data_pipeline.shards.plan import Request
from data_pipeline.shards.reader import read_shard
from tests.unit.test_data_build import checksums

CHARACTERS = {"sudoku": "?.123456789", "maze": f"?{maze.CHARSET}", "maze-unique": f"?{maze.CHARSET}"}
TYPES: dict[str, PuzzleType] = {
    "sudoku": SudokuType(6),
    "maze": MazeType(7, min_steps=6),
    "maze-unique": MazeUniqueType(7, min_steps=6, max_steps=12),
}
LENGTHS: dict[str, dict[str, int | None]] = {
    "sudoku": {"min_steps": None},
    "maze": {"min_steps": 6},
    "maze-unique": {"min_steps": 6, "max_steps": 12},
}
NUM_TRAIN, NUM_TEST = 40, 15


def new_puzzles(puzzle_type: PuzzleType, split: str, count: int) -> Examples:
    return puzzle_type.generate(3, split, np.arange(count))  # type: ignore[arg-type]


def write_csv(path: Path, puzzle_type: PuzzleType, examples: Examples) -> Path:
    characters = CHARACTERS[puzzle_type.kind]
    lines = [
        ",".join(["made", *("".join(characters[t] for t in side) for side in e.tolist()), "5"])
        for e in examples
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([HEADER, *lines, ""]))
    return path


def options(kind: str, **changes: object) -> PuzzleOptions:
    defaults = {
        "num_aug": 0,
        "subsample": None,
        "min_difficulty": None,
        "limit_groups": None,
        "generator": None,
    }
    return kind_named(kind).options.model_validate(defaults | changes)  # type: ignore[return-value]


def request(kind: str, source: Path | None, out: Path, *, workers: int = 1, **changes: object) -> Request:
    sources = [] if source is None else [str(source)]
    return Request(kind, sources, out, options(kind, **changes), 42, workers, quiet=True)


@pytest.fixture(scope="module", params=TYPES)
def puzzle_type(request: pytest.FixtureRequest) -> PuzzleType:
    return TYPES[request.param]


@pytest.fixture(scope="module")
def source(puzzle_type: PuzzleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("csv") / puzzle_type.kind
    write_csv(folder / "train.csv", puzzle_type, new_puzzles(puzzle_type, "train", NUM_TRAIN))
    write_csv(folder / "test.csv", puzzle_type, new_puzzles(puzzle_type, "test", NUM_TEST))
    return folder


def rows_of(dataset: Path, split: str) -> list[Examples]:
    """The examples of each row."""
    index = load_split_index(dataset, split)  # type: ignore[arg-type]
    shards = [read_shard(dataset / split, index, shard) for shard in index.shards]
    return [shard.examples(slice(None)) for shard in shards]


def test_without_augmentations_the_shards_hold_the_puzzles_as_they_are(
    puzzle_type: PuzzleType, source: Path, tmp_path: Path
) -> None:
    build(request(puzzle_type.kind, source, tmp_path / "out"))
    info = load_dataset_info(tmp_path / "out")
    assert (info.kind, info.canvas, info.seq_len, info.vocab_size) == (
        puzzle_type.kind, puzzle_type.side, puzzle_type.side**2, puzzle_type.vocab_size,
    )  # fmt: skip
    assert [(s.num_tasks, s.name) for s in info.sources] == [
        (NUM_TRAIN, "train.csv:train"), (NUM_TEST, "test.csv:evaluation"),
    ]  # fmt: skip
    [train], [test] = rows_of(tmp_path / "out", "train"), rows_of(tmp_path / "out", "test")
    np.testing.assert_array_equal(train, new_puzzles(puzzle_type, "train", NUM_TRAIN))
    np.testing.assert_array_equal(test, new_puzzles(puzzle_type, "test", NUM_TEST))


def test_each_group_goes_through_its_augmentations_once_and_the_test_split_has_none(
    puzzle_type: PuzzleType, source: Path, tmp_path: Path
) -> None:
    build(request(puzzle_type.kind, source, tmp_path / "out", num_aug=7))
    originals = new_puzzles(puzzle_type, "train", NUM_TRAIN)
    rows = rows_of(tmp_path / "out", "train")
    assert len(rows) == 8
    keys = puzzle_type.content_keys(originals)
    for row in rows:
        np.testing.assert_array_equal(puzzle_type.content_keys(row), keys)
    is_original = np.array([(row == originals).all(axis=(1, 2)) for row in rows])
    assert is_original.any(axis=0).all()  # each comes once as it is (a symmetric maze more often) ...
    assert (is_original.sum(axis=1) < NUM_TRAIN // 2).all()  # ... and not all of them in the same row
    numbers = np.arange(NUM_TRAIN)
    for k in range(8):  # in the order of some row on, and then from the beginning
        image = puzzle_type.augment(originals, 42, numbers, np.full(NUM_TRAIN, k))
        assert np.array([(row == image).all(axis=(1, 2)) for row in rows]).any(axis=0).all()
    [test] = rows_of(tmp_path / "out", "test")
    np.testing.assert_array_equal(test, new_puzzles(puzzle_type, "test", NUM_TEST))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 7), st.integers(1, 40), st.integers(0, 39))
def test_the_rows_of_some_groups_are_those_of_all(
    tmp_path_factory: pytest.TempPathFactory, num_aug: int, row: int, first: int
) -> None:
    file = tmp_path_factory.mktemp("rows") / "train.tokens"
    puzzle_type = TYPES["sudoku"]
    scratch.write(file, [new_puzzles(puzzle_type, "train", NUM_TRAIN)])
    rows = PuzzleRows(puzzle_type, file, num_aug, seed=1)
    assert len(rows.group_table) == NUM_TRAIN
    together = rows.samples(row, np.arange(NUM_TRAIN)).examples
    np.testing.assert_array_equal(rows.samples(row, np.arange(first, NUM_TRAIN)).examples, together[first:])


def test_bytes_depend_on_neither_workers_nor_parts(
    puzzle_type: PuzzleType, source: Path, tmp_path: Path
) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        build(request(puzzle_type.kind, source, tmp_path / name, workers=workers, num_aug=5))
    assert checksums(tmp_path / "one") == checksums(tmp_path / "two")


def test_batches_are_tokens_with_identifier_zero_and_the_loss_covers_every_cell(
    puzzle_type: PuzzleType, source: Path, tmp_path: Path
) -> None:
    build(request(puzzle_type.kind, source, tmp_path / "out", num_aug=2))
    batch = TrainReader(tmp_path / "out", 0, 16).batch(5)
    assert batch["inputs"].shape == (16, puzzle_type.side**2)
    assert int(batch["labels"].min()) > 0
    assert int(batch["labels"].max()) < puzzle_type.vocab_size
    assert not batch["puzzle_identifiers"].any()
    assert len(TestReader(tmp_path / "out")) == NUM_TEST


@pytest.mark.parametrize("policy", ["refuse", "drop", "keep"])
def test_a_test_puzzle_that_also_trains_in_disguise_is_dealt_with(
    policy: str, puzzle_type: PuzzleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puzzle_dataset, "_BLOCK", 7)  # that more than one is moved together
    train, test = new_puzzles(puzzle_type, "train", NUM_TRAIN), new_puzzles(puzzle_type, "test", NUM_TEST)
    one, seven = np.array([1]), np.array([7])
    train[11] = puzzle_type.augment(test[5:6], 0, one, seven)[0]
    write_csv(tmp_path / "csv/train.csv", puzzle_type, train)
    write_csv(tmp_path / "csv/test.csv", puzzle_type, test)
    asked = request(puzzle_type.kind, tmp_path / "csv", tmp_path / "out", leaks=policy)
    if policy == "refuse":
        with pytest.raises(InputError, match=r"test puzzle 5 = train puzzle 11.*--leaks drop"):
            build(asked)
        assert not (tmp_path / "out").exists()
        return
    build(asked)
    leaks = load_dataset_info(tmp_path / "out").leaks
    assert (leaks.num_pairs, leaks.dropped) == (1, policy == "drop")
    assert [(leak.held_out, leak.in_training) for leak in leaks.pairs] == [
        ("test puzzle 5", ("train puzzle 11",))
    ]
    [found] = rows_of(tmp_path / "out", "train")
    np.testing.assert_array_equal(found, np.delete(train, 11, axis=0) if policy == "drop" else train)


def test_dropping_every_training_puzzle_is_refused(puzzle_type: PuzzleType, tmp_path: Path) -> None:
    puzzles = new_puzzles(puzzle_type, "test", NUM_TEST)
    for name in ("train.csv", "test.csv"):
        write_csv(tmp_path / "csv" / name, puzzle_type, puzzles)
    with pytest.raises(InputError, match="leaves no training puzzle"):
        build(request(puzzle_type.kind, tmp_path / "csv", tmp_path / "out", leaks="drop"))


def test_selection_is_of_the_training_puzzles_alone(
    puzzle_type: PuzzleType, source: Path, tmp_path: Path
) -> None:
    build(request(puzzle_type.kind, source, tmp_path / "out", subsample=9))
    [train], [test] = rows_of(tmp_path / "out", "train"), rows_of(tmp_path / "out", "test")
    assert (len(train), len(test)) == (9, NUM_TEST)
    pool = {puzzle.tobytes() for puzzle in new_puzzles(puzzle_type, "train", NUM_TRAIN)}
    assert {puzzle.tobytes() for puzzle in train} <= pool
    build(request(puzzle_type.kind, source, tmp_path / "few", limit_groups=4))
    assert [len(rows_of(tmp_path / "few", split)[0]) for split in ("train", "test")] == [4, 4]


def test_new_puzzles_are_distinct_and_fewer_are_a_prefix_of_more(tmp_path: Path) -> None:
    blocks = generated.Blocks(SudokuType(4), 0, "train", tmp_path)
    few, many = (generated.generate(blocks, count, Part(), 1, show_progress=False) for count in (70, 300))
    assert len(np.unique(SudokuType(4).same_keys(many))) == 300
    np.testing.assert_array_equal(few, many[:70])


def test_more_new_puzzles_than_there_are_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "_MAX_REPEATS", 50)
    blocks = generated.Blocks(SudokuType(4), 0, "train", tmp_path)
    with pytest.raises(
        InputError, match=r"3000 train puzzles of kind sudoku and side 4: only [0-9]+ different"
    ):
        generated.generate(blocks, 3000, Part(), 1, show_progress=False)


def test_new_puzzles_make_datasets(puzzle_type: PuzzleType, tmp_path: Path) -> None:
    generator = {"side": puzzle_type.side, "num_train": 30, "num_test": 10, **LENGTHS[puzzle_type.kind]}
    build(request(puzzle_type.kind, None, tmp_path / "out", generator=generator, num_aug=1))
    info = load_dataset_info(tmp_path / "out")
    assert (info.splits.train.num_puzzles, info.splits.test.num_puzzles) == (60, 10)
    assert info.sources == ()
    assert json.loads((tmp_path / "out/identifiers.json").read_text()) == ["<blank>"]


BAD_COMMANDS = {
    "sudoku --source nowhere": "nowhere: no such file, nor a folder or zip archive with",
    "sudoku --source . --side 9": "--side: only for new puzzles; leave it out or leave out --source",
    "sudoku --subsample 3": "--subsample: only for puzzles of a source; leave it out or add --source",
    "maze --min-difficulty 3": "--min-difficulty: only for puzzles of a source",
    "maze --num-aug 8": "8 is not a whole number from 0 to 7",
    "maze --side 65": "65 is not a whole number from 2 to 64",
    "sudoku --side 5": "invalid choice: 5",
    "sudoku --canvas 9": "unrecognized arguments: --canvas",
    "sudoku --part 2/2": "'2/2' is not I/N with I from 0 to N-1",
    "maze --side 4 --min-steps 100": "none of",
    "sudoku --source two --source six": "six/test.csv: its puzzles have 36 cells, but those of",
}


def test_bad_commands_exit_with_2_and_one_message(tmp_path: Path) -> None:
    write_csv(tmp_path / "two/train.csv", SudokuType(4), new_puzzles(SudokuType(4), "train", 3))
    write_csv(tmp_path / "six/test.csv", SudokuType(6), new_puzzles(SudokuType(6), "test", 3))
    running = {
        command: subprocess.Popen(
            [sys.executable, "-m", "data_pipeline.build", *command.split(), "--out", "out"],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        )
        for command in BAD_COMMANDS
    }  # fmt: skip
    for command, process in running.items():
        _, message = process.communicate(timeout=120)
        assert process.returncode == 2, (command, message)
        assert "Traceback" not in message
        assert BAD_COMMANDS[command] in message, (command, message)
    assert not (tmp_path / "out").exists()
