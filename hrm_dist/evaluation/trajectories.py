"""Every segment's answer of each input, kept as changes. Loads no torch.

An answer changes in few cells from one segment to the next, and then in none, so that a small part of the answers'
size is needed. They lie beside the predictions, in a folder of their own, where a vote does not look for predictions:
DIR/segments/predictions_00000.npz is of DIR/predictions_00000.npz. An entry is a start of an input; those of an input
follow each other, from start 0 on, and all inputs have as many. A file holds
  rows int32 [N]                   which of the inputs that the evaluation covers, from 0
  start_index int32 [N]            which start of its input
  puzzle_identifiers, example_index int32 [N]   which input that is, as in the predictions
  num_segments int32 [N]           how many segments an entry has run; K is their sum
  q_halt_logits, q_continue_logits, residuals, log_probs float32 [K]   of each segment, entry after entry
  starts int64 [K + 1]             where the changes of each segment begin
  cells uint16 [C], tokens uint8 [C]   what is new against the segment before; before the first, all is padding
  num_cells int32, 0-d             S
Files of earlier versions have one start of each input, and no start_index, puzzle_identifiers and example_index.

Shape legend: B slots, N entries, R inputs, S cells of an answer, K segments over all entries, C changes.
"""

import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from hrm_dist.evaluation.predictions import NPZ_DAMAGE

VALUES = ("q_halt_logits", "q_continue_logits", "residuals", "log_probs")
"""What is kept of each segment beside its answer."""

_MAX_CELLS = 2**16
# field -> dtype, number of axes
_FIELDS = {
    "rows": (np.int32, 1),
    "start_index": (np.int32, 1),
    "puzzle_identifiers": (np.int32, 1),
    "example_index": (np.int32, 1),
    "num_segments": (np.int32, 1),
    **dict.fromkeys(VALUES, (np.float32, 1)),
    "starts": (np.int64, 1),
    "cells": (np.uint16, 1),
    "tokens": (np.uint8, 1),
    "num_cells": (np.int32, 0),
}
_NEW_FIELDS = ("start_index", "puzzle_identifiers", "example_index")
"""Absent in files of earlier versions, all three."""


class Trajectory(NamedTuple):
    """The segments of one start of an input, n of them."""

    values: NDArray[np.float32]  # [n, len(VALUES)]
    num_changes: NDArray[np.int64]  # [n]
    cells: NDArray[np.uint16]  # of the first segment, then of the second, ...
    tokens: NDArray[np.uint8]

    def answers(self, num_cells: int) -> NDArray[np.uint8]:
        """Return the answer after each segment, [n, num_cells]."""
        ends = self.num_changes.cumsum()
        answers = np.zeros((len(ends), num_cells), dtype=np.uint8)
        for number, (end, num) in enumerate(zip(ends.tolist(), self.num_changes.tolist(), strict=True)):
            answers[number:, self.cells[end - num : end]] = self.tokens[end - num : end]
        return answers


class _Segment(NamedTuple):
    """What one segment changed in all slots."""

    values: NDArray[np.float32]  # [B, len(VALUES)]
    starts: NDArray[np.int64]  # [B + 1]
    cells: NDArray[np.uint16]  # slot after slot
    tokens: NDArray[np.uint8]


class Recorder:
    """Keep what the inputs that are in the slots have answered so far."""

    def __init__(self, num_slots: int, num_cells: int) -> None:
        if not 1 <= num_cells <= _MAX_CELLS:
            raise ValueError(f"{num_cells} cells; an answer has 1 to {_MAX_CELLS:,}")
        self.num_cells = num_cells
        self._answers = np.zeros((num_slots, num_cells), dtype=np.uint8)
        # The latest segments, as far back as an input that is not taken yet needs them.
        self._segments = deque[_Segment]()
        self._length = np.zeros(num_slots, dtype=np.int64)  # of each slot's trajectory

    def add(
        self,
        slots_running: NDArray[np.bool_],
        slots_begun: NDArray[np.bool_],
        preds: NDArray[np.uint8],
        q_halt_logits: NDArray[np.float32],
        q_continue_logits: NDArray[np.float32],
        residuals: NDArray[np.float32],
        log_probs: NDArray[np.float32],
    ) -> None:
        """Record a segment: preds [B, S], all others [B]; nothing is kept of the arrays themselves.

        slots_running: which hold an input that goes on, and has since it began; slots_begun: which of these have begun
        with this segment.
        """
        if (slots_running != (slots_begun | (self._length > 0))).any():
            raise ValueError("a slot runs whose input has not begun, or one waits whose input is not taken")
        self._length[slots_begun] = 0
        self._answers[slots_begun] = 0
        changed = preds != self._answers
        changed[~slots_running] = False
        places = np.flatnonzero(changed)
        starts = np.searchsorted(places, np.arange(len(preds) + 1) * self.num_cells)
        tokens = preds.reshape(-1)[places]
        self._answers.reshape(-1)[places] = tokens
        values = np.stack([q_halt_logits, q_continue_logits, residuals, log_probs], axis=1, dtype=np.float32)
        cells = (places % self.num_cells).astype(np.uint16)
        self._segments.append(_Segment(values, starts, cells, tokens))
        self._length[slots_running] += 1
        self._forget()

    def take(self, slot: int) -> Trajectory:
        """Return what a slot's input has answered, to the segment added last in which it ran; the slot is free then.

        Take an input before a segment is added in which it does not run.
        """
        length = int(self._length[slot])
        if not length:
            raise ValueError(f"slot {slot} holds no input")
        self._length[slot] = 0
        segments = [self._segments[-n] for n in range(length, 0, -1)]
        ranges = [slice(*segment.starts[slot : slot + 2]) for segment in segments]
        return Trajectory(
            np.stack([segment.values[slot] for segment in segments]),
            np.array([part.stop - part.start for part in ranges], dtype=np.int64),
            np.concatenate([segment.cells[part] for segment, part in zip(segments, ranges, strict=True)]),
            np.concatenate([segment.tokens[part] for segment, part in zip(segments, ranges, strict=True)]),
        )

    def _forget(self) -> None:
        for _ in range(len(self._segments) - int(self._length.max())):
            self._segments.popleft()


class Trajectories(NamedTuple):
    """The entries of one file."""

    rows: NDArray[np.int32]  # [N]
    start_index: NDArray[np.int32]  # [N]
    num_segments: NDArray[np.int32]  # [N]
    q_halt_logits: NDArray[np.float32]  # [K]
    q_continue_logits: NDArray[np.float32]  # [K]
    residuals: NDArray[np.float32]  # [K]
    log_probs: NDArray[np.float32]  # [K]
    offsets: NDArray[np.int64]  # [K + 1] `starts` of the file
    cells: NDArray[np.uint16]  # [C]
    tokens: NDArray[np.uint8]  # [C]
    num_cells: int
    # None where an earlier version wrote the file.
    puzzle_identifiers: NDArray[np.int32] | None = None  # [N]
    example_index: NDArray[np.int32] | None = None  # [N]

    @property
    def num_starts(self) -> int:
        """Return how many entries, one after the other, are of the same input."""
        return int(self.start_index.max(initial=0)) + 1

    def answers(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the answers [N, S] after the first segment, the second, and so on, to the most that an entry has run.

        An entry that has run fewer keeps its last. It is the same array every time: copy what has to last.
        """
        answers = np.zeros((len(self.rows), self.num_cells), dtype=np.uint8)
        first = self.num_segments.astype(np.int64).cumsum() - self.num_segments
        for n in range(self.num_segments.max(initial=0)):
            running = np.flatnonzero(self.num_segments > n)
            segments = first[running] + n
            starts, stops = self.offsets[segments], self.offsets[segments + 1]
            lengths = stops - starts
            changes = np.arange(lengths.sum()) + np.repeat(starts - (lengths.cumsum() - lengths), lengths)
            answers[np.repeat(running, lengths), self.cells[changes]] = self.tokens[changes]
            yield answers

    def by_segment(self, name: str) -> NDArray[np.float32]:
        """Return one of VALUES as [N, most segments of an entry]; one that has run fewer keeps its last."""
        values: NDArray[np.float32] = getattr(self, name)
        last = self.num_segments.astype(np.int64).cumsum() - 1
        numbers = np.arange(self.num_segments.max(initial=0))
        first = last - self.num_segments + 1
        return values[np.minimum(first[:, None] + numbers, last[:, None])]


def segments_file(predictions: Path) -> Path:
    """Return where the segments of a prediction file are kept."""
    return predictions.parent / "segments" / predictions.name


def write_trajectories(
    path: Path,
    rows: NDArray[np.int32],
    puzzle_identifiers: NDArray[np.int32],
    example_index: NDArray[np.int32],
    trajectories: Sequence[Sequence[Trajectory]],
    num_cells: int,
) -> None:
    """Write the trajectories of inputs, in this order, under a temporary name until the file is complete.

    The arrays are [R]; trajectories: of each input, all of its starts in order.
    """
    empty = Trajectory(
        np.zeros((0, len(VALUES)), dtype=np.float32),
        np.zeros(0, dtype=np.int64),
        np.zeros(0, dtype=np.uint16),
        np.zeros(0, dtype=np.uint8),
    )
    values, num_changes, cells, tokens = map(
        np.concatenate, zip(empty, *chain.from_iterable(trajectories), strict=True)
    )
    num_starts = [len(of_input) for of_input in trajectories]
    arrays = {
        "rows": rows.repeat(num_starts),
        "start_index": np.array([start for num in num_starts for start in range(num)], dtype=np.int32),
        "puzzle_identifiers": puzzle_identifiers.repeat(num_starts),
        "example_index": example_index.repeat(num_starts),
        "num_segments": np.array(
            [len(one.num_changes) for one in chain.from_iterable(trajectories)], dtype=np.int32
        ),
        **dict(zip(VALUES, values.T, strict=True)),
        "starts": np.concatenate([[0], num_changes.cumsum()]).astype(np.int64),
        "cells": cells,
        "tokens": tokens,
        "num_cells": np.array(num_cells, dtype=np.int32),
    }
    _check(arrays, str(path))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    replace_file(path, buffer.getvalue())


def read_trajectories(path: Path) -> Trajectories:
    """Read and check one file. Raises InputError, naming file and field, for whatever cannot be used."""
    try:
        # Opened here, since np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            is_of_earlier_version = not any(name in archive.files for name in _NEW_FIELDS)
            names = [name for name in _FIELDS if not (is_of_earlier_version and name in _NEW_FIELDS)]
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise InputError(
                    f"{path}: has no {', '.join(missing)}; it must be what an evaluation with --every-segment wrote."
                )
            arrays = {name: archive[name] for name in names}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; evaluate with --every-segment, into a new folder.") from None
    except NPZ_DAMAGE as error:
        raise InputError(
            f"{path}: not a readable .npz file ({error}); remove it and the predictions beside its folder, and "
            "evaluate again."
        ) from error
    if is_of_earlier_version:
        arrays["start_index"] = np.zeros(arrays["rows"].shape, dtype=np.int32)
    _check(arrays, str(path))
    num_cells, offsets = int(arrays.pop("num_cells")), arrays.pop("starts")
    return Trajectories(**arrays, offsets=offsets, num_cells=num_cells)


def _check(arrays: dict[str, NDArray], source: str) -> None:
    for name, array in arrays.items():
        dtype, num_axes = _FIELDS[name]
        if array.dtype != dtype or array.ndim != num_axes:
            axes = "without axes" if num_axes == 0 else "with one axis"
            raise InputError(
                f"{source}: {name} is {array.dtype} {list(array.shape)}; it must be {np.dtype(dtype)}, {axes}."
            )
    rows, num_segments, starts, cells = (arrays[name] for name in ("rows", "num_segments", "starts", "cells"))
    total = int(num_segments.sum(dtype=np.int64))
    lengths = {
        **{name: len(rows) for name in (*_NEW_FIELDS, "num_segments") if name in arrays},
        **dict.fromkeys(VALUES, total),
        "starts": total + 1,
        "tokens": len(cells),
    }
    for name, length in lengths.items():
        if len(arrays[name]) != length:
            raise InputError(f"{source}: {name} has {len(arrays[name])} entries; it must have {length}.")
    new_segment = np.zeros(len(cells) + 1, dtype=bool)
    is_sound = starts[0] == 0 and starts[-1] == len(cells) and (np.diff(starts) >= 0).all()
    if is_sound:
        new_segment[starts] = True
    rising = np.diff(cells.astype(np.int64)) > 0
    inputs = rows[:: _check_starts(arrays, source)]
    wrong = {
        "rows": (
            bool(inputs.min(initial=0) < 0) or len(np.unique(inputs)) < len(inputs),
            "negative or doubled",
        ),
        "num_segments": (bool(num_segments.min(initial=1) < 1), "below 1"),
        "num_cells": (not 1 <= arrays["num_cells"] <= _MAX_CELLS, f"not 1 to {_MAX_CELLS}"),
        "starts": (not is_sound, f"not ascending from 0 to {len(cells)}, the number of cells"),
        "cells": (
            bool(cells.max(initial=0) >= arrays["num_cells"]) or not (rising | new_segment[1:-1]).all(),
            f"not ascending within a segment, or not below {arrays['num_cells']}",
        ),
    }
    _refuse(wrong, source)


def _check_starts(arrays: dict[str, NDArray], source: str) -> int:
    """Return how many starts each input has."""
    start_index = arrays["start_index"]
    num_starts = int(start_index.max(initial=0)) + 1
    first = np.arange(len(start_index)) // num_starts * num_starts
    is_whole = len(start_index) % num_starts == 0
    wrong = {
        "start_index": (
            not (is_whole and np.array_equal(start_index, np.arange(len(start_index)) % num_starts)),
            f"not 0 to {num_starts - 1} of each input, in order",
        )
    }
    for name in ("rows", "puzzle_identifiers", "example_index"):
        if name in arrays:
            wrong[name] = (
                not np.array_equal(arrays[name], arrays[name][first]),
                "not those of the input's first start",
            )
    _refuse(wrong, source)
    return num_starts


def _refuse(wrong: Mapping[str, tuple[bool, str]], source: str) -> None:
    """Raise InputError for the first field that is wrong, with what its entries are."""
    for name, (is_wrong, why) in wrong.items():
        if is_wrong:
            raise InputError(
                f"{source}: {name} has entries that are {why}; evaluate again into a new folder."
            )
