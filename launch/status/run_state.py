"""In which state a run or a part is: a function of the record of its jobs, the queue, its lock and its progress."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, get_args

from launch.jobs.job_state import Name, Queue, State, job_state
from launch.jobs.log import Ended, Event, Started, Submitted

_CLOCKS = timedelta(seconds=10)
"""How far the clocks of a node and of its storage may be apart."""
_TIME_TO_LOCK = timedelta(minutes=3)
"""How long a job may take from its start to the lock of the run folder."""


class Progress(NamedTuple):
    """What the files of a run folder say."""

    step: int | None = None  # of the last row of metrics
    saved_step: int | None = None  # of the latest checkpoint
    last_step: int | None = None  # where the run ends; None where that is not known
    time: datetime | None = None  # when the later of both was written
    lock_file: str | None = None
    """What stands in the lock file: a run that ends, in whatever way but killed, removes it."""
    holder: str | None = None  # the living process that has the lock
    row: Mapping[str, float | None] | None = None  # the last row of training metrics
    row_time: datetime | None = None  # when it was written
    last_evaluation: Mapping[str, float | None] | None = None  # the last row of metrics with scores
    skipped_updates: int = 0

    @property
    def is_complete(self) -> bool:
        """Return whether the last step is saved; False where it is not known."""
        saved, last = self.saved_step, self.last_step
        return saved is not None and last is not None and saved >= last


def run_state(events: Sequence[Event], queue: Queue, progress: Progress, now: datetime) -> State:
    """Return the state of a training run, whose jobs have these events."""
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
    if is_later and not isinstance(last, Started):  # it continued without a job
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


class Part(NamedTuple):
    """A part of a dataset or of predictions, and its state."""

    name: str  # its number; empty: what makes a whole of the parts
    state: State
    num_starts: int


def part_states(events: Sequence[Event], queue: Queue) -> list[Part]:
    """Return the states of the parts, whichever of their jobs is the last, and of what joins them."""
    part_of: dict[str, str] = {}
    events_of: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if isinstance(event, Submitted) and "--part" in event.command:  # its last argument
            part_of[event.job_id] = event.command[-1].partition("/")[0]
        events_of[part_of.get(event.job_id, event.job_id.partition("_")[2])].append(event)
    return [
        Part(name, job_state(of_part, queue), sum(isinstance(event, Started) for event in of_part))
        for name, of_part in sorted(events_of.items(), key=lambda item: (len(item[0]), item[0]))
    ]


def state_of_parts(parts: Collection[Part]) -> State:
    """Return the state of the whole: of those of its parts the first in order of precedence."""
    return min((part.state for part in parts), key=lambda state: get_args(Name).index(state.name))


def summary(parts: Collection[Part]) -> str:
    """Return how many parts are in which state, such as `12 of 16 parts done, 1 failed (3)`; empty without parts."""
    if not parts:
        return ""
    names_in: dict[Name, list[str]] = defaultdict(list)
    for part in parts:
        if part.name:
            names_in[part.state.name].append(part.name)
    num_parts, num_done = sum(map(len, names_in.values())), len(names_in["finished"])
    words = [f"{num_done} of {num_parts} parts done"]
    for name in ("failed", "vanished", "interrupted", "running", "going back to the queue", "queued"):
        names = names_in[name]
        shown = f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})"
        if names:
            words.append(f"{len(names)} {name}{'' if State(name).is_live else shown}")
    for part in parts:
        if not part.name and (num_done == num_parts or part.state.name == "failed"):
            words.append(f"the joining of them is {part.state}")
    return ", ".join(words)
