"""Mazes with exactly one shortest path: the generator, the count of paths, the CSV reader."""

import itertools
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError
from data_pipeline.grid_puzzles.csv_source import HEADER
from data_pipeline.grid_puzzles.maze import puzzles as maze
from data_pipeline.grid_puzzles.maze.unique import MAX_COUNTED, MazeUniqueType, num_shortest_paths
from data_pipeline.grid_puzzles.reading import read_puzzles
from tests.unit.test_data_maze import graph_of, random_mazes, text

SMALL = MazeUniqueType(12, 20, 26)
POOL = SMALL.generate(5, "train", np.arange(40))


def networkx_paths(tokens: np.ndarray, most: int) -> list[list[tuple[int, int]]]:
    """The first shortest paths, at most so many."""
    side = round(len(tokens) ** 0.5)
    start, goal = (divmod(int((tokens == t).argmax()), side) for t in (maze.START_ID, maze.GOAL_ID))
    try:
        return list(itertools.islice(nx.all_shortest_paths(graph_of(tokens), start, goal), most))
    except nx.NetworkXNoPath:
        return []


def marked(label: np.ndarray) -> set[tuple[int, int]]:
    side = round(len(label) ** 0.5)
    return {divmod(int(i), side) for i in np.flatnonzero(label > maze.FREE_ID)}


@pytest.mark.parametrize(
    ("puzzle_type", "count"), [(MazeUniqueType(30, 100, 140), 8), (SMALL, 40), (MazeUniqueType(5, 6, 8), 30)]
)
def test_a_new_maze_has_one_shortest_path_and_the_label_is_it(
    puzzle_type: MazeUniqueType, count: int
) -> None:
    for question, answer in puzzle_type.generate(1, "test", np.arange(count)):
        [path] = networkx_paths(question, 2)
        assert puzzle_type.min_steps <= len(path) - 1 <= puzzle_type.max_steps
        assert set(path) == marked(answer)
        assert ((answer == question) | (answer == maze.PATH_ID)).all()


def test_new_mazes_have_loops() -> None:
    assert any(nx.cycle_basis(graph_of(question)) for question in POOL[:5, 0])


@given(random_mazes())
def test_shortest_paths_are_as_many_as_networkx_finds(inputs: np.ndarray) -> None:
    assert num_shortest_paths(inputs).tolist() == [len(networkx_paths(tokens, 2000)) for tokens in inputs]


def test_the_count_of_paths_stops_at_its_limit() -> None:
    room = np.full((1, 40 * 40), maze.FREE_ID, dtype=np.uint8)
    room[0, 0], room[0, -1] = maze.START_ID, maze.GOAL_ID
    assert num_shortest_paths(room).tolist() == [MAX_COUNTED]


def test_a_new_maze_depends_on_options_seed_split_and_index_alone() -> None:
    for part in ([3], [39, 0], [7, 8, 9]):
        np.testing.assert_array_equal(SMALL.generate(5, "train", np.array(part)), POOL[part])
    assert not np.array_equal(SMALL.generate(6, "train", np.arange(3)), POOL[:3])
    assert SMALL.generate(5, "train", np.arange(0)).shape == (0, 2, 144)


def test_the_generator_makes_the_mazes_it_always_made() -> None:
    made = MazeUniqueType(5, 6, 8).generate(5, "train", np.arange(3))
    assert [text(label) for label in made[:, 1]] == [
        "S  # o##  o# # ooo#  #G  ",
        " #So   #o# ##o# #oo   G# ",
        "  # ## G   #o##  o#S #ooo",
    ]


def test_no_test_maze_is_an_image_of_a_training_maze() -> None:
    tiny = MazeUniqueType(3, 3, 4)  # so small that mazes repeat
    train, test = (tiny.content_keys(tiny.generate(0, split, np.arange(100))) for split in ("train", "test"))  # type: ignore[arg-type]
    assert len(set(train.tolist())) < 100
    assert not set(train.tolist()) & set(test.tolist())


@settings(max_examples=20)
@given(st.lists(st.integers(0, 7), min_size=40, max_size=40))
def test_the_image_of_a_maze_has_one_shortest_path_too(ts: list[int]) -> None:
    images = SMALL.augment(POOL, 0, np.arange(40), np.array(ts))
    assert (num_shortest_paths(images[:, 0]) == 1).all()
    assert maze.is_shortest_path(images[:, 0], images[:, 1]).all()


def test_a_length_out_of_reach_is_an_error() -> None:
    with pytest.raises(InputError, match="min steps 40 of side 6: no maze has so long a shortest path"):
        MazeUniqueType(6, 40, 50).generate(0, "train", np.arange(300))


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = write_csv(tmp_path, [(text(q), text(a)) for q, a in POOL])
    found = read_puzzles([file], SMALL.read_block).puzzles
    np.testing.assert_array_equal(np.stack([found.inputs, found.labels], axis=1), POOL)


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        (
            "S   #   G",
            "Soo #o  G",
            "question 'S   #   G': it has 2 shortest paths from S to G where one is due",
        ),
        ("S       G", "Soo  o  G", "it has 6 shortest paths"),
        ("S  ##   G", "S  ##   G", "answer .*: its 0 cells o are not a shortest path from S to G"),
    ],
)
def test_a_bad_maze_is_refused_with_its_line(
    tmp_path: Path, question: str, answer: str, message: str
) -> None:
    file = write_csv(tmp_path, [("S  ##   G", "Soo##o  G"), (question, answer)])
    with pytest.raises(InputError, match=message) as caught:
        read_puzzles([file], SMALL.read_block)
    assert f"{file}: line 3" in str(caught.value)


def write_csv(folder: Path, mazes: list[tuple[str, str]]) -> Path:
    file = folder / "train.csv"
    file.write_text("\n".join([HEADER, *(f"here,{q},{a},1" for q, a in mazes), ""]))
    return file


def test_a_band_without_lengths_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_pipeline.build", "maze-unique", "--out", str(tmp_path / "out")]
    process = subprocess.run(
        [*command, "--min-steps", "150"], capture_output=True, text=True, check=False, timeout=120
    )
    assert process.returncode == 2
    assert "min_steps=150 is more than max_steps=140; change one of them" in process.stderr
    assert "Traceback" not in process.stderr
