"""What the pool knows of a run: its folder, how far it is, its scores, and what it took."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_pipeline.base import jsonl, locks
from data_pipeline.base.errors import InputError, unwritable
from data_pipeline.base.files import make_folder
from data_pipeline.schema import load_dataset_info
from hrm_dist import run_lock
from hrm_dist.run_record import RunRecord, read_record
from hrm_dist.schedule import Schedule
from tools.sweep.spec import Run, digest, folder_name, is_built

Scores = dict[str, float]
State = Literal["done", "running", "stopped", "not started"]

HEADLINES = ("eval/task/pass@2", "eval/exact_accuracy")
"""The first that a row has is the score by which checkpoints are compared (hrm_dist.evaluation.scores.headline)."""
_LOCK_WAIT_S = 60.0


class Found(NamedTuple):
    """What is there of a run."""

    run: Run
    folder: Path | None
    last_step: int | None
    """None while its dataset is not built."""
    step: int
    """Of the last row."""
    scores: dict[int, Scores]
    """By the step of an evaluation."""
    record: RunRecord | None

    @property
    def is_done(self) -> bool:
        return self.last_step in self.scores

    @property
    def state(self) -> State:
        if self.is_done:
            return "done"
        if self.folder is not None and run_lock.holder(self.folder):
            return "running"
        return "stopped" if self.step else "not started"


def find(pool: Path, run: Run) -> Found:
    """Return what the pool has of a run, whichever sweep has trained it. Raise InputError where it cannot be read."""
    if not is_built(run.config):
        return Found(run, None, None, 0, {}, None)
    metadata = load_dataset_info(Path(run.config.data_path)).metadata("train")
    last_step = Schedule(run.config, metadata).last_step
    folder = next(iter(sorted(pool.glob(f"*-{digest(run.config)}"))), None)
    if folder is None:
        return Found(run, None, last_step, 0, {}, None)
    step, scores = 0, dict[int, Scores]()
    for row in _rows(folder):
        step = row["step"]
        values = {
            name: value for name, value in row.items() if name.startswith("eval/") and value is not None
        }
        if values:
            scores[step] = values
    record = None
    with suppress(InputError):
        record = read_record(folder)
    return Found(run, folder, last_step, step, scores, record)


def step_of(folder: Path) -> int:
    """Return the step of the last row that a run has written, 0 if there is none."""
    with suppress(OSError, ValueError, LookupError, TypeError):  # it is looked at again
        return int(json.loads(jsonl.lines(folder / "metrics.jsonl")[-1])["step"])
    return 0


def make_run_folder(pool: Path, run: Run) -> Path:
    """Return the folder of a run, made if there is none. Two sweeps that want it at once get the same."""
    try:
        make_folder(pool)
        with locks.hold(pool / ".lock", _LOCK_WAIT_S):
            found = find(pool, run).folder
            if found is None:
                found = pool / folder_name(run)
                found.mkdir()
            return found
    except locks.LockedError as error:
        raise InputError(f"{pool}: another sweep holds it ({error}); run the command again.") from error
    except OSError as error:
        raise unwritable(pool, error) from error


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    try:
        rows = jsonl.read(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); look at its rights.") from error
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]
