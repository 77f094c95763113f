"""What decides the bytes of a dataset: its kind, the options, the seed, and the sources with their checksums."""

from typing import Literal

from data_pipeline.base.models import Strict

Kind = Literal["arc", "sudoku", "maze"]
LeakPolicy = Literal["refuse", "drop", "keep"]


class SourceInfo(Strict):
    """One source and the sha256 of its content: of the tasks read from it, or of the bytes of a CSV file."""

    name: str
    sha256: str
    num_tasks: int
    """Tasks, Sudokus or mazes in it, chosen or not."""


class ArcOptions(Strict):
    """The options that decide the content of an ARC dataset, beside sources and seed."""

    num_aug: int
    holdout: Literal["evaluation", "all"]
    canvas: int
    limit_groups: int | None
    leaks: LeakPolicy = "refuse"
    conflicts: Literal["refuse", "first"] = "refuse"
    """What becomes of two different tasks of one name."""


class Generator(Strict):
    """New puzzles in place of a source."""

    side: int
    num_train: int
    num_test: int
    min_steps: int | None
    """Of mazes: their shortest paths take more steps than this."""


class PuzzleOptions(Strict):
    """The options that decide the content of a Sudoku or maze dataset, beside sources and seed."""

    num_aug: int
    subsample: int | None
    min_difficulty: int | None
    limit_groups: int | None
    leaks: LeakPolicy = "refuse"
    generator: Generator | None


class Identity(Strict):
    """What decides the bytes of a dataset."""

    kind: Kind
    options: ArcOptions | PuzzleOptions
    seed: int
    sources: tuple[SourceInfo, ...]
