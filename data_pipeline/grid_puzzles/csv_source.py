"""Puzzles from CSV files: a line is a puzzle, its solution and perhaps how hard it is.

Sudoku-Extreme and Maze-Hard come in this form, with the columns HEADER; `csv_layout` finds those of other files.

The files have millions of lines, so they are read in blocks of some megabytes and taken apart by numpy. All
grids of a source are equally large.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.grid_puzzles.csv_files import CsvFile, open_text
from data_pipeline.grid_puzzles.csv_layout import Layout, layout_of

HEADER = "source,question,answer,rating"
MAX_RATING_DIGITS = 9  # so that it is an int32

_BLOCK_BYTES = 4 << 20
_MAX_LINE_BYTES = 1 << 17
_MAX_DECIMALS = 24  # of a rating, that all are parsed together
_NEWLINE, _POINT = b"\n."

Cells = NDArray[np.uint8]  # [n, width]
Column = Literal["question", "answer"]
_NONE: Cells = np.zeros((0, 1), dtype=np.uint8)


class CsvBlock(NamedTuple):
    """Some consecutive lines of a file, as bytes."""

    file: CsvFile
    numbers: NDArray[np.intp]  # [n], of the lines
    questions: Cells
    answers: Cells
    ratings: NDArray[np.int32]  # [n]
    unit: str = "line"
    """What the numbers are of."""

    def bad_row(self, row: int, column: Column, why: str) -> InputError:
        """Return the error about a field; `why` gives reason and remedy."""
        value = _shown(self._cells(column)[row].tobytes())
        return InputError(f"{self.file}: {self.unit} {self.numbers[row]}: {column} {value}: {why}.")

    def refuse_cells(self, column: Column, is_bad: NDArray[np.bool_], why: str) -> None:
        """Raise InputError about the first bad cell [n, width] of a column; `why` gives reason and remedy."""
        if is_bad.any():
            row, position = np.unravel_index(int(is_bad.argmax()), is_bad.shape)
            character = _shown(self._cells(column)[row, position].tobytes())
            raise self.bad_row(int(row), column, f"character {position + 1} is {character}; {why}")

    def _cells(self, column: Column) -> Cells:
        return self.questions if column == "question" else self.answers


class Puzzles(NamedTuple):
    """Puzzles with their solutions, in columns of [n]: millions of them are not copied without need."""

    inputs: Cells
    labels: Cells
    ratings: NDArray[np.int32]  # how hard, on the scale of whoever rated

    @property
    def num_puzzles(self) -> int:
        return len(self.inputs)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.integer] | slice) -> Self:
        """Return some of the puzzles."""
        return self._make(column[chosen] for column in self)

    @classmethod
    def join(cls, blocks: Sequence[Self]) -> Self:
        """Return the puzzles of at least one block, one after another."""
        return cls._make(np.concatenate(columns) for columns in zip(*blocks, strict=True))


def read_blocks(file: CsvFile, width: int | None = None, *, rated: bool = False) -> Iterator[CsvBlock]:
    """Yield the lines of a file, block by block; grids have `width` cells, by default as many as the first.

    Raise InputError; that a puzzle has no rating is an error only if all have to be rated.
    """
    layout = _layout(file)
    if rated and layout.rating is None:
        raise InputError(
            f"{file}: no column says how hard a puzzle is; leave out --min-difficulty, or call the column `rating` in "
            "the first line."
        )
    line = layout.first_line
    for text in _whole_lines(file, layout.first_line - 1):
        block = _parse(_Lines(file, text, line), layout, width, rated=rated)
        line += text.count(b"\n")
        if len(block.questions):
            width = block.questions.shape[1]
            yield block


def _layout(file: CsvFile) -> Layout:
    """Return how a file is to be taken apart, from its first two lines that are not empty."""
    lines: list[str] = []
    number = 1
    with open_text(file) as stream:
        while len(lines) < 2 and (line := stream.readline(_MAX_LINE_BYTES)):
            if line.strip():
                lines.append(line.decode("utf-8", "replace").rstrip("\r\n"))
            elif not lines:
                number += 1
    return layout_of(file, lines, number)


def _whole_lines(file: CsvFile, num_skipped: int) -> Iterator[bytes]:
    """Yield the file without its first lines in pieces that end with a newline, Windows' ends of lines put right."""
    with open_text(file) as stream:
        for _ in range(num_skipped):
            stream.readline()
        rest = b""
        while piece := stream.read(_BLOCK_BYTES):
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield (lines + newline).replace(b"\r\n", b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                raise InputError(
                    f"{file}: {_shown(rest)} goes on for more than {_MAX_LINE_BYTES} bytes without an end of "
                    "line; this is no such CSV file, download it again."
                )
        if rest:
            yield rest.removesuffix(b"\r") + b"\n"


class _Lines(NamedTuple):
    """Some consecutive lines of a file."""

    file: CsvFile
    text: bytes
    first_line: int

    def bad(self, number: int, why: str) -> InputError:
        """Return the error about a line of the file; `why` gives reason and remedy."""
        line = self.text.split(b"\n", number - self.first_line + 1)[number - self.first_line]
        return InputError(f"{self.file}: line {number}: {_shown(line)} {why}")


class _Fields(NamedTuple):
    """Lines of which every one has the same number of fields, and where these are."""

    text: bytes
    numbers: NDArray[np.intp]  # [n], of the lines in the file
    begins: NDArray[np.intp]  # [n, fields]
    ends: NDArray[np.intp]  # [n, fields]

    def shown(self, row: int, column: int) -> str:
        return _shown(self.text[self.begins[row, column] : self.ends[row, column]])


def _parse(lines: _Lines, layout: Layout, width: int | None, *, rated: bool) -> CsvBlock:
    file = lines.file
    if b'"' in lines.text or layout.is_spaced:
        fields, columns = _unquoted(lines, layout)
    else:
        columns = layout.question, layout.answer, layout.rating
        fields = _fields(lines, layout.separator.encode(), layout.num_columns)
    data = np.frombuffer(fields.text, dtype=np.uint8)
    lengths = fields.ends - fields.begins
    if width is None:
        width = int(lengths[0, columns[0]]) if len(lengths) else 1
    grids: list[Cells] = []
    for name, column in (("question", columns[0]), ("answer", columns[1])):
        wrong = lengths[:, column] != width
        if wrong.any() or width == 0:
            row = int(wrong.argmax())
            number = fields.numbers[row]
            raise InputError(
                f"{file}: line {number}: {name} {fields.shown(row, column)} has {lengths[row, column]} characters "
                f"where {width} are due, as many as in the first question; complete the line or take it out."
                if width
                else f"{file}: line {number}: question is empty; complete the line or take it out."
            )
        grids.append(sliding_window_view(data, width)[fields.begins[:, column]] if len(lengths) else _NONE)
    ratings, is_rated = _ratings(fields, data, columns[2])
    if rated and not is_rated.all():
        row = int(is_rated.argmin())
        raise InputError(
            f"{file}: line {fields.numbers[row]}: rating {fields.shown(row, columns[2] or 0)} is no number below "
            f"{10**MAX_RATING_DIGITS}; correct it or take out the line."
        )
    return CsvBlock(file, fields.numbers, grids[0], grids[1], ratings)


def _fields(lines: _Lines, separator: bytes, num_columns: int) -> _Fields:
    """Take lines without quotes apart; empty ones are left out."""
    text = lines.text
    data = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    separators = np.flatnonzero(data == separator[0])
    num_separators = np.diff(np.searchsorted(separators, ends), prepend=0)
    numbers = lines.first_line + np.arange(len(ends))
    is_empty = ends - starts == num_separators
    wrong = ~is_empty & (num_separators != num_columns - 1)
    if wrong.any():
        row = int(wrong.argmax())
        found = f"has {num_separators[row] + 1} fields, but the first line has {num_columns}"
        raise lines.bad(int(numbers[row]), f"{found}; complete it or take it out.")
    if is_empty.all():
        none = np.zeros((0, num_columns), dtype=np.intp)
        return _Fields(text, numbers[:0], none, none)
    if is_empty.any():
        kept = np.flatnonzero(~is_empty).tolist()
        fuller = b"".join([text[starts[row] : ends[row] + 1] for row in kept])
        return _fields(lines._replace(text=fuller), separator, num_columns)._replace(numbers=numbers[kept])
    within = separators.reshape(len(ends), num_columns - 1)
    begins = np.concatenate([starts[:, None], within + 1], axis=1)
    return _Fields(text, numbers, begins, np.concatenate([within, ends[:, None]], axis=1))


def _unquoted(lines: _Lines, layout: Layout) -> tuple[_Fields, tuple[int, int, int | None]]:
    """Take lines apart of which some have quotes; return the fields that are needed, and which they are."""
    columns = [layout.question, layout.answer, *([] if layout.rating is None else [layout.rating])]
    text = lines.text.decode("latin-1")  # a character for each byte
    reader = csv.reader(
        text.split("\n"), delimiter=layout.separator, skipinitialspace=layout.is_spaced, strict=True
    )
    kept: list[str] = []
    numbers: list[int] = []
    read = 0
    try:
        for fields in reader:
            number = lines.first_line + read
            if reader.line_num != read + 1:
                raise lines.bad(number, "has a field that goes on in the next line; write it on one line.")
            read = reader.line_num
            if not any(fields):
                continue
            if len(fields) != layout.num_columns:
                found = f"has {len(fields)} fields, but the first line has {layout.num_columns}"
                raise lines.bad(number, f"{found}; complete it or take it out.")
            kept.append("\x1f".join(fields[column] for column in columns))
            numbers.append(number)
    except csv.Error as error:
        why = f"has quotes that do not enclose a field ({error}); correct or remove them."
        raise lines.bad(lines.first_line + read, why) from None
    plain = "".join(f"{line}\n" for line in kept).encode("latin-1")
    found = _fields(_Lines(lines.file, plain, lines.first_line), b"\x1f", len(columns))
    return found._replace(numbers=np.array(numbers, dtype=np.intp)), (0, 1, 2 if columns[2:] else None)


def _ratings(fields: _Fields, data: Cells, column: int | None) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the ratings, rounded down to whole numbers and 0 where there is none, and which there are."""
    num_lines = len(fields.numbers)
    ratings = np.zeros(num_lines, dtype=np.int32)
    if column is None or not num_lines:
        return ratings, ratings > 0
    begins, lengths = fields.begins[:, column], fields.ends[:, column] - fields.begins[:, column]
    is_plain = (lengths >= 1) & (lengths <= _MAX_DECIMALS)
    num_digits = np.zeros(num_lines, dtype=np.int8)  # before the point
    is_after_point = np.zeros(num_lines, dtype=np.bool_)
    for k in range(int(min(lengths.max(), _MAX_DECIMALS))):
        inside = lengths > k
        characters = data[np.where(inside, begins + k, 0)]
        digits = characters - np.uint8(ord("0"))
        is_point = (characters == _POINT) & ~is_after_point
        is_plain &= ~inside | (digits <= 9) | is_point
        is_after_point |= is_point
        counts = inside & ~is_after_point & (num_digits < MAX_RATING_DIGITS + 1)
        num_digits += counts
        ratings = np.where(counts & (num_digits <= MAX_RATING_DIGITS), ratings * 10 + digits, ratings)
    is_plain &= (num_digits >= 1) & (num_digits <= MAX_RATING_DIGITS)
    for row in np.flatnonzero(~is_plain).tolist():
        value = _number(fields.text[fields.begins[row, column] : fields.ends[row, column]])
        is_plain[row] = abs(value) < 10**MAX_RATING_DIGITS
        ratings[row] = math.floor(value) if is_plain[row] else 0
    return ratings, is_plain


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _shown(text: bytes) -> str:
    shown = repr(text.decode("utf-8", "replace").rstrip("\r\n"))
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
