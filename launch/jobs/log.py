"""The record of a folder's jobs: `jobs/jobs.jsonl`, one object per line, appended by submissions and jobs.

    submitted   when queued: the command, what was asked of the cluster, git revision, packages
    started     by rank 0 of a job: its hosts, and how many starts came before
    failed      by another rank of a job: its exit code and last error
    ended       by rank 0 of a job: its exit code and last error, and whether it goes back to the queue

A job that was killed has no `ended`. The folder is that of what the job makes: of a run, of a dataset, of predictions.
"""

import fcntl
import os
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from data_pipeline.base.errors import InputError
from data_pipeline.shards.build_dir import JOBS

Kind = Literal["train", "evaluate", "build"]


def now() -> datetime:
    """Return the time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


class _Event(BaseModel):
    """Hold what all events have; keys of a later version are ignored."""

    time: datetime = Field(default_factory=now)
    job_id: str
    """Slurm's, `ID_INDEX` for an element of an array; of a local job the process."""


class Submitted(_Event):
    """A job was handed to the cluster."""

    event: Literal["submitted"] = "submitted"
    cluster: Literal["slurm", "local"]
    host: str
    kind: Kind
    command: list[str]
    """Module and arguments that the job runs, as after `python -m`."""
    resources: dict[str, Any]
    resubmit: list[str] = Field(default_factory=list)
    """Arguments of launch.submit that continue the work."""
    git_revision: str | None = None
    """Of the working tree that was submitted; ends in `-dirty` where it has uncommitted changes."""
    packages: dict[str, str] = Field(default_factory=dict)


class Started(_Event):
    """Rank 0 of a job began."""

    event: Literal["started"] = "started"
    hosts: list[str]
    git_revision: str | None = None
    saved: str | None = None
    """The checkpoint that a training resumes from."""
    restarts: int
    """How often the job was started before."""
    log_start: int = 0
    """Size of the file with rank 0's stderr, in bytes: what earlier starts have written."""


class Failed(_Event):
    """A rank other than 0 is about to leave with an error."""

    event: Literal["failed"] = "failed"
    rank: int
    host: str
    exit_code: int
    error: str | None = None


class Ended(_Event):
    """Rank 0 of a job is about to leave."""

    event: Literal["ended"] = "ended"
    exit_code: int
    requeued: bool = False
    error: str | None = None


Event = Submitted | Started | Failed | Ended
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def git_revision() -> str | None:
    """Return the commit of this code's working tree, with `-dirty` after changes; None outside of git."""
    describe = ["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        command = ["git", "-C", str(Path(__file__).parent), *describe]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def jobs_folder(folder: Path) -> Path:
    """Return where scripts, logs and the record of a folder's jobs are."""
    return folder / JOBS


def stderr_of(folder: Path, job_id: str) -> Path:
    """Return the file with stderr of a job's rank 0, and Slurm's own words; it grows over all starts."""
    return jobs_folder(folder) / f"{job_id}_0_log.err"


def append(folder: Path, event: Event) -> None:
    """Add an event; lines of several writers do not mix."""
    path = jobs_folder(folder) / "jobs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.lockf(descriptor, fcntl.LOCK_EX)  # NFS does not append in one piece
        os.write(descriptor, event.model_dump_json().encode() + b"\n")
    finally:
        os.close(descriptor)


def read(folder: Path) -> list[Event]:
    """Return the events in the order in which they were written, without lines that a crash cut short.

    Raise InputError if the record cannot be read.
    """
    path = jobs_folder(folder) / "jobs.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct its permissions.") from error
    events: list[Event] = []
    for line in lines:
        with suppress(ValidationError):
            events.append(_EVENT.validate_json(line))
    return events
