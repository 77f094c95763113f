"""What there is to know of a kind of puzzles, for building, inspecting and scoring."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.options import Options
from data_pipeline.schema import DatasetMetadata
from data_pipeline.shards.plan import Content, Request

Boards = NDArray[np.uint8]  # [n, canvas, canvas]
Role = Literal["train", "evaluation"]
Measured = dict[str, NDArray[np.int64]]
Check = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.bool_]]
"""Inputs and predictions, tokens [n, canvas * canvas], to whether each prediction is good; [n]."""

Images = Callable[[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]], NDArray[np.uint8]]
"""Examples [n, 2, canvas * canvas], input before label, numbers of their puzzles, and of an image of each, to these;
image 0 is the puzzle itself."""


def split_role(source: str) -> tuple[Path, Role | None]:
    """Split PATH:train or PATH:evaluation; the role is None where the path's own names decide."""
    path, colon, role = source.rpartition(":")
    if colon and path and role in ("train", "evaluation"):
        return Path(path), role
    return Path(source), None


class Token(NamedTuple):
    """What a token stands for, and how its cells are drawn."""

    meaning: str
    colour: str
    text: str = ""
    """What a picture writes into its cells."""
    letter: str = ""
    """What stands for it in plain text; its text, where there is none."""


PADDING = Token("padding", "#e4e4e4", letter="_")


class Look(NamedTuple):
    """How puzzles are drawn and measured."""

    tokens: tuple[Token, ...]
    measured: str
    measure: Callable[[Boards, Boards], Measured]
    """Inputs and labels to what is counted of them, by the name of the histogram."""
    box: tuple[int, int] | None = None
    """Rows and columns of cells that a picture draws heavy lines around."""
    blank: int | None = None
    """The token of cells that the answer fills in, all others being given; None where the answer is another grid."""


class Kind(NamedTuple):
    """A kind of puzzles. `data_pipeline.kinds` lists them."""

    name: str
    """In dataset.json."""
    presets: Mapping[str, str]
    """Names on the command line, and what is built by each."""
    source_help: str
    """What may be given as a source."""
    options: type[Options]
    read: Callable[[Request], Content]
    """Read the sources; raise InputError for what cannot be used as asked."""
    expect: Callable[[Request], DatasetMetadata]
    """Tell what a dataset will look like, as far as that is known without reading its sources."""
    look: Callable[[int], Look]
    """By the side of the canvas."""
    scorer: Literal["votes"] | None = None
    """What scores a test split beside the share of right answers: the votes of each task's augmentations."""
    checks: Mapping[str, Check] = MappingProxyType({})
    """Checks that a good prediction passes, be it the stored answer or not, by the name of the score."""
    characters: str = ""
    """What stands for tokens 1, 2, ... where people write puzzles; small ones may need the first of them alone. Empty
    for ARC, whose grids differ in size."""
    answers_only: str = ""
    """Those of them that no question has."""
    images: Images | None = None
    """Symmetric images of puzzles, which are as hard; None where there are none, or, as of ARC, of tasks alone."""
