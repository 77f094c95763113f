from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.arc import augment
from data_pipeline.base.errors import InputError
from data_pipeline.grid_puzzles.csv_source import HEADER, Puzzles
from data_pipeline.grid_puzzles.maze import puzzles as maze
from data_pipeline.grid_puzzles.maze.generator import MazeRecipe, generate
from data_pipeline.grid_puzzles.maze.kind import MAZE, MazeType
from data_pipeline.grid_puzzles.maze.puzzles import content_keys
from data_pipeline.grid_puzzles.maze.unique import MAZE_UNIQUE, MazeUniqueType
from data_pipeline.grid_puzzles.reading import Selection, read_puzzles
from data_pipeline.kind import Kind

POOL = generate(MazeRecipe(side=12, min_steps=20, seed=5), "train", np.arange(40))


@st.composite
def random_mazes(draw: st.DrawFn) -> np.ndarray:
    """Mazes of one side with walls anywhere, a start and a goal, perhaps without a path; [n, cells]."""
    side = draw(st.integers(2, 7))
    mazes = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(
            st.lists(st.sampled_from([maze.WALL_ID, maze.FREE_ID]), min_size=side**2, max_size=side**2)
        )
        start, goal = draw(st.lists(st.integers(0, side**2 - 1), min_size=2, max_size=2, unique=True))
        tokens[start], tokens[goal] = maze.START_ID, maze.GOAL_ID
        mazes.append(tokens)
    return np.array(mazes, dtype=np.uint8)


def graph_of(tokens: np.ndarray) -> "nx.Graph[tuple[int, int]]":
    side = round(len(tokens) ** 0.5)
    graph = nx.grid_2d_graph(side, side)
    graph.remove_nodes_from([divmod(int(i), side) for i in np.flatnonzero(tokens == maze.WALL_ID)])
    return graph


def networkx_length(tokens: np.ndarray) -> int:
    side = round(len(tokens) ** 0.5)
    start, goal = (divmod(int((tokens == t).argmax()), side) for t in (maze.START_ID, maze.GOAL_ID))
    try:
        return nx.shortest_path_length(graph_of(tokens), start, goal)
    except nx.NetworkXNoPath:
        return -1


def text(tokens: np.ndarray) -> str:
    return "".join(maze.CHARSET[t - 1] for t in tokens)


def write_csv(path: Path, mazes: Puzzles) -> Path:
    rows = zip(mazes.inputs, mazes.labels, mazes.ratings, strict=True)
    lines = [HEADER, *(f"here,{text(q)},{text(a)},{rating}" for q, a, rating in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def assert_same(one: Puzzles, other: Puzzles) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@given(random_mazes())
def test_path_lengths_are_those_of_networkx(inputs: np.ndarray) -> None:
    assert maze.path_lengths(inputs).tolist() == [networkx_length(tokens) for tokens in inputs]


@given(random_mazes())
def test_the_marked_cells_are_a_shortest_path(inputs: np.ndarray) -> None:
    inputs = inputs[maze.path_lengths(inputs) > 0]
    labels = maze.mark_shortest_paths(inputs)
    assert maze.is_shortest_path(inputs, labels).all()
    side = round(inputs.shape[1] ** 0.5)
    for question, answer in zip(inputs, labels, strict=True):
        marked = [divmod(int(i), side) for i in np.flatnonzero(answer > maze.FREE_ID)]
        path = graph_of(question).subgraph(marked)
        assert len(marked) == networkx_length(question) + 1
        assert nx.is_connected(path)


@given(random_mazes(), st.data())
def test_any_other_marks_are_no_shortest_path(inputs: np.ndarray, data: st.DataObject) -> None:
    labels = maze.mark_shortest_paths(inputs[maze.path_lengths(inputs) > 0])
    inputs = inputs[maze.path_lengths(inputs) > 0]
    for i in range(len(inputs)):
        cells = np.flatnonzero((labels[i] == maze.FREE_ID) | (labels[i] == maze.PATH_ID))
        if len(cells):
            cell = cells[data.draw(st.integers(0, len(cells) - 1))]
            labels[i, cell] ^= maze.FREE_ID ^ maze.PATH_ID
            assert not maze.is_shortest_path(inputs[i : i + 1], labels[i : i + 1])[0]


def networkx_is_path(question: np.ndarray, answer: np.ndarray) -> bool:
    """The rule as it is stated: connected, two neighbours each, the ends one."""
    side = round(len(question) ** 0.5)
    marked = np.flatnonzero(answer > maze.FREE_ID)
    if (
        not (answer == np.where(answer == maze.PATH_ID, maze.PATH_ID, question)).all()
        or (question[answer == maze.PATH_ID] != maze.FREE_ID).any()
    ):
        return False
    graph = nx.grid_2d_graph(side, side).subgraph([divmod(int(i), side) for i in marked])
    due = {divmod(int(i), side): 2 if answer[i] == maze.PATH_ID else 1 for i in marked}
    return nx.is_connected(graph) and dict(graph.degree()) == due


@given(random_mazes(), st.data())
def test_a_path_is_one_by_its_stated_rule(inputs: np.ndarray, data: st.DataObject) -> None:
    inputs = inputs[maze.path_lengths(inputs) > 0]
    labels = maze.mark_shortest_paths(inputs)
    for label in labels:
        for _ in range(data.draw(st.integers(0, 3))):
            cell = data.draw(st.integers(0, len(label) - 1))
            label[cell] ^= maze.FREE_ID ^ maze.PATH_ID if label[cell] in (maze.FREE_ID, maze.PATH_ID) else 1
    expected = [networkx_is_path(*pair) for pair in zip(inputs, labels, strict=True)]
    assert maze.is_path(inputs, labels).tolist() == expected


@pytest.mark.parametrize("kind", [MAZE, MAZE_UNIQUE])
def test_the_stored_answer_is_a_valid_and_an_optimal_path(kind: Kind) -> None:
    new = kind.options.model_validate({"generator": {"side": 12, "min_steps": 20}})
    puzzle_type = {"maze": MazeType, "maze-unique": MazeUniqueType}[kind.name].of_new(new)
    examples = puzzle_type.generate(3, "test", np.arange(20))
    assert {name: check(*examples.swapaxes(0, 1)).sum() for name, check in kind.checks.items()} == {
        "valid_path": 20,
        "optimal_path": 20,
    }


def test_a_detour_is_a_valid_path_and_no_optimal_one() -> None:
    """Around a wall that stands on the shortest path, in the maze without that wall."""
    lengths = []
    for question, answer in zip(POOL.inputs, POOL.labels, strict=True):
        cells = np.flatnonzero(answer == maze.PATH_ID)
        walled = np.tile(question, (len(cells), 1))
        walled[np.arange(len(cells)), cells] = maze.WALL_ID
        walled = walled[maze.path_lengths(walled) > 0]
        labels = maze.mark_shortest_paths(walled)
        labels[walled != question] = maze.FREE_ID
        questions = np.tile(question, (len(walled), 1))
        extra = maze.path_lengths(walled) - maze.path_lengths(questions)
        assert maze.is_path(questions, labels).all()
        assert maze.is_shortest_path(questions, labels).tolist() == (extra == 0).tolist()
        lengths += extra.tolist()
    assert {0, 2} <= set(lengths)


def test_a_branch_a_gap_or_a_changed_cell_is_no_valid_path() -> None:
    """Any token that is not the stored answer's, in any one cell."""
    for question, answer in zip(POOL.inputs[:4], POOL.labels[:4], strict=True):
        for token in range(maze.VOCAB_SIZE):
            cells = np.flatnonzero(answer != token)
            labels = np.tile(answer, (len(cells), 1))
            labels[np.arange(len(cells)), cells] = token
            assert not maze.is_path(np.tile(question, (len(cells), 1)), labels).any()


@pytest.mark.parametrize(("side", "min_steps", "count"), [(30, 110, 6), (12, 20, 40), (7, 10, 20), (4, 5, 5)])
def test_generated_mazes_have_a_path_longer_than_asked(side: int, min_steps: int, count: int) -> None:
    made = generate(MazeRecipe(side, min_steps, seed=1), "test", np.arange(count))
    assert made.inputs.shape == (count, side * side)
    for question, answer, rating in zip(made.inputs, made.labels, made.ratings, strict=True):
        assert networkx_length(question) == rating > min_steps
        assert (answer == maze.PATH_ID).sum() == rating - 1
    assert maze.is_shortest_path(made.inputs, made.labels).all()


def test_generated_mazes_have_loops() -> None:
    assert any(nx.cycle_basis(graph_of(tokens)) for tokens in POOL.inputs[:5])


def test_a_generated_maze_depends_on_recipe_split_and_index_alone() -> None:
    recipe = MazeRecipe(side=12, min_steps=20, seed=5)
    for part in ([3], [39, 0], [7, 8, 9]):
        some = generate(recipe, "train", np.array(part))
        assert_same(some, Puzzles(*(column[part] for column in POOL)))
    other = generate(recipe._replace(seed=6), "train", np.arange(3))
    assert not np.array_equal(other.inputs, POOL.inputs[:3])
    assert generate(recipe, "train", np.arange(0)).num_puzzles == 0


def test_the_generator_makes_the_mazes_it_always_made() -> None:
    made = generate(MazeRecipe(side=5, min_steps=6, seed=5), "train", np.arange(3))
    assert [text(label) for label in made.labels] == [
        "# #S  ooo  o# ##o   Go## ",
        "ooo# o#oooS ##o##oooGoo# ",
        "oooo#o##o o #o#o# o#G #oS",
    ]


def test_no_test_maze_is_an_image_of_a_training_maze() -> None:
    recipe = MazeRecipe(side=3, min_steps=2)  # so small that mazes repeat
    train, test = (
        content_keys(generate(recipe, split, np.arange(200)).inputs) for split in ("train", "test")
    )
    assert len(set(train.tolist())) < 200
    assert not set(train.tolist()) & set(test.tolist())


def test_a_length_out_of_reach_is_an_error() -> None:
    with pytest.raises(InputError, match="min steps 40 of side 6: none of"):
        generate(MazeRecipe(side=6, min_steps=40), "train", np.arange(500))
    with pytest.raises(InputError, match="side 65"):
        generate(MazeRecipe(side=65), "train", np.arange(1))


@given(random_mazes(), st.integers(0, 7))
def test_images_are_those_of_the_arc_symmetries_and_can_be_turned_back(inputs: np.ndarray, t: int) -> None:
    side = round(inputs.shape[1] ** 0.5)
    ts = np.full(len(inputs), t)
    images = maze.augment(inputs, ts)
    expected = [augment.dihedral(tokens.reshape(side, side), t).reshape(-1) for tokens in inputs]
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(maze.dihedral(inputs, t), images)
    np.testing.assert_array_equal(maze.augment(images, np.array([0, 3, 2, 1, 4, 5, 6, 7])[ts]), inputs)
    np.testing.assert_array_equal(content_keys(images), content_keys(inputs))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 7), min_size=40, max_size=40))
def test_the_image_of_a_shortest_path_is_one(ts: list[int]) -> None:
    images = (maze.augment(mazes, np.array(ts)) for mazes in POOL[:2])
    assert maze.is_shortest_path(*images).all()


def test_tokens_are_the_published_ones(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text(f"{HEADER}\nhere,S   #   G,Soo #o  G,3\n")
    assert read_puzzles([file], maze.read_block).puzzles.labels.tolist() == [[3, 5, 5, 2, 1, 5, 2, 2, 4]]
    assert (maze.VOCAB_SIZE, maze.PAD_ID) == (6, 0)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "train.csv", POOL)
    assert_same(read_puzzles([file], maze.read_block).puzzles, POOL)
    few = read_puzzles([file], maze.read_block, Selection(min_difficulty=25, subsample=3)).puzzles
    assert few.num_puzzles == 3
    assert few.inputs.shape[1] == 12**2
    assert few.ratings.min() >= 25


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("S   #  G", "S   #  G", "its 8 cells are no square"),
        ("S   x   G", "Soo #o  G", "question 'S   x   G': character 5 is 'x'; use one of '#', ' ', 'S', 'G'"),
        ("So  #   G", "Soo #o  G", "question 'So  #   G': character 2 is 'o'"),
        ("S   #    ", "Soo #o   ", "it has 0 cells G; put exactly one goal G"),
        ("SS  #   G", "SSo #o  G", "it has 2 cells S"),
        ("S   #   G", "Soo  o  G", "answer .*: character 5 is ' '; the answer is the question with o"),
        (
            "S   #   G",
            "S   #   G",
            "0 cells o are not a shortest path from S to G .the shortest one takes 4 steps",
        ),
        ("S   #   G", "Soooooo G", "character 5 is 'o'"),
        ("S# ###  G", "S# ###  G", "0 cells o are not a shortest path .*no path joins S and G"),
        ("S   #   G", "So o#o  G", "3 cells o are not a shortest path"),
    ],
)
def test_a_bad_maze_is_refused_with_its_line_and_value(
    tmp_path: Path, question: str, answer: str, message: str
) -> None:
    file = tmp_path / "train.csv"
    file.write_text(f"{HEADER}\nhere,{question},{answer},3\n")
    with pytest.raises(InputError, match=message) as caught:
        read_puzzles([file], maze.read_block)
    assert f"{file}: line 2" in str(caught.value)
