import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipeline.arc.tokens import EOS_ID, FIRST_COLOUR_ID, PAD_ID, Grid, crop_sizes, encode

CANVAS = 7
grids = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=CANVAS), elements=st.integers(0, 9)
)


def naive_crop_size(board: np.ndarray) -> tuple[int, int]:
    """The rule as DESIGN words it, cell by cell."""
    best, width = (0, 0), board.shape[1]
    for height in range(1, board.shape[0] + 1):
        row = board[height - 1]
        width = next((c for c in range(width) if not 2 <= row[c] <= 11), width)
        if height * width > best[0] * best[1]:
            best = (height, width)
    return best


def crop(tokens: np.ndarray, canvas: int) -> Grid:
    """Return the grid that a token sequence [canvas * canvas] spells; may be 0 x 0."""
    heights, widths = crop_sizes(tokens.reshape(1, canvas * canvas))
    cells = tokens.reshape(canvas, canvas)[: heights[0], : widths[0]]
    return (cells - FIRST_COLOUR_ID).astype(np.uint8)


def test_an_end_marks_the_row_below_and_the_column_right_but_not_their_corner() -> None:
    board = encode(np.array([[0, 9]], dtype=np.uint8), canvas=4, row=1, col=0).reshape(4, 4)
    np.testing.assert_array_equal(board, [[0, 0, 0, 0], [2, 11, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])


@given(grids)
def test_a_grid_survives_encoding_and_cropping(grid: Grid) -> None:
    np.testing.assert_array_equal(crop(encode(grid, CANVAS), CANVAS), grid)


@given(grids, st.data())
def test_a_grid_can_be_found_again_at_any_place(grid: Grid, data: st.DataObject) -> None:
    height, width = grid.shape
    row = data.draw(st.integers(0, CANVAS - height))
    col = data.draw(st.integers(0, CANVAS - width))
    board = encode(grid, CANVAS, row, col).reshape(CANVAS, CANVAS)
    np.testing.assert_array_equal(board[row : row + height, col : col + width] - 2, grid)
    ends = [(row + height, c) for c in range(col, col + width)] + [
        (r, col + width) for r in range(row, row + height)
    ]
    ends = [(r, c) for r, c in ends if r < CANVAS and c < CANVAS]
    assert all(board[end] == EOS_ID for end in ends)
    assert np.count_nonzero(board != PAD_ID) == grid.size + len(ends)


@given(hnp.arrays(np.uint8, (5, 16), elements=st.integers(0, 13)))
def test_cropping_many_predictions_at_once_equals_cell_by_cell(tokens: np.ndarray) -> None:
    heights, widths = crop_sizes(tokens)
    expected = [naive_crop_size(board) for board in tokens.reshape(-1, 4, 4)]
    assert list(zip(heights.tolist(), widths.tolist(), strict=True)) == expected
    assert crop(tokens[0], 4).shape == expected[0]


def test_cropping_more_predictions_than_one_chunk_leaves_none_out() -> None:
    tokens = np.random.default_rng(0).integers(0, 12, (9000, 9)).astype(np.uint8)
    heights, widths = crop_sizes(tokens)
    expected = [naive_crop_size(board) for board in tokens.reshape(-1, 3, 3)]
    assert list(zip(heights.tolist(), widths.tolist(), strict=True)) == expected


def test_of_equally_large_rectangles_the_one_with_fewer_rows_wins() -> None:
    board = np.array([[2, 2, 0], [2, 0, 0], [0, 0, 0]], dtype=np.uint8)
    assert crop(board.reshape(-1), 3).shape == (1, 2)


def test_a_prediction_that_starts_with_no_colour_is_an_empty_grid() -> None:
    board = np.full((3, 3), 5, dtype=np.uint8)
    board[0, 0] = EOS_ID
    assert crop(board.reshape(-1), 3).shape == (0, 0)
