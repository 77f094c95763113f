"""In which state a job is: a function of its record, of Slurm's queue and of the processes of this machine."""

import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from data_pipeline.base.errors import EXIT_INTERRUPTED
from launch.jobs import slurm
from launch.jobs.log import Ended, Event, Failed, Started, Submitted
from launch.jobs.slurm import QueuedJob

# In order of precedence: of several parts, the first that occurs is the state of the whole.
Name = Literal[
    "running", "going back to the queue", "queued", "failed", "vanished", "interrupted", "finished", "not started"
]  # fmt: skip


class State(NamedTuple):
    """A state, and what more there is to say of it."""

    name: Name
    detail: str = ""
    job_id: str | None = None  # the job that decided it
    exit_code: int | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name

    @property
    def is_live(self) -> bool:
        """Return whether it continues by itself."""
        return self.name in ("running", "going back to the queue", "queued")


class Queue(NamedTuple):
    """What is known of live jobs: Slurm's answer, and the processes of this machine."""

    jobs: Mapping[str, QueuedJob]  # those that Slurm still knows, and those of this machine that run
    slurm_answered: bool
    host: str  # this machine, whose processes are known
    problem: str = ""  # Slurm's words where it does not answer

    def is_live(self, job_id: str) -> bool:
        """Return whether a job waits or runs."""
        return job_id in self.jobs and self.jobs[job_id].is_live


def ask_queue(events: Sequence[Event]) -> Queue:
    """Ask for all jobs that have these events: Slurm once, and only if some may be its own."""
    host = socket.gethostname()
    local = {e.job_id: e for e in events if isinstance(e, Submitted) and e.cluster == "local"}
    jobs: dict[str, QueuedJob] = {}
    for job_id, submitted in local.items():
        with suppress(OSError):
            command = Path(f"/proc/{job_id}/cmdline").read_bytes()
            if submitted.host == host and b"submitit.local" in command:
                jobs[job_id] = QueuedJob(job_id, "RUNNING", "", host)
    of_slurm = {event.job_id for event in events} - set(local)
    if not of_slurm or shutil.which("sbatch") is None:
        return Queue(jobs, False, host)
    try:
        return Queue(jobs | slurm.queued_jobs(of_slurm), True, host)
    except slurm.SlurmError as error:
        return Queue(jobs, False, host, str(error))


def job_state(events: Sequence[Event], queue: Queue) -> State:
    """Return the state of what one job after another works on, from their events alone."""
    last_of = {event.job_id: event for event in events}
    live = [(queue.jobs[job_id], last) for job_id, last in last_of.items() if queue.is_live(job_id)]
    for job, last in sorted(live, key=lambda one: not one[0].runs):
        if not job.runs:  # after its end, it was put back by whomever
            reason = job.reason if job.state == "PENDING" else job.state
            return State("queued", reason if reason != "None" else "", job.job_id)
        if isinstance(last, Ended) and last.requeued:
            return State("going back to the queue", job_id=job.job_id)
        if isinstance(last, Ended):  # for a moment after its end Slurm still calls a job running
            continue
        detail = "starting" if isinstance(last, Submitted) else ""
        return State("running", detail if job.state == "RUNNING" else job.state, job.job_id)
    if not events:
        return State("not started")
    last = events[-1]
    local = {e.job_id: e.host for e in events if isinstance(e, Submitted) and e.cluster == "local"}
    is_gone = local[last.job_id] == queue.host if last.job_id in local else queue.slurm_answered
    return _state_of_gone(last, queue.jobs.get(last.job_id), is_gone)


def _state_of_gone(last: Event, job: QueuedJob | None, is_gone: bool) -> State:
    """Return the state after an event of a job that does not live, if `is_gone`; else as far as the record tells."""
    if isinstance(last, Ended):
        if last.requeued and not is_gone:
            return State("going back to the queue", "no word from Slurm here", last.job_id)
        if last.requeued or last.exit_code == EXIT_INTERRUPTED:
            return State("interrupted", "its job has left the queue" if last.requeued else "", last.job_id)
        if last.exit_code == 0:
            return State("finished", job_id=last.job_id)
        return State("failed", f"exit code {last.exit_code}", last.job_id, last.exit_code)
    if is_gone and isinstance(last, Failed):
        return State("failed", f"rank {last.rank} on {last.host}, exit code {last.exit_code}", last.job_id)
    word, name = ("killed", "running") if isinstance(last, Started) else ("never started", "queued")
    if is_gone:
        return State("vanished", f"{job.state}, {word}" if job else word, last.job_id)
    return State(name, "by the record; no word from Slurm here", last.job_id)
