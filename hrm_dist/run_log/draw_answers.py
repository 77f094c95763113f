"""Pictures of answers: the puzzle, the model's answer with a cross in wrong cells, and the truth, side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.kind import Look
from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestReader
from hrm_dist.evaluation.evaluate import Answers
from hrm_dist.run_log.entry import Picture
from hrm_dist.run_log.shown_examples import Board, ShownExample, shown_examples

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

# In dots. A picture is at most some 650 wide and 240 high, whatever the puzzle.
_BOARD, _LARGEST_CELL, _GAP, _LINE_HEIGHT = 200, 28, 12, 16
_FONT_SIZE = 12
_LINE, _HEAVY_LINE, _TEXT = "#808080", "#202020", "#000000"
_GIVEN, _FILLED_IN = "#000000", "#1f4fd8"


def can_draw() -> bool:
    """Return whether what draws is installed, and not too old."""
    try:
        from PIL import ImageFont

        ImageFont.load_default(_FONT_SIZE)
    except (ImportError, TypeError):  # before Pillow 10.1 its font has one size
        return False
    return True


class AnswerPictures:
    """Pictures of a few of an evaluation's answers."""

    def __init__(self, reader: TestReader) -> None:
        """reader: of what the evaluation covers."""
        self._reader = reader
        self._examples: list[ShownExample] = []

    def take(self, blocks: Sequence[Answers]) -> None:
        """Keep what is to be shown of all answers, in the reader's order."""
        self._examples = shown_examples(self._reader, blocks)

    def draw(self) -> list[Picture]:
        """Return the pictures, none without answers; a thread of its own may call this."""
        info = self._reader.info
        look = kind_named(info.kind).look(info.canvas)
        return [Picture(one.name, one.caption, draw(one, look, info.pad_id)) for one in self._examples]


def draw(example: ShownExample, look: Look, pad_id: int) -> NDArray[np.uint8]:
    """Return the picture, [height, width, 3]; of the canvas only what holds something."""
    from PIL import Image, ImageDraw, ImageFont

    shown = [board for board in (example.given, example.truth) if board is not None]
    rows, columns = _used(shown if example.truth is not None else [*shown, example.answer], pad_id)
    answer = example.answer
    if example.truth is not None:
        answer = np.where(example.counted, answer, pad_id)  # what lies beyond the truth does not count
    boards = {"input": example.given, "answer": answer, "truth": example.truth}
    cell = max(3, min(_LARGEST_CELL, _BOARD // max(rows, columns)))
    width, height = columns * cell + 1, rows * cell + 1
    step = max(width, 3 * _LINE_HEIGHT) + _GAP
    font = ImageFont.load_default(_FONT_SIZE)
    caption_width = int(font.getlength(example.caption)) + 2 * _GAP
    size = (max(_GAP + len(boards) * step, caption_width), 2 * _LINE_HEIGHT + height + _GAP)
    image = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(image)
    canvas.text((_GAP, 1), example.caption, fill=_TEXT, font=font)
    for number, (label, board) in enumerate(boards.items()):
        left, top = _GAP + number * step, 2 * _LINE_HEIGHT
        canvas.text((left, _LINE_HEIGHT), label if board is not None else "", fill=_TEXT, font=font)
        if board is None:
            continue
        _draw_cells(canvas, board[:rows, :columns], (left, top), cell, look)
        if label == "answer" and example.truth is not None:
            _cross_out(canvas, example.wrong[:rows, :columns], (left, top), cell)
        _write_texts(canvas, board[:rows, :columns], example.given, (left, top), cell, look)
    return np.asarray(image)


def _used(boards: Sequence[Board], pad_id: int) -> tuple[int, int]:
    """Return how many rows and columns of the canvas, from the first, hold anything in these boards."""
    used = np.any([board != pad_id for board in boards], axis=0)
    sides = (np.flatnonzero(used.any(axis=axis)) for axis in (1, 0))
    rows, columns = (int(side[-1]) + 1 if len(side) else 1 for side in sides)
    return rows, columns


def _draw_cells(canvas: "ImageDraw", board: Board, corner: tuple[int, int], cell: int, look: Look) -> None:
    left, top = corner
    for (row, col), token in np.ndenumerate(board):
        x, y = left + col * cell, top + row * cell
        colour = look.tokens[int(token)].colour if token < len(look.tokens) else _LINE
        canvas.rectangle((x, y, x + cell, y + cell), fill=colour, outline=_LINE)
    if look.box is not None:
        rows, columns = board.shape
        right, bottom = left + columns * cell, top + rows * cell
        for row in range(0, rows + 1, look.box[0]):
            canvas.line((left, top + row * cell, right, top + row * cell), fill=_HEAVY_LINE, width=2)
        for col in range(0, columns + 1, look.box[1]):
            canvas.line((left + col * cell, top, left + col * cell, bottom), fill=_HEAVY_LINE, width=2)


def _cross_out(canvas: "ImageDraw", wrong: NDArray[np.bool_], corner: tuple[int, int], cell: int) -> None:
    """Draw a cross into cells, white within black, which is seen on every colour by every eye."""
    left, top = corner
    for row, col in np.argwhere(wrong).tolist():
        x, y, far = left + col * cell + 1, top + row * cell + 1, cell - 2
        for fill, width in (("black", max(2, cell // 5)), ("white", max(1, cell // 12))):
            canvas.line((x, y, x + far, y + far), fill=fill, width=width)
            canvas.line((x, y + far, x + far, y), fill=fill, width=width)


def _write_texts(
    canvas: "ImageDraw", board: Board, given: Board, corner: tuple[int, int], cell: int, look: Look
) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(max(6, round(0.6 * cell)))
    for (row, col), token in np.ndenumerate(board):
        text = look.tokens[int(token)].text if token < len(look.tokens) else "?"
        if text:
            centre = (corner[0] + (col + 0.5) * cell, corner[1] + (row + 0.5) * cell)
            fill = _GIVEN if token == given[row, col] else _FILLED_IN
            ground = {"stroke_width": 2, "stroke_fill": "white"}
            canvas.text(centre, text, fill=fill, font=font, anchor="mm", **ground)
