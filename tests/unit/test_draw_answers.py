"""Pictures of answers: what is right and what is wrong in them can be seen, without colours too."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFont

from data_pipeline.kinds import kind_named
from hrm_dist.run_log.draw_answers import can_draw, draw
from hrm_dist.run_log.shown_examples import NUM_SHOWN, ShownExample

CANVAS, PAD = 6, 0
LOOKS = {name: kind_named(name).look(CANVAS) for name in ("arc", "sudoku", "maze")}


def example(given_: np.ndarray, answer: np.ndarray, truth: np.ndarray | None) -> ShownExample:
    counted = np.zeros(answer.shape, dtype=bool) if truth is None else truth != PAD
    return ShownExample("n", "title", given_, answer, truth, counted, 0.5)


def boards(kind: str) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.uint8, (CANVAS, CANVAS), elements=st.integers(1, len(LOOKS[kind].tokens) - 1))


@pytest.mark.parametrize("kind", LOOKS)
def test_a_wrong_cell_is_marked_by_shape_and_a_right_one_is_not(kind: str) -> None:
    truth = np.full((CANVAS, CANVAS), 2, dtype=np.uint8)
    answer = truth.copy()
    answer[2, 3] = 3
    right, wrong = (draw(example(truth, one, truth), LOOKS[kind], PAD).astype(int) for one in (truth, answer))
    rows, columns = np.nonzero((right != wrong).any(axis=2)[32:])  # below the caption
    assert len(rows)
    assert rows.max() - rows.min() <= 30
    assert columns.max() - columns.min() <= 30
    cell = wrong[32 + rows.min() : 32 + rows.max() + 1, columns.min() : columns.max() + 1]
    assert {(0, 0, 0), (255, 255, 255)} <= {tuple(dot) for dot in cell.reshape(-1, 3).tolist()}


@pytest.mark.parametrize("kind", LOOKS)
@given(data=st.data())
def test_any_answer_can_be_drawn_and_the_picture_is_small(kind: str, data: st.DataObject) -> None:
    given_, answer, truth = (data.draw(boards(kind)) for _ in range(3))
    for shown in (truth, None):
        picture = draw(example(given_, answer, shown), LOOKS[kind], PAD)
        assert picture.dtype == np.uint8
        assert picture.shape[0] <= 260
        assert picture.shape[1] <= 700


def test_an_old_pillow_draws_nothing_rather_than_failing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_draw()
    monkeypatch.setattr(ImageFont, "load_default", lambda: None)  # as before 10.1
    assert not can_draw()


def test_only_the_part_of_a_canvas_that_holds_something_is_drawn() -> None:
    whole, small = np.full((2, 30, 30), PAD, dtype=np.uint8)
    whole[:] = 2
    small[:3, :4] = 2
    look = kind_named("arc").look(30)
    heights = [draw(example(board, board, board), look, PAD).shape[0] for board in (whole, small)]
    assert heights[1] < heights[0]


def test_a_caption_counts_the_wrong_cells_among_those_that_are_scored() -> None:
    truth = np.full((CANVAS, CANVAS), PAD, dtype=np.uint8)
    truth[:2, :2] = 2
    answer = np.full((CANVAS, CANVAS), 3, dtype=np.uint8)
    answer[0, 0] = 2
    assert example(truth, answer, truth).caption == "title: 3 of 4 cells wrong, q 0.50"
    assert example(truth, answer, None).caption == "title: truth hidden, q 0.50"
    assert example(truth, truth, truth).caption == "title: solved, q 0.50"


def test_the_pictures_of_an_evaluation_take_little_room() -> None:
    look = kind_named("sudoku").look(9)
    truth = np.random.default_rng(0).integers(2, 11, (9, 9)).astype(np.uint8)
    picture = draw(ShownExample("n", "title", truth, truth[::-1], truth, truth > 0, 0.5), look, PAD)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    assert NUM_SHOWN * len(file.getvalue()) < 200_000
