"""The record of a folder's jobs: `jobs/jobs.jsonl`, an event per line, appended by submissions and jobs.

The folder is that of what the jobs make: of a run, of a dataset, of predictions. A job that was killed has no end.
"""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from data_pipeline.base import jsonl
from data_pipeline.base.errors import InputError
from data_pipeline.base.files import make_folder
from data_pipeline.shards.build_dir import JOBS

Kind = Literal["train", "evaluate", "build", "sweep"]


def now() -> datetime:
    """Return the time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


class _Event(BaseModel):
    """What all events have; keys of a later version are ignored."""

    time: datetime = Field(default_factory=now)
    job_id: str  # Slurm's, `ID_INDEX` for an element of an array; of a local job the process


class Submitted(_Event):
    """A job was handed to the cluster."""

    event: Literal["submitted"] = "submitted"
    cluster: Literal["slurm", "local"]
    host: str
    kind: Kind
    command: list[str]  # module and arguments that the job runs, as after `python -m`
    resources: dict[str, Any]
    resubmit: list[str] = Field(default_factory=list)  # arguments of launch.submit that continue the work
    git_revision: str | None = None
    """Of the working tree that was submitted; ends in `-dirty` where it has uncommitted changes."""
    packages: dict[str, str] = Field(default_factory=dict)


class Started(_Event):
    """Rank 0 of a job began, for the first time or again."""

    event: Literal["started"] = "started"
    hosts: list[str]
    git_revision: str | None = None
    saved: str | None = None  # the checkpoint that a training resumes from
    restarts: int = 0  # how often the job was started before
    log_start: int = 0  # size of the file with rank 0's stderr, in bytes: what earlier starts have written


class Failed(_Event):
    """A rank other than 0 is about to leave with an error."""

    event: Literal["failed"] = "failed"
    rank: int
    host: str
    exit_code: int
    error: str | None = None


class Ended(_Event):
    """Rank 0 of a job is about to leave, perhaps to go back to the queue."""

    event: Literal["ended"] = "ended"
    exit_code: int
    requeued: bool = False
    error: str | None = None


Event = Submitted | Started | Failed | Ended
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def jobs_folder(folder: Path) -> Path:
    """Return where scripts, logs and the record of a folder's jobs are."""
    return folder / JOBS


def stderr_of(folder: Path, job_id: str) -> Path:
    """Return the file with stderr of a job's rank 0, and Slurm's own words; it grows over all starts."""
    return jobs_folder(folder) / f"{job_id}_0_log.err"


def append(folder: Path, event: Event) -> None:
    """Add an event; lines of several writers do not mix. Raise OSError."""
    make_folder(jobs_folder(folder))
    jsonl.append(jobs_folder(folder) / "jobs.jsonl", event.model_dump_json())


def read(folder: Path) -> list[Event]:
    """Return the events in the order in which they were written, without damaged lines. Raise InputError."""
    path = jobs_folder(folder) / "jobs.jsonl"
    events: list[Event] = []
    try:
        for line in jsonl.lines(path):
            with suppress(ValidationError):
                events.append(_EVENT.validate_json(line))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct its permissions.") from error
    return events
