"""Which columns of a CSV file hold the puzzles, their solutions and how hard they are.

Names in the header decide; where they are others, or there is no header, the first line of values does: two of them are
grids of one size, and one of the two has blanks (or, of mazes, no path).
"""

import csv
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from data_pipeline.base.errors import InputError

_QUESTION = frozenset({"question", "questions", "puzzle", "puzzles", "quiz", "quizzes", "input", "inputs"})
_ANSWER = frozenset({"answer", "answers", "solution", "solutions", "label", "labels", "output", "outputs"})
_RATING = frozenset({"rating", "difficulty"})
_SEPARATORS = ",;\t|"
_MIN_CELLS = 9
_VALUE = re.compile(r"[\d.# SGo]{9,}")  # which is no name
_PUBLISHED_COLUMNS = 4  # source, question, answer, rating


class Layout(NamedTuple):
    """How the lines of a file are taken apart."""

    separator: str
    columns: tuple[str, ...]
    """Their names, as the file has them; empty where it has no header."""
    num_columns: int
    question: int
    answer: int
    rating: int | None
    first_line: int
    """Number of the first line of values, from 1."""
    is_spaced: bool = False
    """Whether a space follows each separator."""


def layout_of(file: object, lines: Sequence[str], first_number: int) -> Layout:
    """Return the layout of a file that begins with these lines, of which the first has this number.

    Raise InputError, naming the file, if it cannot be told.
    """
    first = lines[0] if lines else ""
    separator = max(_SEPARATORS, key=first.count)
    fields = _fields(first, separator)
    names = [field.strip().casefold() for field in fields]
    where = f"{file}: line {first_number}"
    if not lines:
        raise InputError(f"{file}: is empty; give a file of puzzles and their solutions.")
    if re.search(r"[\0-\x08\x0a-\x1f]", first):
        raise InputError(
            f"{where}: {_shown(first)} is no text; save the puzzles as a CSV file and give that."
        )
    if len(fields) < 2:
        raise InputError(
            f"{where}: {_shown(first)} is one column; a line is a puzzle, its solution and whatever else, separated by "
            "commas, semicolons or tabs: give such a file."
        )
    has_header = bool({*names} & (_QUESTION | _ANSWER)) or not any(map(_VALUE.fullmatch, fields))
    rating = _only(names, _RATING)
    values = _fields(lines[1], separator) if has_header and len(lines) > 1 else fields
    question, answer = _only(names, _QUESTION), _only(names, _ANSWER)
    if question is None or answer is None:
        found = _by_content(names, values) if not has_header or len(lines) > 1 else None
        if found is None:
            raise InputError(
                f"{where}: {_shown(first)} does not tell which column has the puzzles and which the solutions, "
                "and both are needed; call them `question` and `answer` in the first line (and how hard a puzzle is "
                "`rating`)."
            )
        question, answer = found
    if not has_header and len(fields) == _PUBLISHED_COLUMNS and (question, answer) == (1, 2):
        rating = 3
    return Layout(
        separator,
        tuple(fields) if has_header else (),
        len(fields),
        question,
        answer,
        rating,
        first_number + has_header,
        is_spaced=f"{separator} " in first and has_header,
    )


def _fields(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    except (csv.Error, StopIteration):  # no such line at all
        return [line]


def _only(names: Sequence[str], known: frozenset[str]) -> int | None:
    found = [number for number, name in enumerate(names) if name in known]
    return found[0] if len(found) == 1 else None


def _grids(values: Sequence[str]) -> tuple[int, int] | None:
    """Return the two columns that hold grids, if exactly two do: equally long, a square, and no words."""
    of_size: defaultdict[int, list[int]] = defaultdict(list)
    for number, value in enumerate(values):
        is_square = math.isqrt(len(value)) ** 2 == len(value) >= _MIN_CELLS
        if is_square and re.search(r"[\d.#]", value):
            of_size[len(value)].append(number)
    pairs = {size: numbers for size, numbers in of_size.items() if len(numbers) == 2}
    if not pairs:
        return None
    one, other = pairs[max(pairs)]
    return one, other


def _by_content(names: Sequence[str], values: Sequence[str]) -> tuple[int, int] | None:
    """Return the columns of puzzles and solutions, if the names or the values tell."""
    found = _grids(values)
    if found is None or len(values) != len(names):
        return None
    one, other = found
    for question, answer in ((one, other), (other, one)):
        if _words(names[question]) & _QUESTION and _words(names[answer]) & _ANSWER:
            return question, answer
    for question, answer in ((one, other), (other, one)):
        has_path = "o" in values[answer] and "o" not in values[question]
        has_blanks = set("0.") & {*values[question]} and not set("0.") & {*values[answer]}
        if has_path or has_blanks:
            return question, answer
    return None


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", name))


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
