"""The windows of a dataset's puzzles: the cells that each needs, at the top left of its grids before they are moved.

windows.json    Windows: height and width by group, which of its puzzles are transposed, which tasks do not fit

It is no part of what makes two datasets the same (`DatasetInfo.content`), since earlier versions, which built the same
shards, did not write it.
"""

import base64
import binascii
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from data_pipeline.base.errors import InputError
from data_pipeline.base.models import Strict
from data_pipeline.readings import left_out, told
from data_pipeline.schema import (
    FORMAT_VERSION,
    REBUILD,
    WINDOWS,
    Column,
    DatasetInfo,
    load_document,
    verify_document,
)

KINDS_WITH_WINDOWS = ("arc",)

_HIDDEN_SIZE, _INTERMEDIATE_SIZE = 512, 1536
"""Of the published models' blocks, by which operations are counted."""
_PREFIX = 1
"""Positions before the cells: the puzzle embedding."""


def _bits_of(value: object) -> NDArray[np.uint8]:
    """Return the bytes of a bitmap from base64."""
    if isinstance(value, np.ndarray):
        return cast(NDArray[np.uint8], value)
    if not isinstance(value, str):
        raise ValueError("is not text")
    try:
        return np.frombuffer(base64.b64decode(value, validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64") from None


def _base64_of(bits: NDArray[np.uint8]) -> str:
    return base64.b64encode(bits.tobytes()).decode("ascii")


Bitmap = Annotated[NDArray[np.uint8], PlainValidator(_bits_of), PlainSerializer(_base64_of)]
"""Bits, eight a byte, the first one highest, in JSON as base64."""


class Misfit(Strict):
    """A task of which known held-out outputs do not fit into its window."""

    task: str
    tests: tuple[int, ...]
    """Numbers of these test pairs, from 0."""


class Windows(Strict):
    """The content of windows.json: columns of [G], the groups of both splits by their identifiers, from 1 on."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    format_version: Literal[1] = FORMAT_VERSION
    canvas: int = Field(ge=1, le=255)
    num_puzzles: Column
    heights: Column
    """With end marks, of the original; clipped to the canvas."""
    widths: Column
    transposed: Bitmap
    """A bit per puzzle: whether its height and width have changed places."""
    misfits: tuple[Misfit, ...] = ()

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if not len(self.num_puzzles) == len(self.heights) == len(self.widths):
            raise ValueError("columns are not equally long")
        if not self.num_puzzles.size or self.num_puzzles.min() < 1:
            raise ValueError("there is no group, or one without puzzles")
        for name, sides in (("heights", self.heights), ("widths", self.widths)):
            if not 1 <= sides.min() <= sides.max() <= self.canvas:
                raise ValueError(f"{name} are not all from 1 to the canvas' {self.canvas}")
        if len(self.transposed) != -(-self.total_puzzles // 8):
            raise ValueError(f"transposed is not of {self.total_puzzles} puzzles")
        return self

    @property
    def total_puzzles(self) -> int:
        return int(self.num_puzzles.sum(dtype=np.int64))

    def table(self) -> NDArray[np.uint8]:
        """Return (height, width) by puzzle identifier; the blank one's is the whole canvas."""
        sides = np.stack([self.heights, self.widths], axis=1).astype(np.uint8)
        windows = np.repeat(sides, self.num_puzzles, axis=0)
        is_transposed = np.unpackbits(self.transposed, count=self.total_puzzles).astype(bool)
        windows[is_transposed] = windows[is_transposed, ::-1]
        return np.concatenate([np.full((1, 2), self.canvas, dtype=np.uint8), windows])

    def cost(self) -> "WindowCost":
        """Return what the windows need of the canvas."""
        cells = self.heights.astype(np.int64) * self.widths
        whole = self.canvas**2
        operations = block_operations(cells + _PREFIX) / block_operations(np.array(whole + _PREFIX))
        return WindowCost(float(cells.mean() / whole), float(operations.mean()))


class WindowCost(NamedTuple):
    """Shares of what the whole canvas needs, as means over the tasks."""

    cells: float
    operations: float


def block_operations(num_positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the multiplications of a published block (attention and SwiGLU of hidden size 512) by positions."""
    products = 8 * _HIDDEN_SIZE**2 + 6 * _HIDDEN_SIZE * _INTERMEDIATE_SIZE
    return num_positions * products + 4 * num_positions**2 * _HIDDEN_SIZE


def load_windows(dataset_dir: Path | str, info: DatasetInfo) -> Windows | None:
    """Read windows.json; return None where a dataset has none, raise InputError where it is damaged."""
    if WINDOWS not in info.documents:
        return None
    path = verify_document(dataset_dir, info, WINDOWS)
    windows = load_document(path, Windows)
    if (windows.canvas, windows.total_puzzles) != (info.canvas, info.num_puzzle_identifiers - 1):
        raise InputError(
            f"{path}: is of {windows.total_puzzles:,} puzzles on a canvas of {windows.canvas}, but dataset.json of "
            f"{info.num_puzzle_identifiers - 1:,} on one of {info.canvas}; {REBUILD}."
        )
    return windows


def windows_of_puzzles(dataset_dir: Path | str, info: DatasetInfo) -> NDArray[np.uint8]:
    """Return (height, width) of the window by puzzle identifier, [num_puzzle_identifiers, 2].

    Raise InputError for a dataset without windows.
    """
    windows = load_windows(dataset_dir, info)
    if windows is not None:
        return windows.table()
    refuse_kind_without_windows(dataset_dir, info.kind)
    raise InputError(
        f"{dataset_dir}: has no {WINDOWS}, since an earlier version built it, so its padding cannot be skipped; "
        "set padding=keep, or build it again with the same command and another --out: its shards come out the "
        "same, and runs resume with it."
    )


def refuse_kind_without_windows(dataset_dir: Path | str, kind: str) -> None:
    """Raise InputError for a dataset of a kind whose puzzles have no windows."""
    if kind not in KINDS_WITH_WINDOWS:
        raise InputError(
            f"{dataset_dir}: is of kind {kind}, whose puzzles fill the canvas, so there is no padding to skip; set "
            "padding=keep."
        )


class Frame(NamedTuple):
    """Where a window lies on the canvas: its first row and column, and those behind its last."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


def frame(board: NDArray[np.uint8], window: NDArray[np.uint8], pad_id: int = 0) -> Frame:
    """Return where the window (height, width) of an input [canvas, canvas] lies, cut off at the canvas' edge.

    It begins at the first row and the first column that hold anything, for the input's top left cell is a colour, and
    input and output were moved together.
    """
    is_held = board != pad_id
    top, left = int(is_held.any(axis=1).argmax()), int(is_held.any(axis=0).argmax())
    bottom, right = top + int(window[0]), left + int(window[1])
    return Frame(top, left, min(bottom, len(board)), min(right, len(board)))


def told_of_windows(windows: Windows | None) -> list[str]:
    """Return, for people, what windows need of the canvas, and what does not fit into them; nothing without windows."""
    if windows is None:
        return []
    cost = windows.cost()
    lines = [
        f"{cost.cells:.1%} of the canvas, {1 / cost.operations:.1f} times fewer operations (means over tasks)"
    ]
    if windows.misfits:
        tasks = [misfit.task for misfit in windows.misfits]
        what = "held-out task" if len(tasks) == 1 else "held-out tasks"
        lines.append(f"too small for the known outputs of {told(left_out(what, tasks))}")
    return lines
