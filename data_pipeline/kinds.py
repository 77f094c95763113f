"""The kinds of puzzles of which datasets are made.

A new one is a module of its own, which describes it, and a line here.
"""

from data_pipeline.arc.kind import ARC
from data_pipeline.base.errors import InputError
from data_pipeline.grid_puzzles.maze.kind import MAZE
from data_pipeline.grid_puzzles.maze.unique import MAZE_UNIQUE
from data_pipeline.grid_puzzles.sudoku.kind import SUDOKU
from data_pipeline.kind import Kind

KINDS = (
    ARC,
    SUDOKU,
    MAZE,
    MAZE_UNIQUE,
)
KIND_OF_PRESET = {preset: kind for kind in KINDS for preset in kind.presets}


def kind_named(name: str) -> Kind:
    """Return the kind that dataset.json names; raise InputError for one that is unknown here."""
    for kind in KINDS:
        if kind.name == name:
            return kind
    known = ", ".join(kind.name for kind in KINDS)
    raise InputError(
        f"kind {name!r}: unknown here; use the release that built the dataset, or one of {known}."
    )
