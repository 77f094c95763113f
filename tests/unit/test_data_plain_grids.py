from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError
from data_pipeline.kind import Kind
from data_pipeline.kinds import KINDS, kind_named
from data_pipeline.plain_grids import PlainGrids

SIZES = {"sudoku": (4, 6, 9), "maze": (2, 5), "maze-unique": (5,)}
VOCAB_SIZE_OF_SUDOKU = {4: 6, 6: 8, 9: 11}
PLAIN_KINDS = [kind for kind in KINDS if kind.characters]


def plain_of(kind: Kind, side: int) -> PlainGrids:
    return PlainGrids.of(kind, side, VOCAB_SIZE_OF_SUDOKU[side] if kind.name == "sudoku" else 6)


SUDOKU = plain_of(kind_named("sudoku"), 4)
MAZE = plain_of(kind_named("maze"), 5)


def test_every_kind_but_arc_has_characters() -> None:
    assert {kind.name for kind in PLAIN_KINDS} == {kind.name for kind in KINDS} - {"arc"} == set(SIZES)


@given(data=st.data())
def test_a_grid_comes_back_from_its_tokens_as_it_was_written(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(PLAIN_KINDS))
    side = data.draw(st.sampled_from(SIZES[kind.name]))
    plain = plain_of(kind, side)
    cell = st.sampled_from(plain.given)
    rows = data.draw(st.lists(st.lists(cell, min_size=side, max_size=side), min_size=side, max_size=side))
    cells = list(chain.from_iterable(rows))
    forms: list[Any] = [rows, list(map("".join, rows)), "".join(cells), "\n".join(map("".join, rows))]
    if plain.given.isdecimal():
        forms += [[[int(char) for char in row] for row in rows], np.array(rows).astype(np.int64)]
    expected = [plain.characters.index(char) + 1 for char in cells]
    for form in forms:
        tokens = plain.encode(form, "grid")
        assert tokens.tolist() == expected
        back = plain.decode(tokens, like=form)
        assert type(back) is type(form)
        assert np.array_equal(back, form)


def test_a_dot_is_a_blank_of_a_sudoku() -> None:
    assert SUDOKU.encode("12.4" * 4, "grid").tolist() == SUDOKU.encode("1204" * 4, "grid").tolist()


def test_a_line_of_a_file_is_a_grid() -> None:
    line = "1204" * 4
    tokens = SUDOKU.encode(f"{line}\n", "grid")
    assert tokens.tolist() == SUDOKU.encode(line, "grid").tolist()
    assert SUDOKU.decode(tokens, like=f"{line}\n") == line


def test_padding_in_an_answer_is_no_digit() -> None:
    tokens = np.array([0, *range(1, 6), *[2] * 10], dtype=np.uint8)
    assert SUDOKU.decode(tokens, like="")[:6] == "_01234"
    assert SUDOKU.decode(tokens, like=[[0]])[0] == [-1, 0, 1, 2]


ROW, WALLS = [0, 1, 2, 3], "#####"


@pytest.mark.parametrize(
    ("plain", "grid", "why"),
    [
        (SUDOKU, [ROW] * 3, "grid 7: has 3 rows, but the model is of puzzles of 4 x 4"),
        (SUDOKU, [ROW, ROW, ROW[:2], ROW], "grid 7: row 2 has 2 cells"),
        (SUDOKU, [ROW, [0, 1, 5, 2], ROW, ROW], r"row 1, column 2 is 5; write 4 rows of digits from 0 \(blank\) to 4"),
        (SUDOKU, [ROW, ROW, ROW, [0, 0, 0, -1]], "row 3, column 3 is -1"),
        (SUDOKU, [ROW, ROW, ROW, [0, 0, 0, 10]], "row 3, column 3 is 10"),
        (SUDOKU, [ROW, ROW, ROW, [0, 0, 0.0, 1]], r"row 3, column 2 is 0\.0"),
        (SUDOKU, [ROW, ROW, ROW, [0, True, 0, 1]], "row 3, column 1 is True"),
        (SUDOKU, [ROW, ROW, ROW, ["12", "", "1", "2"]], "row 3, column 0 is '12'"),
        (SUDOKU, np.zeros((4, 4)), r"row 0, column 0 is 0\.0"),
        (SUDOKU, np.zeros(16, dtype=int), "has 16 rows"),
        (SUDOKU, "1" * 15, "a text of 15 characters, but .* have 16 cells"),
        (SUDOKU, ["1234", "12a4", "1234", "1234"], "row 1, column 2 is 'a'"),
        (SUDOKU, ["1234", "12ł4", "1234", "1234"], "row 1, column 2 is 'ł'"),
        (SUDOKU, [], "has 0 rows"),
        (SUDOKU, None, "grid 7: is None, which is no grid"),
        (SUDOKU, [1, 2, 3, 4], "row 0 has 1 cells"),
        (MAZE, [WALLS, "#o S#", WALLS, WALLS, WALLS],
         "row 1, column 1 is 'o'; write 5 rows of text with '#', ' ', 'S', 'G'.$"),
        (MAZE, [WALLS, [1, 0, 0, 0, 0], WALLS, WALLS, WALLS], "row 1, column 0 is 1"),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_refused(plain: PlainGrids, grid: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        plain.encode(grid, "grid 7")
