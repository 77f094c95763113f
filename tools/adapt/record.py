"""adapt.json in the run folder: what was asked for, what was measured and planned, and how much time is used. No torch.

A command that is started again goes on with what it says, with the budget that is left.
"""

import time
from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from data_pipeline.base.models import Strict, read_json
from tools.adapt.plan import Plan, PredictionRate, TrainingRate

FILE = "adapt.json"
_SAVE_EVERY_S = 5.0
_MOST_SHOWN = 4
"""Differences in a message; the others of another checkpoint, say, tell nothing more."""

Stage = Literal["build", "measure", "train", "predict", "done"]


class Asked(Strict):
    """What decides the result; it stays as it is when a command is started again."""

    checkpoint_sha256: str | None
    """None: from scratch."""
    tasks_sha256: str
    num_aug: int
    table_share: float
    settings: dict[str, str | int | float | bool | None]
    """Of the training, but for those that the plan sets."""


class Record(Strict):
    """The content of adapt.json."""

    asked: Asked
    budget_s: float
    seconds_used: float = Field(default=0.0, ge=0)
    """Of the budget, over all starts; the time between them does not count."""
    stage: Stage = "build"
    prediction: PredictionRate | None = None
    training: TrainingRate | None = None
    plan: Plan | None = None
    submission: str = "the test inputs themselves"
    """What submission.json holds."""


class Clock:
    """The record of a run that is under way, and the time that it has used."""

    def __init__(self, run: Path, record: Record) -> None:
        self.run, self.record = run, record
        # Since this process was started: to import and to check took time, too.
        started_s = time.time() - psutil.Process().create_time()
        self._before, self._began = record.seconds_used, time.monotonic() - max(0.0, started_s)
        self._saved_at = -_SAVE_EVERY_S

    def used_s(self) -> float:
        """Return the seconds of the budget that are used."""
        return self._before + time.monotonic() - self._began

    def left_s(self) -> float:
        return self.record.budget_s - self.used_s()

    def note(self, **changes: object) -> None:
        """Change fields of the record, and write it."""
        self.record = self.record.model_copy(update={**changes, "seconds_used": self.used_s()})
        self._saved_at = time.monotonic()
        replace_file(self.run / FILE, self.record.model_dump_json(indent=1).encode())

    def tick(self) -> None:
        """Write the time that is used, now and then."""
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.note()


def read_record(run: Path) -> Record | None:
    """Return the record of a run folder; None where there is none. Raises InputError."""
    return read_json(run / FILE, Record, "choose another --out")


def refuse_other(run: Path, known: Asked, asked: Asked) -> None:
    """Raise InputError if a run was begun with something else."""
    then, now = (_flat(one) for one in (known, asked))
    differing = [
        f"{name} {then.get(name)!r}, now {now.get(name)!r}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
    if differing:
        shown, num_more = differing[:_MOST_SHOWN], len(differing) - _MOST_SHOWN
        if num_more > 0:
            shown.append(f"and {num_more} more")
        raise InputError(
            f"--out {run}: was begun otherwise ({'; '.join(shown)}); give the same, or choose another --out."
        )


def _flat(asked: Asked) -> dict[str, object]:
    fields = asked.model_dump()
    settings = fields.pop("settings")
    return {**fields, **settings}
