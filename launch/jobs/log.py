"""What happened to the jobs of a folder: `jobs/jobs.jsonl`, one object per line, appended by submissions and jobs.

    submitted   when queued: the command, what was asked of the cluster, git revision, packages
    started     by rank 0 of a job: its hosts, and the how-manieth start it is
    failed      by another rank of a job: its exit code
    ended       by rank 0 of a job: its exit code, and whether it goes back to the queue

A job that was killed has no `ended`. The folder is that of what the job makes: of a run, of a dataset, of predictions.
"""

import fcntl
import json
import os
import socket
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.base.errors import InputError
from data_pipeline.shards.build_dir import JOBS

Kind = Literal["train", "evaluate", "build"]


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore")  # of a later version
    time: datetime
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
    git_revision: str | None = None
    """Of the working tree that was submitted; ends in `-dirty` where it has uncommitted changes."""
    packages: dict[str, str] = Field(default_factory=dict)


class Started(_Event):
    """Rank 0 of a job began."""

    event: Literal["started"] = "started"
    hosts: list[str]
    git_revision: str | None = None
    saved: str | None = None
    """The checkpoint from which a training goes on."""
    restarts: int
    """How often the job was started before."""


class Failed(_Event):
    """A rank other than 0 is about to leave with an error."""

    event: Literal["failed"] = "failed"
    rank: int
    host: str
    exit_code: int


class Ended(_Event):
    """Rank 0 of a job is about to leave."""

    event: Literal["ended"] = "ended"
    exit_code: int
    requeued: bool = False


Event = Submitted | Started | Failed | Ended


def git_revision() -> str | None:
    """Commit of the working tree that this code is in, with `-dirty` after changes; None outside of git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def jobs_folder(folder: Path) -> Path:
    """Where scripts, logs and the record of a folder's jobs are."""
    return folder / JOBS


def now() -> datetime:
    """The time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def is_live_here(job: Submitted) -> bool:
    """Whether a local job's process, started on this machine, is still there."""
    if job.cluster != "local" or job.host != socket.gethostname():
        return False
    try:
        return b"submitit.local" in Path(f"/proc/{job.job_id}/cmdline").read_bytes()
    except OSError:
        return False


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
    """The events in the order in which they were written; lines that a crash cut short are left out.

    Raises InputError if the record cannot be read.
    """
    path = jobs_folder(folder) / "jobs.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct its permissions.") from error
    events: list[Event] = []
    for line in lines:
        try:
            values = json.loads(line)
            model = {"submitted": Submitted, "started": Started, "failed": Failed, "ended": Ended}[
                values["event"]
            ]
            events.append(model.model_validate(values))
        except (ValueError, KeyError, TypeError, ValidationError):
            continue
    return events
