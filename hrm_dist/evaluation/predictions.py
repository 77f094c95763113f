"""Prediction files: what an evaluation writes and a vote reads.

A `*.npz` holds at most 8,192 rows (our limit for writing; longer foreign files are read):
  puzzle_identifiers int32 [N]     inputs uint8 [N, S]   preds uint8 [N, S]   q_halt_logits float32 [N]
and, absent in files of other tools:
  example_index int32 [N]          which example of its puzzle a row is
  rows int32 [N]                   which of the inputs that the evaluation covers, from 0
  num_segments int32 [N]           after how many segments it was answered
  log_probs float32 [N]            log of the probability that the model gives to its answer: the sum over its cells
  checkpoint_id unicode, 0-d       which weights made it

Shape legend: N rows, S cells of the square canvas.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file

MAX_ROWS_PER_FILE = 8192
UNKNOWN_EXAMPLE = -1

# field -> dtype, number of axes
_REQUIRED = {
    "puzzle_identifiers": (np.int32, 1),
    "inputs": (np.uint8, 2),
    "preds": (np.uint8, 2),
    "q_halt_logits": (np.float32, 1),
}
_OPTIONAL = {
    "example_index": (np.int32, 1),
    "rows": (np.int32, 1),
    "num_segments": (np.int32, 1),
    "log_probs": (np.float32, 1),
}
NPZ_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    AttributeError,
    TypeError,
)
"""What reading a damaged .npz may raise; the last two, a bare .npy under this name."""


class Predictions(NamedTuple):
    """Rows of one file, or of one batch in memory."""

    puzzle_identifiers: npt.NDArray[np.int32]  # [N]
    inputs: npt.NDArray[np.uint8]  # [N, S] tokens
    preds: npt.NDArray[np.uint8]  # [N, S] tokens
    q_halt_logits: npt.NDArray[np.float32]  # [N]
    example_index: npt.NDArray[np.int32]  # [N]; UNKNOWN_EXAMPLE where the file does not say
    checkpoint_id: str | None = None
    source: str = "predictions"
    """The file, for messages."""
    # Of each row; None where the file does not say.
    rows: npt.NDArray[np.int32] | None = None
    """Which of the inputs that the evaluation covers, from 0."""
    num_segments: npt.NDArray[np.int32] | None = None
    """After how many segments it was answered."""
    log_probs: npt.NDArray[np.float32] | None = None
    """Log of the probability that the model gives to its answer: the sum over the answer's cells."""

    def arrays(self) -> dict[str, Any]:
        """Return what is known of each row, by field."""
        fields = self._asdict()
        return {name: fields[name] for name in (*_REQUIRED, *_OPTIONAL) if fields[name] is not None}

    def parts(self, num_rows: int = MAX_ROWS_PER_FILE) -> Iterator["Predictions"]:
        """Yield the rows in order, at most so many at a time."""
        arrays = self.arrays()
        for start in range(0, len(self.puzzle_identifiers), num_rows):
            source = f"{self.source}, from row {start} on" if start else self.source
            part = {name: array[start : start + num_rows] for name, array in arrays.items()}
            yield self._replace(**part, source=source)


def write_predictions(path: str | Path, predictions: Predictions) -> None:
    """Write one file, under a temporary name until it is complete on the disk."""
    num_rows = len(predictions.puzzle_identifiers)
    if num_rows > MAX_ROWS_PER_FILE:
        raise ValueError(f"{path}: {num_rows} rows; a prediction file holds at most {MAX_ROWS_PER_FILE}")
    arrays = predictions.arrays()
    _check_arrays(arrays, str(path))
    if predictions.checkpoint_id is not None:
        arrays["checkpoint_id"] = np.array(predictions.checkpoint_id)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    replace_file(path, buffer.getvalue())


def prediction_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files that `paths` (files and folders) name, each once. Raises InputError if there are none."""
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(path.glob("*.npz"))
            if not found:
                raise InputError(
                    f"{path}: no *.npz in this folder; give the folder that tools.evaluate wrote."
                )
        elif path.is_file():
            found = [path]
        else:
            raise InputError(
                f"{path}: no such file or folder; give prediction files (*.npz) or their folder."
            )
        files.update({file.resolve(): file for file in found})
    return list(files.values())


def read_predictions(
    paths: Sequence[str | Path], *, allow_mixed_checkpoints: bool = False
) -> Iterator[Predictions]:
    """Read the files one by one. Raises InputError, naming file and field, for whatever cannot be used."""
    first: Predictions | None = None
    for file in prediction_files(paths):
        predictions = read_prediction_file(file)
        first = first or predictions
        if predictions.checkpoint_id != first.checkpoint_id and not allow_mixed_checkpoints:
            raise InputError(
                f"{file}: checkpoint_id is {_name(predictions)}, but {first.source} has {_name(first)}; "
                "a vote over several checkpoints is another method: give the files of one "
                "(tools.vote --mix-checkpoints pools several)."
            )
        yield predictions


def read_prediction_file(path: Path) -> Predictions:
    """Read and check one file."""
    try:
        if not path.stat().st_size:
            raise InputError(f"{path}: is empty (0 bytes); remove it, and evaluate again.")
        # Opened here, since np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in _REQUIRED if name not in archive.files]
            if missing:
                raise InputError(
                    f"{path}: has no {', '.join(missing)}; a prediction file holds {', '.join(_REQUIRED)}."
                )
            names = [name for name in (*_REQUIRED, *_OPTIONAL, "checkpoint_id") if name in archive.files]
            arrays = {name: archive[name] for name in names}
    except NPZ_DAMAGE as error:
        # Of what is no archive, or holds objects, numpy says how to load it unsafely.
        is_other = isinstance(error, AttributeError | TypeError) or "allow_pickle" in str(error)
        reason = "it is no archive of arrays of numbers" if is_other else error
        raise InputError(
            f"{path}: not a readable .npz file ({reason}); remove it and evaluate again."
        ) from error
    checkpoint_id = arrays.pop("checkpoint_id", None)
    if checkpoint_id is not None and (checkpoint_id.ndim or checkpoint_id.dtype.kind != "U"):
        raise InputError(
            f"{path}: checkpoint_id is {_describe(checkpoint_id)}; it must be one unicode string."
        )
    _check_arrays(arrays, str(path))
    num_rows = len(arrays["puzzle_identifiers"])
    if not num_rows:
        raise InputError(f"{path}: holds no predictions (0 rows); remove it, or evaluate again.")
    _check_values(arrays, str(path))
    arrays.setdefault("example_index", np.full(num_rows, UNKNOWN_EXAMPLE, dtype=np.int32))
    return Predictions(
        **arrays, checkpoint_id=None if checkpoint_id is None else str(checkpoint_id), source=str(path)
    )


def refuse_lost(predictions: Predictions) -> None:
    """Raise InputError if the model's numbers overflowed, so that its answers mean nothing."""
    is_lost = {"q_halt_logits": ~np.isfinite(predictions.q_halt_logits)}
    if predictions.log_probs is not None:
        is_lost["log_probs"] = np.isnan(predictions.log_probs)
    for name, rows in is_lost.items():
        if rows.any():
            raise InputError(
                f"{_first(predictions.source, name, getattr(predictions, name), rows)}; the model's numbers "
                "overflowed: give predictions of a sound checkpoint (tools.vote --leave-out-lost votes without those "
                "that are NaN)."
            )


def _check_values(arrays: dict[str, npt.NDArray], source: str) -> None:
    """Raise InputError for a value that no evaluation writes."""
    wrong = {
        "example_index": ("be at least 0, or -1 for unknown", lambda values: values < UNKNOWN_EXAMPLE),
        "rows": ("be at least 0", lambda values: values < 0),
        "num_segments": ("be at least 1", lambda values: values < 1),
        "log_probs": ("be at most 0, the logarithm of a probability", lambda values: values > 0),
    }
    for name, (must, is_wrong) in wrong.items():
        if name in arrays and (rows := is_wrong(arrays[name])).any():
            raise InputError(
                f"{_first(source, name, arrays[name], rows)}; it must {must}: evaluate again, into another folder."
            )


def _first(source: str, name: str, values: npt.NDArray, rows: npt.NDArray[np.bool_]) -> str:
    """Return where a value is wrong, and how often."""
    row, others = int(rows.argmax()), int(rows.sum()) - 1
    return f"{source}: {name} is {values[row]} in row {row}" + (
        f" and wrong in {others:,} more" if others else ""
    )


def _check_arrays(arrays: dict[str, npt.NDArray], source: str) -> None:
    num_rows = len(np.atleast_1d(arrays["puzzle_identifiers"]))
    for name, array in arrays.items():
        dtype, num_axes = (_REQUIRED | _OPTIONAL)[name]
        if array.dtype != dtype or array.ndim != num_axes or len(array) != num_rows:
            shape = f"[{num_rows}]" if num_axes == 1 else f"[{num_rows}, S]"
            raise InputError(
                f"{source}: {name} is {_describe(array)}; it must be {np.dtype(dtype)} {shape}, "
                "one row for each entry of puzzle_identifiers."
            )
    inputs, preds = arrays["inputs"], arrays["preds"]
    if inputs.shape != preds.shape:
        raise InputError(
            f"{source}: inputs is {_describe(inputs)} but preds {_describe(preds)}; they must agree."
        )
    num_cells = inputs.shape[1]
    if num_cells == 0 or math.isqrt(num_cells) ** 2 != num_cells:
        raise InputError(
            f"{source}: inputs has {num_cells} cells a row, which is no square canvas; "
            "only ARC predictions are voted on."
        )


def _describe(array: npt.NDArray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _name(predictions: Predictions) -> str:
    return "missing" if predictions.checkpoint_id is None else repr(predictions.checkpoint_id)
