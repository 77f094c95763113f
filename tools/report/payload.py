"""What a page shows, as its script reads it: one JSON document, which holds all numbers and grids once.

A grid is a string: its rows joined by "/", a character a cell, which is the index of a token in `Report.tokens` in base
36. So "01/20" has two rows of two cells, and "" is a grid without cells. What is None is not known, or does not apply.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Grid = str
Status = Literal["solved", "close", "unsolved", "unknown"]
"""close: not solved, but an answer of the right size has at least 90 % of its cells right, some inputs are solved, or
it is another answer that obeys the rules; unknown: the truth is hidden."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CellToken(_Part):
    """What a character of a grid stands for."""

    meaning: str
    colour: str
    """As CSS spells it."""
    text: str
    """What is written into its cells; empty where the colour says it."""
    letter: str
    """What stands for it in plain text; written into its cells on demand."""


class Score(_Part):
    """A score of a run on a set of puzzles, as a share from 0 to 1."""

    name: str
    meaning: str
    subset: str
    value: float
    low: float | None
    high: float | None
    right: float | None
    """How many of `num` are right."""
    num: float | None
    what: str
    """What is counted, such as `test inputs`."""
    is_headline: bool = False


class Curve(_Part):
    """A value over the steps of a training."""

    panel: str
    """Curves of one panel share their axis: loss, accuracy, learning rate, ..."""
    name: str
    steps: list[int]
    values: list[float | None]


class Figure(_Part):
    """A picture of tools.analyze."""

    title: str
    caption: str
    uri: str


class Run(_Part):
    """One column of the comparison."""

    name: str
    """Short, and different for each run."""
    facts: dict[str, str]
    """What a reader wants to know first: dataset, subset, seed, commit, date, hardware, minutes, cost, ..."""
    settings: dict[str, str]
    """All settings of the training, flat."""
    scores: list[Score]
    curves: list[Curve]
    figures: list[Figure] = []
    warnings: list[str] = []
    """What makes its results less than they seem, such as inputs that are not answered."""


class Trajectory(_Part):
    """What the model answered after each segment."""

    label: str
    """Which answer it led to, such as `attempt 1`."""
    frames: list[Grid | None]
    """After each segment; None where it is as the one before."""
    q: list[float | None]
    """The estimate that the answer is right, from 0 to 1."""
    residuals: list[float | None]
    """The relative change of the state in the segment."""


class Attempt(_Part):
    """An answer that counts: of ARC two, of other puzzles one."""

    grid: Grid
    is_right: bool | None
    num_wrong: int | None
    """Cells, where the size is right."""
    note: str


class Candidate(_Part):
    """An answer that got votes."""

    rank: int = Field(ge=1)
    grid: Grid
    votes: int
    q: float | None
    """Mean over its votes; None where the model's numbers were lost."""
    is_right: bool | None


class Answer(_Part):
    """What a run says to one input."""

    attempts: list[Attempt]
    candidates: list[Candidate]
    num_votes: int
    num_candidates: int
    note: str
    """Where the truth is among the candidates, and the like."""
    trajectories: list[Trajectory]


class Result(_Part):
    """What a run makes of a puzzle."""

    status: Status
    cells_right: float | None
    """Share of the best attempts' cells, mean over the inputs."""
    agreement: float | None
    """Share of the votes that the first candidate got, mean over the inputs."""
    num_segments: float | None
    """Until the answer, mean over what was asked."""
    answers: list[Answer]
    """One for each of the puzzle's inputs."""


class Asked(_Part):
    """A test input."""

    grid: Grid
    truth: Grid | None


class Puzzle(_Part):
    """An ARC task, a Sudoku or a maze."""

    id: str
    """The same in every run and report: the task's name, or a digest of the input."""
    title: str
    split: str
    """Where it comes from, such as `evaluation`; empty where that is not known."""
    subsets: list[str]
    height: int
    width: int
    """Of its largest grid."""
    demonstrations: list[tuple[Grid, Grid]]
    inputs: list[Asked]
    results: list[Result | None]
    """By run; None where a run has no answer."""


class Report(_Part):
    """The whole page."""

    title: str
    kind: str
    """arc, sudoku, maze, ..."""
    made: str
    """When, and by which version."""
    tokens: list[CellToken]
    box: tuple[int, int] | None
    """Rows and columns of cells within heavy lines."""
    blank: str | None
    """The character of the cells that the answer fills in, all others being given; None where the answer is another
    grid."""
    words: dict[str, str]
    """Terms of the page, and what they mean."""
    runs: list[Run]
    puzzles: list[Puzzle]
    num_puzzles: int
    """Of the runs; the page may hold fewer."""
    notes: list[str] = []
    """Of the whole page: which puzzles were chosen, that datasets differ."""
