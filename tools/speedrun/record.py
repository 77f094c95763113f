"""speedrun.json in the run folder: what was asked for, the clock, the curve, the final scores. No torch.

A command that is started again goes on with what it says, on the same clock.
"""

import hashlib
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from data_pipeline.base.models import Strict, read_json
from hrm_dist.run_record import Dataset

FILE = "speedrun.json"
_SAVE_EVERY_S = 5.0

Stage = Literal["build", "train", "evaluate"]
DataName = Literal["configuration", "csv", "generated"]
"""Where the puzzles come from: what the configuration says, CSV files of the user, or new ones."""
End = Literal["target", "budget", "last step", "stopped"]


class Asked(Strict):
    """What decides the training; it stays as it is when a command is started again. Target and budget may change."""

    config: str
    data: DataName
    settings: dict[str, str | int | float | bool | None]
    """Those of the training that change its result or what the clock watches, by dotted key."""

    def settings_sha256(self) -> str:
        return hashlib.sha256(json.dumps(sorted(self.settings.items())).encode()).hexdigest()


class Point(Strict):
    """An evaluation during the training."""

    step: int
    seconds: float
    """On the clock, when its scores were there."""
    exact_accuracy: float
    examples: int

    @property
    def num_right(self) -> int:
        return round(self.exact_accuracy * self.examples)


class Start(Strict):
    """A process that trained."""

    began: str
    """UTC, ISO 8601."""
    from_step: int
    seconds: float = 0.0
    """On the clock, from its start to its end, or to when it was last seen."""
    until_first_row_s: float | None = None
    """Of these, until its first row of metrics: imports, loading, compilation, and the first `log_interval` steps."""
    end: End | None = None
    """None: it was killed, has failed, or still trains."""


class Final(Strict):
    """An evaluation of the weights that the run ends with."""

    name: str
    title: str
    step: int
    command: str
    exact_accuracy: float
    low: float
    high: float
    examples: int
    said: tuple[str, ...]
    """What tools.evaluate printed of segments and speed."""


class Machine(Strict):
    """What a command computed on, and with which versions."""

    name: str
    """Of the GPU, or where there is none of the CPU."""
    driver: str | None
    """Of the GPU."""
    git_revision: str | None
    """Of the code; ends in `-dirty` where the working tree had changes, None outside of git."""
    versions: dict[str, str]


class Result(Strict):
    """What a complete race has come to; all of it follows from the rest of the record."""

    reached: bool
    seconds_to_target: float | None
    steps_to_target: int | None
    settings_sha256: str
    """Of the settings of `asked`."""


class Record(Strict):
    """The content of speedrun.json."""

    asked: Asked
    command: str
    """As it was typed last."""
    target: float = Field(gt=0, le=100)
    """Per cent of the watched puzzles, exact, from one start."""
    budget_s: float | None = None
    seconds: dict[Stage, float] = Field(default_factory=dict)
    """By stage, over all starts. That of `train` is the clock: processes from start to end, evaluations included."""
    starts: tuple[Start, ...] = ()
    curve: tuple[Point, ...] = ()
    train_command: str = ""
    dataset: Dataset | None = None
    machines: tuple[Machine, ...] = ()
    """Several, if it was started on several, or with several versions of the code."""
    hardware: tuple[str, ...] = ()
    """Of the trainings, with the number of threads; likewise."""
    num_parameters: int | None = None
    steps: int = 0
    """Made so far."""
    batch_size: int = 0
    cells: int = 0
    """Of a puzzle, each of which is a token."""
    examples_per_s: float | None = None
    """Median over the rows of metrics."""
    steps_s: float | None = None
    """Seconds of training steps alone, as run.json has them: without evaluations, checkpoints and what was redone."""
    finals: tuple[Final, ...] = ()
    result: Result | None = None
    """None while it runs."""

    @property
    def clock_s(self) -> float:
        return self.seconds.get("train", 0.0)

    @property
    def reached(self) -> Point | None:
        """Return the first evaluation at or above the target."""
        return next((point for point in self.curve if is_at(point, self.target)), None)

    def to_result(self) -> Result:
        """Return what it has come to by now."""
        point = self.reached
        return Result(
            reached=point is not None,
            seconds_to_target=None if point is None else point.seconds,
            steps_to_target=None if point is None else point.step,
            settings_sha256=self.asked.settings_sha256(),
        )


def is_at(point: Point, target: float) -> bool:
    """Return whether an evaluation is at a target, in per cent, or above."""
    return 100 * point.num_right >= target * point.examples - 1e-9 * point.examples


class Stopwatch:
    """The record of a run under way, and what its stages take."""

    def __init__(self, run: Path, record: Record) -> None:
        self.run, self.record = run, record
        self._stage: Stage | None = None
        self._since = self._saved_at = time.monotonic()

    @contextmanager
    def counting(self, stage: Stage) -> Generator[None]:
        """Count the time of the block."""
        self._stage, self._since = stage, time.monotonic()
        try:
            yield
        finally:
            self._count()
            self._stage = None
            self.note()

    def seconds(self, stage: Stage) -> float:
        """Return the seconds of a stage so far, over all starts."""
        running_s = time.monotonic() - self._since if stage == self._stage else 0.0
        return self.record.seconds.get(stage, 0.0) + running_s

    def note(self, **changes: Any) -> None:
        """Change fields of the record, and write it."""
        self._count()
        self.record = self.record.model_copy(update=changes)
        self._saved_at = time.monotonic()
        replace_file(self.run / FILE, f"{self.record.model_dump_json(indent=1)}\n".encode())

    def tick(self) -> None:
        """Write the time now and then, so that little of it is lost where this process is killed."""
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.note()

    def _count(self) -> None:
        if self._stage is not None:
            counted = {**self.record.seconds, self._stage: self.seconds(self._stage)}
            self.record = self.record.model_copy(update={"seconds": counted})
            self._since = time.monotonic()


def read_record(run: Path) -> Record | None:
    """Return the record of a run folder; None where there is none. Raises InputError."""
    return read_json(run / FILE, Record, "choose another checkpoint_path")


def refuse_other(run: Path, known: Asked, asked: Asked) -> None:
    """Raise InputError if a run was begun with something else."""
    then, now = ({"data": one.data, **one.settings} for one in (known, asked))
    differing = [
        f"{name} {then.get(name)}, now {now.get(name)}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
    if differing:
        raise InputError(
            f"{run}: was begun otherwise ({'; '.join(differing)}); give the same, or a new run folder by "
            "checkpoint_path=DIR."
        )
