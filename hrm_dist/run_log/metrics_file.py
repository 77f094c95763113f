"""metrics.jsonl, which holds all that a run's other sinks have of numbers, and outlives a crash."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.base import jsonl
from data_pipeline.base.errors import RESUMES, unreadable, unwritable
from data_pipeline.base.files import replace_file
from hrm_dist.metrics import Row
from hrm_dist.run_log.entry import Entry

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"


class JsonLines:
    """`metrics.jsonl`: one object per line; of a step at most a row of training and one of scores."""

    def __init__(self, path: Path, step: int, redone: tuple[str, ...]) -> None:
        """Drop rows beyond a step, its own if they have keys that begin with one of `redone`, and what cannot be
        read, such as a line that a crash cut short."""

        def is_kept(row: Any) -> bool:
            try:
                is_redone = row["step"] == step and any(key.startswith(redone) for key in row)
                return row["step"] <= step and not is_redone
            except (ValueError, KeyError, TypeError):
                return False

        try:
            replace_file(path, jsonl.select(path, is_kept))
        except OSError as error:
            raise unreadable(path, error) from None
        self._path = path
        self._waiting: list[str] = []

    def write(self, entry: Entry) -> None:
        """Add its row. Where the disk takes none, it waits in memory, and goes with the next."""
        was_waiting = bool(self._waiting)
        row: Row = {"step": entry.step, **entry.values}
        # JSON knows no NaN.
        self._waiting.append(
            json.dumps({key: None if value != value else value for key, value in row.items()})
        )
        try:
            self._append()
        except OSError as error:
            if not was_waiting:
                logger.warning(
                    "%s: cannot be written (%s); training goes on, and its rows wait until the next checkpoint. "
                    "Make room by then: it ends the run if it cannot be written either",
                    self._path, error.strerror or error,
                )  # fmt: skip

    def flush(self) -> None:
        """Write the rows that wait, if any. Raises WriteError."""
        try:
            self._append()
        except OSError as error:
            raise unwritable(self._path, error, RESUMES) from None

    def _append(self) -> None:
        if self._waiting:
            # On disk at once: a checkpoint that outlives a power cut has all the rows before it.
            jsonl.append(self._path, *self._waiting)
            self._waiting.clear()

    def close(self) -> None:
        """Write what can be written of the rows that wait."""
        with suppress(OSError):
            self._append()


class LastSteps(NamedTuple):
    """The last steps of which a file has rows; -1 where it has none."""

    of_training: int = -1
    of_scores: int = -1


def last_steps(path: Path) -> LastSteps:
    """Return how far the rows go that earlier processes have left, before they are cut back to a checkpoint."""
    steps = dict.fromkeys(("train/", "eval/"), -1)
    with suppress(OSError):
        for row in _rows(path):
            for prefix in steps:
                if any(key.startswith(prefix) for key in row):
                    steps[prefix] = max(steps[prefix], row["step"])
    return LastSteps(*steps.values())


def rows_of_step(path: Path, step: int) -> list[Row]:
    """Return the rows of a step, without `step` itself."""
    with suppress(OSError):
        return [
            {key: value for key, value in row.items() if key != "step"}
            for row in _rows(path)
            if row["step"] == step
        ]
    return []


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that can be read."""
    rows: list[dict[str, Any]] = []
    for line in jsonl.lines(path):
        with suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            int(row["step"])
            rows.append(row)
    return rows
