"""Which puzzles a split holds: a hash of the set in dataset.json that anybody finds again."""

import hashlib
import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.parallel import Part
from data_pipeline.build import build
from data_pipeline.merge import merge
from data_pipeline.schema import Subsets, load_dataset_info
from data_pipeline.shards.plan import Request
from data_pipeline.subsets import described
from tests.unit import test_data_build as arc
from tests.unit import test_data_puzzle_dataset as grids

SUDOKU = grids.TYPES["sudoku"]


def subsets_of(asked: Request) -> Subsets:
    """Those of the dataset that this builds."""
    build(asked)
    found = load_dataset_info(asked.out).subsets
    assert found is not None
    return found


@pytest.fixture(scope="module")
def sudokus() -> grids.Examples:
    return grids.new_puzzles(SUDOKU, "train", 20)


@pytest.fixture(scope="module")
def source(sudokus: grids.Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("csv") / "sudoku"
    grids.write_csv(folder / "train.csv", SUDOKU, sudokus)
    grids.write_csv(folder / "test.csv", SUDOKU, grids.new_puzzles(SUDOKU, "test", 5))
    return folder


# Bytes after zeros are where arrays of text compare in a way of their own.
@given(st.lists(st.binary(max_size=3)), st.randoms())
def test_the_hash_of_a_set_is_that_of_its_ordered_hashes(puzzles: list[bytes], random) -> None:  # type: ignore[no-untyped-def]
    found = described(random.sample(puzzles, len(puzzles)))
    ordered = sorted(hashlib.sha256(puzzle).digest() for puzzle in puzzles)
    assert found.sha256 == hashlib.sha256(b"".join(ordered)).hexdigest()
    assert found.num == len(puzzles)


def test_a_sudoku_is_its_tokens(sudokus: grids.Examples, source: Path, tmp_path: Path) -> None:
    found = subsets_of(grids.request("sudoku", source, tmp_path / "out"))
    assert found.train == described(sudoku.tobytes() for sudoku in sudokus)


def test_one_changed_cell_changes_the_hash(sudokus: grids.Examples, source: Path, tmp_path: Path) -> None:
    changed = sudokus.copy()
    inputs, labels = changed[0]
    blank = int(np.flatnonzero(inputs == 1)[0])
    inputs[blank] = labels[blank]  # one more given
    other = tmp_path / "other" / "train.csv"
    grids.write_csv(other, SUDOKU, changed)
    before = subsets_of(grids.request("sudoku", source / "train.csv", tmp_path / "a"))
    after = subsets_of(grids.request("sudoku", other, tmp_path / "b"))
    assert (before.train.num, before.train.sha256 != after.train.sha256) == (after.train.num, True)


@pytest.mark.parametrize("changes", [{"num_aug": 3}, {"workers": 2}, {"num_aug": 1, "workers": 2}])
def test_augmentations_and_workers_leave_the_hash(
    changes: dict[str, int], source: Path, tmp_path: Path
) -> None:
    plain = subsets_of(grids.request("sudoku", source, tmp_path / "plain"))
    assert subsets_of(grids.request("sudoku", source, tmp_path / "out", **changes)) == plain  # type: ignore[arg-type]


def test_the_order_of_puzzles_leaves_the_hash(sudokus: grids.Examples, source: Path, tmp_path: Path) -> None:
    backwards = grids.write_csv(tmp_path / "other" / "train.csv", SUDOKU, sudokus[::-1])
    plain = subsets_of(grids.request("sudoku", source / "train.csv", tmp_path / "plain"))
    assert subsets_of(grids.request("sudoku", backwards, tmp_path / "out")) == plain


@pytest.mark.parametrize("kind", ["sudoku", "arc"])
def test_parts_have_the_hash_of_the_whole(kind: str, source: Path, tmp_path: Path) -> None:
    generator = {"side": 4, "num_train": 150, "num_test": 9}
    whole = (
        grids.request("sudoku", None, tmp_path / "whole", generator=generator)
        if kind == "sudoku"
        else arc.request(arc.write_tasks(tmp_path / "tasks"), tmp_path / "whole")
    )
    for number in range(2):
        build(whole._replace(out=tmp_path / "out", part=Part(number, 2)))
    merge(tmp_path / "out", show_progress=False)
    assert load_dataset_info(tmp_path / "out").subsets == subsets_of(whole)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arc.write_tasks(tmp_path_factory.mktemp("tasks"))


def test_augmentations_and_canvas_leave_the_hash_of_tasks(tasks: Path, tmp_path: Path) -> None:
    plain = subsets_of(arc.request(tasks, tmp_path / "plain", canvas=7))
    assert subsets_of(arc.request(tasks, tmp_path / "out", canvas=8, num_aug=2, seed=1)) == plain


def test_what_is_held_out_changes_what_tasks_train(tasks: Path, tmp_path: Path) -> None:
    plain = subsets_of(arc.request(tasks, tmp_path / "plain"))
    all_held_out = subsets_of(arc.request(tasks, tmp_path / "out", holdout="all"))
    assert plain.train.sha256 != all_held_out.train.sha256
    assert (plain.test.num, all_held_out.test.num) == (3, 6)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_one_changed_colour_changes_the_hash_of_tasks(part: str, side: str, tmp_path: Path) -> None:
    before = subsets_of(arc.request(arc.write_tasks(tmp_path / "a"), tmp_path / "before"))
    task = arc.write_tasks(tmp_path / "b") / "evaluation" / "task3.json"
    content = json.loads(task.read_text())
    row = cast(list[int], content[part][-1][side][0])
    row[0] = (row[0] + 1) % 10
    task.write_text(json.dumps(content))
    after = subsets_of(arc.request(tmp_path / "b", tmp_path / "after"))
    assert before.test.sha256 != after.test.sha256
    # Held out, a test pair does not train.
    assert (before.train.sha256 != after.train.sha256) == (part == "train")
