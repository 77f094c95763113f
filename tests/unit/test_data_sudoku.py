import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pysat.solvers import Solver

from data_pipeline.base.errors import InputError
from data_pipeline.base.random import random_bits
from data_pipeline.grid_puzzles import csv_source as puzzle_csv
from data_pipeline.grid_puzzles.csv_files import find_files
from data_pipeline.grid_puzzles.csv_source import HEADER
from data_pipeline.grid_puzzles.reading import Selection, read_puzzles
from data_pipeline.grid_puzzles.sudoku import generator as sudoku_generator
from data_pipeline.grid_puzzles.sudoku import puzzles as sudoku
from data_pipeline.grid_puzzles.sudoku import symmetry as sudoku_symmetry
from data_pipeline.grid_puzzles.sudoku.generator import Recipe, generate
from data_pipeline.grid_puzzles.sudoku.kind import SUDOKU
from data_pipeline.grid_puzzles.sudoku.puzzles import (
    BOX_SHAPES,
    BoxShape,
    Sudokus,
    content_keys,
    relabelling_keys,
)
from data_pipeline.grid_puzzles.sudoku.solver import count_solutions, has_unique_solution, rate
from data_pipeline.grid_puzzles.sudoku.symmetry import num_symmetries

sides = st.sampled_from([4, 6, 9])
POOL = {side: generate(Recipe(boxes, seed=7), "train", np.arange(40)) for side, boxes in BOX_SHAPES.items()}


@st.composite
def puzzles_and_symmetries(draw: st.DrawFn) -> tuple[Sudokus, np.ndarray]:
    """A few puzzles of one side, with a number of a symmetry for each."""
    pool = POOL[draw(sides)]
    places = draw(st.lists(st.integers(0, pool.num_puzzles - 1), min_size=1, max_size=5))
    numbers = [draw(st.integers(0, num_symmetries(pool.boxes) - 1)) for _ in places]
    return pool.take(np.array(places)), np.array(numbers, dtype=np.uint64)


def sat_solutions(grid: np.ndarray, boxes: BoxShape, limit: int = 2) -> list[list[int]]:
    """Up to `limit` solutions by a SAT solver; every rule is spelled out anew here."""
    side = boxes.side

    def var(row: int, col: int, digit: int) -> int:
        return (row * side + col) * side + digit

    lines = [[(r, c) for c in range(side)] for r in range(side)]
    lines += [[(r, c) for r in range(side)] for c in range(side)]
    for top, left in itertools.product(range(0, side, boxes.rows), range(0, side, boxes.cols)):
        lines.append([(top + r, left + c) for r in range(boxes.rows) for c in range(boxes.cols)])
    digits = range(1, side + 1)
    clauses = [[var(r, c, d) for d in digits] for r in range(side) for c in range(side)]
    for line, d in itertools.product(lines, digits):
        clauses += [[-var(*a, d), -var(*b, d)] for a, b in itertools.combinations(line, 2)]
    clauses += [[var(i // side, i % side, int(d))] for i, d in enumerate(grid) if d]
    found: list[list[int]] = []
    with Solver(name="cadical153", bootstrap_with=clauses) as solver:
        while len(found) < limit and solver.solve():
            true = [v for v in solver.get_model() if v > 0 and v <= side**3]
            found.append([next(d for d in digits if var(r, c, d) in set(true)) for r, c in cells(side)])
            solver.add_clause([-v for v in true])
    return found


def cells(side: int) -> list[tuple[int, int]]:
    return [(r, c) for r in range(side) for c in range(side)]


def text(grid: np.ndarray) -> str:
    return "".join(map(str, grid)).replace("0", ".")


def write_csv(path: Path, puzzles: Sudokus, end: str = "\n") -> Path:
    rows = zip(puzzles.inputs, puzzles.labels, puzzles.ratings, strict=True)
    lines = [HEADER, *(f"here,{text(q)},{text(a)},{rating}" for q, a, rating in rows)]
    path.write_bytes((end.join(lines) + end).encode())
    return path


def read_csv(files: list[Path], selection: Selection | None = None) -> Sudokus:
    return Sudokus(*read_puzzles(files, sudoku.read_block, selection).puzzles)


def assert_same(one: Sudokus, other: Sudokus) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("side", "count"), [(4, 40), (6, 25), (9, 8)])
def test_a_sat_solver_finds_the_label_of_a_generated_puzzle_and_nothing_else(side: int, count: int) -> None:
    pool = POOL[side].take(slice(count))
    for question, answer in zip(pool.inputs, pool.labels, strict=True):
        assert sat_solutions(question, pool.boxes) == [answer.tolist()]


@pytest.mark.parametrize("side", [4, 6])
def test_solutions_are_counted_as_a_sat_solver_does(side: int) -> None:
    boxes = BOX_SHAPES[side]
    rng = random.Random(5)
    grids = POOL[side].inputs[:30].copy()
    for grid in grids:  # without some clue there are more solutions; with another digit perhaps none
        given_cells = np.flatnonzero(grid)
        grid[rng.choice(given_cells)] = rng.randrange(side + 1)
    expected = [len(sat_solutions(grid, boxes, limit=5)) for grid in grids]
    assert count_solutions(grids, boxes, limit=5).tolist() == expected
    assert {0, 5} & set(expected)


@pytest.mark.parametrize("side", [4, 6, 9])
def test_no_clue_of_a_generated_puzzle_can_be_spared(side: int) -> None:
    pool = POOL[side].take(slice(5))
    for grid in pool.inputs:
        less = np.tile(grid, (np.count_nonzero(grid), 1))
        less[np.arange(len(less)), np.flatnonzero(grid)] = 0
        assert (count_solutions(less, pool.boxes) == 2).all()


def plain_backtracks(grid: list[int], boxes: BoxShape) -> int:
    """Dead ends of a search that fills the first cell with the fewest candidates, all of it."""
    side, best = boxes.side, None
    for i, (row, col) in enumerate(cells(side)):
        if grid[i] == 0:
            seen = {
                grid[r * side + c]
                for r, c in cells(side)
                if r == row
                or c == col
                or (r // boxes.rows, c // boxes.cols) == (row // boxes.rows, col // boxes.cols)
            }
            candidates = [d for d in range(1, side + 1) if d not in seen]
            if best is None or len(candidates) < len(best[1]):
                best = (i, candidates)
    if best is None:
        return 0
    if not best[1]:
        return 1
    return sum(plain_backtracks([*grid[: best[0]], d, *grid[best[0] + 1 :]], boxes) for d in best[1])


@pytest.mark.parametrize(("side", "count"), [(4, 20), (6, 20), (9, 1)])
def test_the_rating_is_the_backtracks_of_a_plain_search(side: int, count: int) -> None:
    pool = POOL[side]
    chosen = pool.take(np.argsort(pool.ratings, kind="stable")[:count])
    expected = [plain_backtracks(grid.tolist(), pool.boxes) for grid in chosen.inputs]
    assert chosen.ratings.tolist() == expected


def test_hard_puzzles_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hard = generate(Recipe(min_difficulty=30, seed=3), "test", np.arange(4))
    assert hard.ratings.min() >= 30
    monkeypatch.setattr(sudoku_generator, "MAX_IN_VAIN", 2000)
    np.testing.assert_array_equal(rate(hard.inputs, hard.boxes), hard.ratings)
    with pytest.raises(InputError, match="min difficulty 9 of side 4: none of"):
        generate(Recipe(BOX_SHAPES[4], min_difficulty=9), "train", np.arange(2000))


@pytest.mark.parametrize(("side", "difficulty"), [(4, 0), (6, 2), (9, 10)])
def test_a_generated_puzzle_depends_on_seed_split_and_index_alone(side: int, difficulty: int) -> None:
    recipe = Recipe(BOX_SHAPES[side], difficulty, seed=11)
    together = generate(recipe, "test", np.arange(12))
    parts = [generate(recipe, "test", np.array(part)) for part in ([3], [11, 0], [7])]
    assert_same(together.take(np.array([3, 11, 0, 7])), Sudokus.join(parts))
    other = generate(recipe._replace(seed=12), "test", np.arange(12))
    assert not np.array_equal(other.inputs, together.inputs)
    assert generate(recipe, "test", np.arange(0)).num_puzzles == 0


@pytest.mark.parametrize(("side", "count"), [(4, 300), (6, 100), (9, 10)])
def test_no_test_puzzle_is_an_image_of_a_training_puzzle(side: int, count: int) -> None:
    recipe = Recipe(BOX_SHAPES[side], seed=2)
    train, test = (generate(recipe, split, np.arange(count)) for split in ("train", "test"))
    assert not set(content_keys(train).tolist()) & set(content_keys(test).tolist())


@settings(max_examples=60)
@given(puzzles_and_symmetries())
def test_an_image_is_a_valid_puzzle_with_one_solution_and_can_be_turned_back(
    case: tuple[Sudokus, np.ndarray],
) -> None:
    puzzles, numbers = case
    image = sudoku_symmetry.augment(puzzles, numbers)
    assert sudoku.is_solution(image.labels, image.boxes).all()
    assert has_unique_solution(image).all()
    chosen = sudoku_symmetry.symmetries(numbers, puzzles.boxes)
    undo = sudoku_symmetry.Symmetries(
        *(np.argsort(order, axis=1, kind="stable").astype(order.dtype) for order in chosen)
    )
    np.testing.assert_array_equal(sudoku_symmetry.apply(image.inputs, undo), puzzles.inputs)
    np.testing.assert_array_equal(sudoku_symmetry.apply(image.labels, undo), puzzles.labels)
    np.testing.assert_array_equal(content_keys(image), content_keys(puzzles))


def is_valid(inputs: np.ndarray, grids: np.ndarray) -> list[bool]:
    """What the kind says of grids as answers to puzzles."""
    return SUDOKU.checks["valid_accuracy"](sudoku.encode(inputs), sudoku.encode(grids)).tolist()


@given(puzzles_and_symmetries())
def test_an_image_of_the_solution_is_valid_for_the_image_of_the_puzzle_and_no_other(
    case: tuple[Sudokus, np.ndarray],
) -> None:
    puzzles, numbers = case
    image = sudoku_symmetry.augment(puzzles, numbers)
    assert all(is_valid(image.inputs, image.labels))
    # A puzzle with one solution: what is valid is exact.
    assert is_valid(puzzles.inputs, image.labels) == (image.labels == puzzles.labels).all(axis=1).tolist()


@pytest.mark.parametrize("side", [4, 6, 9])
def test_a_solution_with_any_cell_changed_is_not_valid(side: int) -> None:
    pool = POOL[side].take(slice(3))
    for question, answer in zip(pool.inputs, pool.labels, strict=True):
        for digit in [*range(side + 2), 255]:  # 255: padding
            cells = np.flatnonzero(answer != digit)
            grids = np.tile(answer, (len(cells), 1))
            grids[np.arange(len(cells)), cells] = digit
            blank = np.zeros_like(grids)
            assert not any(is_valid(np.tile(question, (len(cells), 1)), grids))
            assert not any(is_valid(blank, grids))


@pytest.mark.parametrize("side", [4, 6])
def test_every_solution_of_a_puzzle_with_several_is_valid(side: int) -> None:
    pool = POOL[side].take(slice(10))
    less = pool.inputs.copy()
    less[np.arange(10), (less > 0).argmax(axis=1)] = 0
    for question in less:
        solutions = np.array(sat_solutions(question, pool.boxes, limit=5))
        assert len(solutions) > 1
        assert all(is_valid(np.tile(question, (len(solutions), 1)), solutions.astype(np.uint8)))


@given(puzzles_and_symmetries())
def test_relabelling_changes_neither_rating_nor_key(case: tuple[Sudokus, np.ndarray]) -> None:
    puzzles, numbers = case
    relabelled = sudoku_symmetry.augment(
        puzzles, numbers % np.uint64(24)
    )  # 4! of the first 3 digits and more
    np.testing.assert_array_equal(rate(relabelled.inputs, puzzles.boxes), puzzles.ratings)
    np.testing.assert_array_equal(relabelling_keys(relabelled), relabelling_keys(puzzles))


@pytest.mark.parametrize(
    ("side", "count"), [(4, 24 * 8 * 8 * 2), (6, 720 * 48 * 72), (9, 362880 * 1296**2 * 2)]
)
def test_every_symmetry_has_one_number(side: int, count: int) -> None:
    boxes = BOX_SHAPES[side]
    assert num_symmetries(boxes) == count
    some = sudoku_symmetry.symmetries(np.arange(3072, dtype=np.uint64), boxes)
    both = np.concatenate([some.sources, some.palettes.astype(np.intp)], axis=1)
    assert len(np.unique(both, axis=0)) == 3072
    np.testing.assert_array_equal(both[0], [*range(boxes.num_cells), *range(side + 1)])


def test_boxes_that_are_not_square_are_never_transposed() -> None:
    boxes = BOX_SHAPES[6]
    numbers = random_bits(5000, "any") % np.uint64(num_symmetries(boxes))
    sources = sudoku_symmetry.symmetries(numbers, boxes).sources.reshape(-1, 6, 6)
    assert (sources // 6 == sources[:, :, :1] // 6).all()  # a row of the image comes from one row
    assert (sources % 6 == sources[:, :1] % 6).all()


def test_square_boxes_are_transposed_every_other_time() -> None:
    numbers = sudoku_symmetry.draw(0, np.arange(4000), np.ones(4000, dtype=np.int64), BOX_SHAPES[9])
    sources = sudoku_symmetry.symmetries(numbers, BOX_SHAPES[9]).sources.reshape(-1, 9, 9)
    transposed = (sources[:, 0, 0] // 9 != sources[:, 0, 8] // 9).mean()
    assert 0.45 < transposed < 0.55


@given(sides, st.integers(0, 2**40), st.integers(1, 30), st.integers(0, 30))
def test_draws_do_not_depend_on_what_is_drawn_with_them(side: int, seed: int, count: int, cut: int) -> None:
    puzzles, augmentations = np.arange(count) * 3, np.arange(count)
    whole = sudoku_symmetry.draw(seed, puzzles, augmentations, BOX_SHAPES[side])
    parts = [
        sudoku_symmetry.draw(seed, puzzles[part], augmentations[part], BOX_SHAPES[side])
        for part in (slice(cut), slice(cut, None))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole[0] == 0  # the puzzle itself


def test_the_smallest_puzzles_share_a_key_just_when_a_symmetry_joins_them() -> None:
    boxes = BOX_SHAPES[4]
    puzzles = generate(Recipe(boxes, seed=1), "train", np.arange(150))
    everything = sudoku_symmetry.symmetries(np.arange(num_symmetries(boxes), dtype=np.uint64), boxes)
    smallest = []
    for grid in puzzles.inputs:
        images = sudoku_symmetry.apply(np.tile(grid, (len(everything.sources), 1)), everything)
        smallest.append(min(map(bytes, images)))
    pairs = set(zip(smallest, content_keys(puzzles).tolist(), strict=True))
    assert len(pairs) == len(set(smallest)) == len({key for _, key in pairs})


def test_tokens_are_the_published_ones() -> None:
    grids = np.array([[0, 1, 9]], dtype=np.uint8)
    assert sudoku.encode(grids).tolist() == [[1, 2, 10]]
    np.testing.assert_array_equal(sudoku.decode(sudoku.encode(grids)), grids)
    assert [boxes.vocab_size for boxes in BOX_SHAPES.values()] == [6, 8, 11]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("side", [4, 6, 9])
def test_a_file_is_read_as_it_was_written(tmp_path: Path, side: int, end: str) -> None:
    file = write_csv(tmp_path / "train.csv", POOL[side], end)
    assert_same(read_csv([file]), POOL[side])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().removesuffix(end.encode()).replace(b".", b"0"))
    assert read_csv([file, file]).num_puzzles == 2 * POOL[side].num_puzzles


def test_how_a_file_is_cut_into_blocks_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_csv(tmp_path / "train.csv", POOL[9], "\r\n")
    selection = Selection(min_difficulty=10, subsample=7, seed=4)
    whole = read_csv([file], selection)
    for size in (1, 100, 777):
        monkeypatch.setattr(puzzle_csv, "_BLOCK_BYTES", size)
        assert_same(read_csv([file]), POOL[9])
        assert_same(read_csv([file], selection), whole)


def test_difficulty_and_subsample_select_as_published(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "train.csv", POOL[9])
    hard = read_csv([file], Selection(min_difficulty=20))
    assert hard.ratings.tolist() == [rating for rating in POOL[9].ratings if rating >= 20]
    chosen = [read_csv([file], Selection(20, 5, seed)) for seed in range(20)]
    assert all(some.num_puzzles == 5 and len(np.unique(some.inputs, axis=0)) == 5 for some in chosen)
    assert len({some.inputs.tobytes() for some in chosen}) == 20
    assert_same(chosen[0], read_csv([file], Selection(20, 5, 0)))
    assert_same(read_csv([file], Selection(20, 10**6, 0)), hard)
    with pytest.raises(InputError, match="no puzzle is rated 999999 or higher"):
        read_csv([file], Selection(min_difficulty=999999))


def test_names_and_suffixes_say_what_a_file_is_for(tmp_path: Path) -> None:
    train, test, other = (write_csv(tmp_path / name, POOL[4]) for name in ("train.csv", "test.csv", "b.csv"))
    not_read = [("whose names do not say what they are for, beside others that do", other)]
    assert find_files(str(tmp_path)) == ([train], [test], not_read)
    assert find_files(f"{tmp_path}:train") == ([train, test], [], not_read)
    assert find_files(str(test)) == ([], [test], [])
    assert find_files(str(other)) == ([other], [], [])
    assert find_files(f"{other}:evaluation") == ([], [other], [])
    with pytest.raises(InputError, match="no such file"):
        find_files(str(tmp_path / "missing"))


def test_a_hub_that_cannot_be_reached_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"hub:a/b@main: cannot be downloaded \(ConnectionError: no route\)"):
        find_files("hub:a/b@main")
    monkeypatch.undo()
    with pytest.raises(InputError, match="cannot be downloaded"):
        find_files("hub:no such name/at all/")


GOOD = "1234341221434321"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,.234341221434321,1234341221434321", "line 2: .*3 fields"),
        ('a,.23434122143"4321,1234341221434321,1', "line 2: .* has 1 fields|line 2: .*characters"),
        ("a,.23434122143432,1234341221434321,1", "answer '1234341221434321' has 16 characters where 15"),
        ("a,,,1", "line 2: question is empty"),
        ("a,123,123,1", "question '123': it has 3 cells"),
        ("a,.23434122143432x,1234341221434321,1", "question '.23434122143432x': character 16 is 'x'"),
        ("a,.234341221434325,1234341221434325,1", "character 16 is '5'; use digits from 1 to 4"),
        ("a,.234341221434321,.234341221434321,1", "answer '.234341221434321': character 1 is '.'"),
        (
            "a,.234341221434312,1234341221434321,1",
            "answer .*: character 15 is '2'; the question has another digit",
        ),
        ("a,.234341221431234,1234341221431234,1", "some row, column or box"),
        ("a,.234341221434321,1234341221434321,x", "rating 'x' is no number"),
        ("a,.234341221434321,1234341221434321,", "rating '' is no number"),
        ("a,.234341221434321,1234341221434321,1234567890", "rating '1234567890'"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_value(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "train.csv"
    file.write_text(f"{HEADER}\n{line}\n")
    with pytest.raises(InputError, match=message) as caught:
        read_csv([file], Selection(min_difficulty=0))
    assert str(file) in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    for content in (
        b"",
        b"\xff\xfe",
        b"source,question,answer\n",
        HEADER.encode(),
        HEADER.encode() + b"\n\n",
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"train\.csv"):
            read_csv([file])
    file.write_bytes(HEADER.encode() + b"\n" + b"x" * 10**7)
    with pytest.raises(InputError, match="without an end of line"):
        read_csv([file])


def test_the_generator_makes_the_puzzles_it_always_made() -> None:
    assert {side: text(pool.inputs[0]) for side, pool in POOL.items()} == {
        4: ".12..3....4.....",
        6: "..45.11..3...3.45.........5..6......",
        9: "....1.5..6.9....1.2....4.3...6....5....4...8.8..6.27.4....8.....3.1.5...1....34..",
    }
