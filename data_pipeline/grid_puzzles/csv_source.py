"""Puzzles from `source,question,answer,rating` files.

Sudoku-Extreme and Maze-Hard come in this layout.

The files have millions of lines, so they are read in blocks of some megabytes and taken apart by numpy. All
grids of a source are equally large. Fields are not quoted.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self, cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError, unreadable
from data_pipeline.base.extras import require
from data_pipeline.base.parallel import progress_bar
from data_pipeline.base.random import stream_key, words_at
from data_pipeline.kind import split_role

HEADER = "source,question,answer,rating"
HUB_PREFIX = "hub:"
MAX_RATING_DIGITS = 9  # so that it is an int32

_BLOCK_BYTES = 4 << 20
_MAX_LINE_BYTES = 1 << 17
_NEWLINE, _COMMA = b"\n,"
_FIRST_LINE = 2  # after the header

Cells = NDArray[np.uint8]  # [n, width]
Column = Literal["question", "answer"]


class Selection(NamedTuple):
    """Which lines of a source to keep, as published: hard enough ones, and of these a random choice."""

    min_difficulty: int | None = None
    """Smallest rating to keep."""
    subsample: int | None = None
    """How many to keep, if there are more."""
    seed: int = 0


class CsvBlock(NamedTuple):
    """Some consecutive lines of a file, as bytes."""

    file: Path
    first_line: int
    questions: Cells
    answers: Cells
    ratings: NDArray[np.int32]  # [n]

    def bad_row(self, row: int, column: Column, why: str) -> InputError:
        """Return the error about a field; `why` gives reason and remedy."""
        value = _shown(self._cells(column)[row].tobytes())
        return InputError(f"{self.file}: line {self.first_line + row}: {column} {value}: {why}.")

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


class SplitFiles(NamedTuple):
    """The files of a source, by what they are for."""

    train: list[Path]
    test: list[Path]


Decode = Callable[[CsvBlock], tuple[Cells, Cells]]
"""Checks and translates a block, into inputs and labels."""


def find_files(source: str) -> SplitFiles:
    """Find the files of PATH[:train|:evaluation] or of `hub:OWNER/NAME[@REVISION]`.

    A folder holds train.csv, test.csv or both. A single file trains, unless its name has "test" or "evaluation"
    in it. A suffix overrides the names.
    """
    if source.startswith(HUB_PREFIX):
        return _from_hub(source)
    path, role = split_role(source)
    try:
        if path.is_dir():
            files = [file for file in (path / "train.csv", path / "test.csv") if file.is_file()]
        else:
            files = [path] if path.is_file() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the path and its rights.") from None
    if not files:
        raise InputError(
            f"{path}: no such file, nor a folder with train.csv or test.csv; give the CSV file ({HEADER}) or the "
            "folder of both, optionally followed by :train or :evaluation."
        )
    found = SplitFiles([], [])
    for file in files:
        is_held_out = role == "evaluation" if role else "test" in file.stem or "evaluation" in file.stem
        (found.test if is_held_out else found.train).append(file)
    return found


def _from_hub(source: str) -> SplitFiles:
    name, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    require("hub", source)
    import huggingface_hub

    try:
        download = cast(Callable[..., str], huggingface_hub.hf_hub_download)  # pyright: ignore[reportUnknownMemberType]
        train, test = (
            Path(download(name, file, repo_type="dataset", revision=revision or None))
            for file in ("train.csv", "test.csv")
        )
    except (OSError, ValueError) as error:  # its errors, those of the connection included, are of these kinds
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{source}: cannot be downloaded ({type(error).__name__}: {reason}); check the name and the network, "
            "or download train.csv and test.csv elsewhere and give their folder."
        ) from None
    return SplitFiles([train], [test])


def read_puzzles(
    files: list[Path], decode: Decode, selection: Selection | None = None, *, show_progress: bool = False
) -> Puzzles:
    """Read the lines of the files that the selection keeps; every line is checked, kept or not.

    Raise InputError at the first line that is not as it should be, and where none is left.
    """
    selection = selection or Selection()
    kept = _Kept(selection)
    width: int | None = None
    with progress_bar("reading", " puzzles", None, shown=show_progress) as progress:
        for file in files:
            for block in read_blocks(file, width):
                width = block.questions.shape[1]
                inputs, labels = decode(block)
                kept.add(Puzzles(inputs, labels, block.ratings))
                progress.update(len(block.ratings))
    puzzles = kept.puzzles()
    if puzzles is None or not puzzles.num_puzzles:
        names = ", ".join(map(str, files))
        wanted = selection.min_difficulty
        reason = "no puzzle in the file" if wanted is None else f"no puzzle is rated {wanted} or higher"
        remedy = "give another file" + ("" if wanted is None else " or ask for a lower difficulty")
        raise InputError(f"{names}: {reason}; {remedy}.")
    return puzzles


class _Kept:
    """Gathers puzzles; of those that a subsample leaves out it never holds many.

    A subsample keeps those with the smallest random words. A word depends on the seed and on the number of the
    puzzle among those hard enough, so how the file was cut into blocks does not matter.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._key = stream_key(selection.seed, "subsample")
        self._puzzles: Puzzles | None = None
        self._words = np.zeros(0, dtype=np.uint64)
        self._num_seen = 0

    def add(self, more: Puzzles) -> None:
        selection = self._selection
        if selection.min_difficulty is not None:
            more = more.take(more.ratings >= selection.min_difficulty)
        self._puzzles = more if self._puzzles is None else _extended(self._puzzles, more)
        if selection.subsample is not None:
            numbers = np.arange(self._num_seen, self._num_seen + more.num_puzzles)
            self._words = np.append(self._words, words_at(numbers, 0, self._key)[:, 0])
            if len(self._words) > 2 * selection.subsample + 65536:
                self._thin_out(selection.subsample)
        self._num_seen += more.num_puzzles

    def puzzles(self) -> Puzzles | None:
        if self._selection.subsample is not None:
            self._thin_out(self._selection.subsample)
        return self._puzzles

    def _thin_out(self, size: int) -> None:
        if self._puzzles is not None:
            chosen = np.sort(np.argsort(self._words, kind="stable")[:size])
            self._puzzles, self._words = self._puzzles.take(chosen), self._words[chosen]


def _extended(puzzles: Puzzles, more: Puzzles) -> Puzzles:
    """Add puzzles to others, which are changed, so that there are never two copies of millions."""
    for column, addition in zip(puzzles, more, strict=True):
        length = len(column)
        column.resize((length + len(addition), *column.shape[1:]), refcheck=False)
        column[length:] = addition
    return puzzles


def read_blocks(file: Path, width: int | None = None) -> Iterator[CsvBlock]:
    """Yield the lines of a file, block by block; grids have `width` cells, by default as many as the first.

    Raise InputError.
    """
    line = _FIRST_LINE
    for text in _whole_lines(file):
        block = _parse(file, text, line, width)
        width = block.questions.shape[1]
        line += len(block.ratings)
        yield block


def _whole_lines(file: Path) -> Iterator[bytes]:
    """Yield the file after its header in pieces that end with a newline, Windows' ends of lines put right."""
    try:
        with file.open("rb") as stream:
            header = stream.readline(_MAX_LINE_BYTES)
            if header.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") != HEADER.encode():
                raise InputError(
                    f"{file}: line 1: the header is {_shown(header)}, but the columns are {HEADER}; give a file in "
                    "the layout of Sudoku-Extreme and Maze-Hard."
                )
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
    except OSError as error:
        raise unreadable(file, error) from None


def _parse(file: Path, text: bytes, first_line: int, width: int | None) -> CsvBlock:
    data = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    commas = np.flatnonzero(data == _COMMA)
    starts = np.concatenate([[0], ends[:-1] + 1])
    num_commas = np.diff(np.searchsorted(commas, ends), prepend=0)
    wrong = num_commas != 3
    if wrong.any() or b'"' in text:
        quoted = np.searchsorted(ends, [text.find(b'"')])[0] if b'"' in text else len(ends)
        row = int(min(wrong.argmax() if wrong.any() else len(ends), quoted))
        raise InputError(
            f"{file}: line {first_line + row}: {_shown(text[starts[row] : ends[row]])} has "
            + ("quotes" if row == quoted else f"{num_commas[row] + 1} fields")
            + f", but a line is {HEADER}, four fields without quotes; complete it or take it out."
        )
    first, second, third = commas.reshape(-1, 3).T
    if width is None:
        width = int(second[0] - first[0] - 1)
    grids: list[Cells] = []
    for column, before, after in (("question", first, second), ("answer", second, third)):
        lengths = after - before - 1
        if (lengths != width).any() or width == 0:
            row = int((lengths != width).argmax())
            value = _shown(text[before[row] + 1 : after[row]])
            raise InputError(
                f"{file}: line {first_line + row}: {column} {value} has {lengths[row]} characters where {width} "
                "are due, as many as in the first question; complete the line or take it out."
                if width
                else f"{file}: line {first_line}: question is empty; complete the line or take it out."
            )
        grids.append(sliding_window_view(data, width)[before + 1])
    return CsvBlock(file, first_line, grids[0], grids[1], _ratings(file, text, data, third, ends, first_line))


def _ratings(
    file: Path,
    text: bytes,
    data: Cells,
    commas: NDArray[np.intp],
    ends: NDArray[np.intp],
    first_line: int,
) -> NDArray[np.int32]:
    """Parse the whole numbers between the last comma and the end of each line."""
    lengths = ends - commas - 1
    is_bad = (lengths < 1) | (lengths > MAX_RATING_DIGITS)
    ratings = np.zeros(len(ends), dtype=np.int32)
    for k in range(1, int(min(lengths.max(), MAX_RATING_DIGITS)) + 1):
        inside = lengths >= k
        digits = data[np.where(inside, commas + k, 0)] - np.uint8(ord("0"))
        is_bad |= inside & (digits > 9)
        ratings = np.where(inside, ratings * 10 + digits, ratings)
    if is_bad.any():
        row = int(is_bad.argmax())
        value = _shown(text[commas[row] + 1 : ends[row]])
        raise InputError(
            f"{file}: line {first_line + row}: rating {value} is no whole number of at most {MAX_RATING_DIGITS} "
            "digits; correct it or take out the line."
        )
    return ratings


def _shown(text: bytes) -> str:
    shown = repr(text.decode("utf-8", "replace").rstrip("\r\n"))
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
