"""Datasets of the published code as a source of Sudokus and mazes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.base.errors import InputError
from data_pipeline.build import build
from data_pipeline.grid_puzzles.puzzle_type import PuzzleType
from data_pipeline.grid_puzzles.sudoku.kind import SudokuType
from data_pipeline.schema import load_dataset_info
from data_pipeline.shards.plan import Request
from tests.unit.test_data_puzzle_dataset import (
    TYPES,
    new_puzzles,
    request,
    rows_of,
    write_csv,
)

NUM_AUG = 3
KINDS = {"sudoku": SudokuType(9), "maze": TYPES["maze"]}


def write_split(folder: Path, puzzle_type: PuzzleType, split: str, count: int, num_aug: int) -> None:
    """Write what dataset/build_sudoku_dataset.py and build_maze_dataset.py of HRM write."""
    originals = new_puzzles(puzzle_type, split, count)
    puzzles = [
        puzzle_type.augment(originals, 0, np.arange(count), np.full(count, number))
        for number in range(1 + num_aug)
    ]
    tokens = np.stack(puzzles, axis=1).reshape(count * (1 + num_aug), 2, -1)
    number = len(tokens)
    folder.mkdir(parents=True)
    metadata = {
        "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": puzzle_type.vocab_size,
        "seq_len": tokens.shape[2], "num_puzzle_identifiers": 1, "total_groups": count, "mean_puzzle_examples": 1.0,
        "sets": ["all"],
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(metadata))
    for name, array in {
        "inputs": tokens[:, 0],
        "labels": tokens[:, 1],
        "puzzle_identifiers": np.zeros(number, dtype=np.int32),
        "puzzle_indices": np.arange(number + 1, dtype=np.int32),
        "group_indices": np.arange(0, number + 1, 1 + num_aug, dtype=np.int32),
    }.items():
        np.save(folder / f"all__{name}.npy", array)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def published(kind: str, tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    write_split(folder / "train", KINDS[kind], "train", 12, NUM_AUG)
    write_split(folder / "test", KINDS[kind], "test", 5, 0)
    (folder / "identifiers.json").write_text('["<blank>"]')
    return folder


def test_the_originals_of_a_published_dataset_are_read(kind: str, published: Path, tmp_path: Path) -> None:
    build(request(kind, published, tmp_path / "out", num_aug=2))
    for split, count in (("train", 12), ("test", 5)):
        write_csv(tmp_path / "csv" / f"{split}.csv", KINDS[kind], new_puzzles(KINDS[kind], split, count))
    build(request(kind, tmp_path / "csv", tmp_path / "same", num_aug=2))
    for split in ("train", "test"):
        for row, expected in zip(
            rows_of(tmp_path / "out", split), rows_of(tmp_path / "same", split), strict=True
        ):
            np.testing.assert_array_equal(row, expected)
    info = load_dataset_info(tmp_path / "out")
    train, test = info.readings
    assert [(source.name, source.num_tasks) for source in info.sources] == [
        ("published/train", 48), ("published/test", 5),
    ]  # fmt: skip
    assert (train.num_trained, test.num_held_out) == (12, 5)
    assert [(some.num, some.why) for some in train.left_out] == [
        (36, "augmented already (--num-aug makes others)")
    ]


def test_a_split_alone_is_a_source(kind: str, published: Path, tmp_path: Path) -> None:
    build(request(kind, published / "train", tmp_path / "out", limit_groups=4))
    info = load_dataset_info(tmp_path / "out")
    assert (info.splits.train.total_groups, info.splits.test.total_groups) == (4, 0)
    build(request(kind, Path(f"{published / 'test'}:train"), tmp_path / "other"))
    assert load_dataset_info(tmp_path / "other").splits.train.total_groups == 5


def damaged(folder: Path, how: str) -> dict[str, Any]:
    """Change something in the training split; return further options of the build."""
    inputs = np.load(folder / "all__inputs.npy")
    match how:
        case "token":
            inputs[8, 3] = 0
            np.save(folder / "all__inputs.npy", inputs)
        case "shape":
            np.save(folder / "all__labels.npy", inputs[:-1])
        case "groups":
            np.save(folder / "all__group_indices.npy", np.array([0, 8, 4, 48], dtype=np.int32))
        case "examples":
            np.save(folder / "all__puzzle_indices.npy", np.arange(0, 49, 2, dtype=np.int32))
        case "pickled":
            np.save(folder / "all__labels.npy", np.array([{}] * 48, dtype=object))
        case "archive":
            np.savez(folder / "x.npz", inputs)
            shutil.move(folder / "x.npz", folder / "all__labels.npy")
        case "cut":
            (folder / "all__labels.npy").write_bytes((folder / "all__labels.npy").read_bytes()[:-9])
        case "missing":
            (folder / "all__labels.npy").unlink()
        case "kind":
            (folder / "dataset.json").write_text('{"vocab_size": 12, "sets": ["all"]}')
        case "metadata":
            (folder / "dataset.json").write_text("[]")
        case _:
            return {"min_difficulty": 1}
    return {}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("token", r"train: puzzle 8: question .* character 4 is '.x00'"),
        ("shape", r"all__inputs.npy is \[48, 81\] and all__labels.npy \[47, 81\]"),
        ("groups", r"all__group_indices.npy: does not ascend from 0 to 48"),
        ("examples", r"all__puzzle_indices.npy: does not ascend from 0 to 48"),
        ("pickled", r"all__labels.npy: cannot be read"),
        ("archive", r"all__labels.npy: is no array of whole numbers with 2 axes"),
        ("cut", r"all__labels.npy: cannot be read"),
        ("missing", r"all__labels.npy: cannot be read"),
        (
            "kind",
            r"dataset.json: vocab_size is 12, but puzzles of this kind have 11; .*for ARC from the original task",
        ),
        ("metadata", r"dataset.json: does not list `sets`"),
        ("rated", r"train: does not say how hard a puzzle is; leave out --min-difficulty"),
    ],
)
def test_a_damaged_published_dataset_is_refused(how: str, message: str, tmp_path: Path) -> None:
    write_split(tmp_path / "src" / "train", KINDS["sudoku"], "train", 12, NUM_AUG)
    options = damaged(tmp_path / "src" / "train", how)
    with pytest.raises(InputError, match=message):
        build(request("sudoku", tmp_path / "src", tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["", "train"])
def test_a_published_dataset_is_no_source_of_arc_tasks(part: str, published: Path, tmp_path: Path) -> None:
    asked = Request("arc", [str(published / part)], tmp_path / "out", ArcOptions(), 0, 1, quiet=True)
    with pytest.raises(
        InputError, match="is a dataset that was built of tasks, not the tasks; give what it was built"
    ):
        build(asked)
