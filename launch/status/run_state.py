"""In which state a run or a part is: a function of the record of its jobs, the queue, its lock and its progress."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from data_pipeline.base.errors import EXIT_INTERRUPTED
from launch.jobs.log import Ended, Event, Failed, Started, Submitted
from launch.jobs.slurm import QueuedJob

Name = Literal[
    "running", "going back to the queue", "queued", "failed", "vanished", "interrupted", "finished", "not started"
]  # fmt: skip
# Of several parts, the first that occurs is the state of the whole.
_PRECEDENCE: tuple[Name, ...] = (
    "running", "going back to the queue", "queued", "failed", "vanished", "interrupted", "finished", "not started",
)  # fmt: skip
_LIVE = frozenset(_PRECEDENCE[:3])

_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_CLOCKS = timedelta(seconds=10)
"""How far the clocks of a node and of its storage may be apart."""
_TIME_TO_LOCK = timedelta(minutes=3)
"""How long a job may take from its start to the lock of the run folder."""


class State(NamedTuple):
    """A state, and what more there is to say of it."""

    name: Name
    detail: str = ""
    job_id: str | None = None
    """The job that decided it."""
    exit_code: int | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name

    @property
    def is_live(self) -> bool:
        """Whether it goes on by itself."""
        return self.name in _LIVE


class Queue(NamedTuple):
    """What is known of live jobs: Slurm's answer, and the processes of this machine."""

    jobs: Mapping[str, QueuedJob]
    """Those of Slurm that it still knows, and those of this machine that run."""
    slurm_answered: bool
    host: str
    """This machine, whose processes are known."""

    def tells(self, submitted: Submitted | None) -> bool:
        """Whether a job that is not among `jobs` is known to be gone."""
        if submitted is not None and submitted.cluster == "local":
            return submitted.host == self.host
        return self.slurm_answered


class Progress(NamedTuple):
    """What the files of a run folder say."""

    step: int | None = None
    """Of the last row of metrics."""
    saved_step: int | None = None
    """Of the latest checkpoint."""
    last_step: int | None = None
    """Where the run ends; None where that is not known."""
    time: datetime | None = None
    """When the later of both was written."""
    lock_file: str | None = None
    """What stands in the lock file: a run that ends, in whatever way but killed, removes it."""
    holder: str | None = None
    """The living process that has the lock."""

    @property
    def is_complete(self) -> bool:
        """Whether the last step is saved; False where it is not known."""
        return (
            self.saved_step is not None and self.last_step is not None and self.saved_step >= self.last_step
        )


def run_state(events: Sequence[Event], queue: Queue, progress: Progress, now: datetime) -> State:
    """The state of a training run, whose jobs have these events."""
    state = job_state(events, queue)
    if progress.holder is not None:
        if state.name in ("running", "going back to the queue") and state.job_id in queue.jobs:
            return state
        return State("running", progress.holder, state.job_id if state.name == "running" else None)
    last = events[-1] if events else None
    if last is None:
        return State("finished") if progress.is_complete else _state_without_jobs(progress)
    if state.is_live:
        is_told = state.job_id in queue.jobs or not isinstance(last, Started)
        if is_told or now - last.time < _TIME_TO_LOCK:
            return state
        # Nobody can ask Slurm here, but a run that lives has its lock.
        state = State("vanished", "no process has its lock", state.job_id)
    margin = _CLOCKS if isinstance(last, Ended) else timedelta()
    is_later = progress.time is not None and progress.time > last.time + margin
    if progress.is_complete and (is_later or state.name == "finished"):
        return State("finished", job_id=state.job_id)
    if is_later and not isinstance(last, Started):  # it went on without a job
        return _state_without_jobs(progress)
    if state.name == "finished" and progress.last_step is not None:
        return State("interrupted", "it ended before the last step", state.job_id)
    return state


def _state_without_jobs(progress: Progress) -> State:
    if progress.lock_file is not None:
        return State("vanished", f"killed: {progress.lock_file}" if progress.lock_file else "killed")
    if progress.step is None and progress.saved_step is None:
        return State("not started")
    return State("interrupted")


def job_state(events: Sequence[Event], queue: Queue) -> State:
    """The state of what one job after another works on, from their events alone."""
    last_of = {event.job_id: event for event in events}
    live = [queue.jobs[job_id] for job_id in last_of if _lives(queue.jobs.get(job_id), last_of[job_id])]
    for job in sorted(live, key=lambda job: job.state not in _RUNNING):
        if job.state not in _RUNNING:
            reason = job.reason if job.state == "PENDING" else job.state
            return State("queued", reason if reason not in ("", "None") else "", job.job_id)
        if isinstance(last_of[job.job_id], Ended):
            return State("going back to the queue", job_id=job.job_id)
        detail = "starting" if isinstance(last_of[job.job_id], Submitted) else ""
        return State("running", detail if job.state == "RUNNING" else job.state, job.job_id)
    if not events:
        return State("not started")
    last = events[-1]
    submitted = [e for e in events if isinstance(e, Submitted) and e.job_id == last.job_id]
    return _state_of_gone(last, queue.jobs.get(last.job_id), queue.tells(submitted[0] if submitted else None))


def _lives(job: QueuedJob | None, last: Event) -> bool:
    if job is None or not job.is_live:
        return False
    # For a moment after its end Slurm still calls a job running. One that waits was put back, by whomever.
    return job.state not in _RUNNING or not isinstance(last, Ended) or last.requeued


def _state_of_gone(last: Event, job: QueuedJob | None, is_gone: bool) -> State:
    """The state after an event of a job that does not live, if `is_gone`; else as far as the record tells."""
    if isinstance(last, Ended):
        if last.requeued and not is_gone:
            return State("going back to the queue", "no word from Slurm here", last.job_id)
        if last.requeued:
            return State("interrupted", "its job has left the queue", last.job_id)
        if last.exit_code == 0:
            return State("finished", job_id=last.job_id)
        if last.exit_code == EXIT_INTERRUPTED:
            return State("interrupted", job_id=last.job_id)
        return State("failed", f"exit code {last.exit_code}", last.job_id, last.exit_code)
    if is_gone and isinstance(last, Failed):
        return State("failed", f"rank {last.rank} on {last.host}, exit code {last.exit_code}", last.job_id)
    if is_gone:
        of_slurm = "" if job is None else f"{job.state}, "
        word = "killed" if isinstance(last, Started) else "never started"
        return State("vanished", of_slurm + word, last.job_id)
    name: Name = "running" if isinstance(last, Started) else "queued"
    return State(name, "by the record; no word from Slurm here", last.job_id)


class Part(NamedTuple):
    """A part of a dataset or of predictions, and its state."""

    name: str
    """Its number; empty: what makes a whole of the parts."""
    state: State
    num_starts: int


def part_states(events: Sequence[Event], queue: Queue) -> list[Part]:
    """The states of the parts that were submitted, whichever of their jobs is the last, and of what joins them."""
    part_of_job = {event.job_id: _part_of(event) for event in events if isinstance(event, Submitted)}
    events_of: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        events_of[part_of_job.get(event.job_id, event.job_id.partition("_")[2])].append(event)
    return [
        Part(name, job_state(of_part, queue), sum(isinstance(event, Started) for event in of_part))
        for name, of_part in sorted(events_of.items(), key=lambda item: (len(item[0]), item[0]))
    ]


def _part_of(event: Submitted) -> str:
    found = re.search(r"--part[= ](\d+)/", " ".join(event.command))
    return found[1] if found else event.job_id.partition("_")[2]


def state_of_parts(parts: Collection[Part]) -> State:
    """The state of the whole."""
    states = [part.state for part in parts]
    return min(states, key=lambda state: _PRECEDENCE.index(state.name), default=State("not started"))


def summary(parts: Collection[Part]) -> str:
    """How many parts are in which state, such as `12 of 16 parts done, 1 failed (3), 3 running`."""
    numbered = [part for part in parts if part.name]
    done = sum(part.state.name == "finished" for part in numbered)
    words = [f"{done} of {len(numbered)} parts done"]
    for name in ("failed", "vanished", "interrupted", "running", "going back to the queue", "queued"):
        found = [part.name for part in numbered if part.state.name == name]
        if found:
            listed = f" ({', '.join(found[:8])}{', ...' if len(found) > 8 else ''})"
            words.append(f"{len(found)} {name}{listed if name in _PRECEDENCE[3:] else ''}")
    joining = [part.state for part in parts if not part.name]
    words += [
        f"the joining of them is {state}"
        for state in joining
        if done == len(numbered) or state.name == "failed"
    ]
    return ", ".join(words)
