"""What is known of a run, a dataset or predictions: from the folder's files, and from what Slurm says of its jobs."""

import json
import os
import re
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from data_pipeline.base.errors import EXIT_INTERRUPTED, InputError
from data_pipeline.schema import DatasetMetadata, load_dataset_info
from hrm_dist.config import TrainConfig, load_config, total_steps
from hrm_dist.run_lock import holder
from launch.jobs import log as job_log
from launch.jobs import slurm
from launch.jobs.log import Ended, Event, Started, Submitted
from launch.status import last_error as job_output
from launch.status.run_state import (
    Part,
    Progress,
    Queue,
    State,
    part_states,
    run_state,
    state_of_parts,
    summary,
)

# A run whose last row is older than so many times their usual distance, and than so many seconds, may hang.
_STALLED_ROWS, _STALLED_S = 10, 300.0
_NOT_SEARCHED = {"checkpoints", "jobs", "wandb", "train", "test", "building"}


class Facts(NamedTuple):
    """What is known; None where it is not, or means nothing."""

    folder: Path
    kind: str
    state: State
    progress: Progress
    row: Mapping[str, Any]
    """The last row of metrics."""
    scores: Mapping[str, Any]
    """The last row with an evaluation; without it empty."""
    skipped_updates: int
    """In all rows."""
    row_age_s: float | None
    """Since the last row or the last start, whichever is later; while it runs."""
    is_stalled: bool
    eta_s: float | None
    """Until the last step at the speed of the last row, without evaluations; while it runs."""
    restarts: int
    parts: list[Part]
    last_error: str | None
    log: Path | None
    """With stderr of rank 0 of the job that counts."""
    next: str | None
    """The command that makes it go on."""
    notes: list[str]

    @property
    def summary(self) -> str:
        """Of the parts, if it has any."""
        return summary(self.parts) if self.parts else ""


def is_known_folder(folder: Path) -> bool:
    """Whether a folder is a run's, or has jobs."""
    names = ("config.yaml", "metrics.jsonl", ".lock", "jobs/jobs.jsonl")
    try:
        return any((folder / name).exists() for name in names)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}).") from error


def known_folders(root: Path) -> list[Path]:
    """All below a folder, itself included, in the order of their names."""
    found: list[Path] = []
    for folder, names, _ in os.walk(root):
        names[:] = [name for name in names if name not in _NOT_SEARCHED]
        if is_known_folder(Path(folder)):
            found.append(Path(folder))
    return sorted(found)


def facts_of(folders: Sequence[Path]) -> tuple[list[Facts], list[str]]:
    """The facts of each folder, and problems that concern them all."""
    problems: list[str] = []
    events_of: dict[Path, list[Event]] = {}
    facts: list[Facts] = []
    for folder in folders:
        try:
            events_of[folder] = job_log.read(folder)
        except InputError as error:
            problems.append(str(error))
    queue, of_slurm = _queue([event for events in events_of.values() for event in events])
    for folder, events in events_of.items():
        try:
            facts.append(_facts(folder, events, queue))
        except OSError as error:
            problems.append(f"{folder}: {error.filename or folder} cannot be read ({error.strerror})")
    return facts, problems + of_slurm


def _queue(events: Sequence[Event]) -> tuple[Queue, list[str]]:
    """Slurm is asked once, and only if there is something to ask."""
    host = socket.gethostname()
    local = {e.job_id for e in events if isinstance(e, Submitted) and job_log.is_live_here(e)}
    jobs = {i: slurm.QueuedJob(i, "RUNNING", "", host) for i in local}
    of_slurm = {e.job_id for e in events} - {
        e.job_id for e in events if isinstance(e, Submitted) and e.cluster == "local"
    }
    if not of_slurm or not slurm.is_there():
        return Queue(jobs, False, host), []
    try:
        return Queue(jobs | slurm.queued_jobs(of_slurm), True, host), []
    except slurm.SlurmError as error:
        return Queue(jobs, False, host), [f"Slurm does not answer, so this is from files alone: {error}"]


def _facts(folder: Path, events: Sequence[Event], queue: Queue) -> Facts:
    kinds = [event.kind for event in events if isinstance(event, Submitted)]
    if kinds and kinds[-1] != "train":
        return _facts_of_parts(folder, kinds[-1], events, queue)
    now = datetime.now(UTC)
    config, notes = _config(folder)
    row, scores, skipped = _metrics(folder / "metrics.jsonl")
    progress = _progress(folder, row, config)
    state = run_state(events, queue, progress, now)
    starts = [event for event in events if isinstance(event, Started)]
    pace = _Pace(None, False, None)
    if state.name == "running":
        pace = _pace(folder, config, row, progress, starts, now)
    log, error = _log_and_error(folder, state, events)
    if state.name == "running" and not pace.is_stalled and _has_row_of_last_start(folder, starts):
        error = None  # it has been overcome
    return Facts(
        folder, "train", state, progress, row, scores, skipped, *pace, max(0, len(starts) - 1), [], error, log,
        _next(folder, "train", state, events, queue), notes,
    )  # fmt: skip


def _facts_of_parts(folder: Path, kind: str, events: Sequence[Event], queue: Queue) -> Facts:
    parts = part_states(events, queue)
    state = state_of_parts(parts)
    ended = [part for part in parts if not part.state.is_live]
    log, error = _log_and_error(folder, state_of_parts(ended) if ended else state, events)
    restarts = sum(max(0, part.num_starts - 1) for part in parts)
    return Facts(
        folder, kind, state, Progress(), {}, {}, 0, None, False, None, restarts, parts, error, log,
        _next(folder, kind, state, events, queue), [],
    )  # fmt: skip


class _Pace(NamedTuple):
    row_age_s: float | None
    is_stalled: bool
    eta_s: float | None


def _pace(
    folder: Path,
    config: TrainConfig | None,
    row: Mapping[str, Any],
    progress: Progress,
    starts: Sequence[Started],
    now: datetime,
) -> _Pace:
    times = [_time_of(folder / "metrics.jsonl"), *(event.time for event in starts[-1:])]
    known = [time for time in times if time is not None]
    age = max(0.0, (now - max(known)).total_seconds()) if known else None
    if config is None or not row.get("examples_per_s"):
        return _Pace(age, False, None)
    seconds_per_step = config.global_batch_size / row["examples_per_s"]
    usual = config.log_interval * seconds_per_step
    is_stalled = age is not None and age > max(_STALLED_ROWS * usual, _STALLED_S)
    if progress.last_step is None or progress.step is None:
        return _Pace(age, is_stalled, None)
    return _Pace(age, is_stalled, (progress.last_step - progress.step) * seconds_per_step)


def _log_and_error(folder: Path, state: State, events: Sequence[Event]) -> tuple[Path | None, str | None]:
    """The log of the job that decided a state, and what it says went wrong in its last start."""
    if state.job_id is None:
        return None, None
    files = job_output.logs(folder, state.job_id)
    starts = [event.time for event in events if isinstance(event, Started) and event.job_id == state.job_id]
    error = job_output.last_error(files, max(starts, default=None))
    ends = [event for event in events if isinstance(event, Ended) and event.job_id == state.job_id]
    if state.name == "finished" or (
        ends and ends[-1].exit_code == EXIT_INTERRUPTED and events[-1] is ends[-1]
    ):
        error = None  # what Slurm says of a job that was stopped is no error
    return (files[0] if files else None), error


def _has_row_of_last_start(folder: Path, starts: Sequence[Started]) -> bool:
    written = _time_of(folder / "metrics.jsonl")
    return written is not None and (not starts or written > starts[-1].time)


def _config(folder: Path) -> tuple[TrainConfig | None, list[str]]:
    """The configuration that was started or submitted last."""
    paths = [
        path
        for path in (folder / "config.yaml", job_log.jobs_folder(folder) / "config.yaml")
        if path.exists()
    ]
    if not paths:
        return None, []
    try:
        return load_config(max(paths, key=lambda path: path.stat().st_mtime)), []
    except (InputError, OSError) as error:
        return None, [str(error)]


def _progress(folder: Path, row: Mapping[str, Any], config: TrainConfig | None) -> Progress:
    latest = folder / "checkpoints" / "latest"
    state: dict[str, Any] = {}
    try:
        # Not by hrm_dist.checkpoint.reader, which imports torch; and whether it is whole is for a resume to find out.
        state = dict(json.loads((latest / "state.json").read_bytes()))
        saved = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError):
        saved = None
    times = [time for time in (_time_of(folder / "metrics.jsonl"), _time_of(latest / "state.json")) if time]
    try:
        lock_file = (folder / ".lock").read_text(encoding="utf-8").strip()
    except OSError:
        lock_file = None
    step = row.get("step")
    last_step = None if config is None else _last_step(config, state)
    return Progress(step, saved, last_step, max(times, default=None), lock_file, holder(folder))


def _last_step(config: TrainConfig, state: Mapping[str, Any]) -> int | None:
    """By what the checkpoint says of its dataset, or else by the dataset; None if there is neither."""
    try:
        metadata = DatasetMetadata.model_validate(state["dataset"]["metadata"])
    except (KeyError, TypeError, ValidationError):
        try:
            metadata = load_dataset_info(config.data_path).metadata("train")
        except InputError:
            return None
    steps = total_steps(config, metadata)
    return min(steps, config.max_steps or steps)


def _metrics(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The last row of training, the last one of scores (in older runs one row has both), and the number of skips."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}, {}, 0
    content = content[: content.rfind(b"\n") + 1]
    skipped = sum(map(int, re.findall(rb'"train/skipped_updates": (\d+)', content)))
    row, scores = (_row_before(content, content.rfind(key)) for key in (b'"train/', b'"eval/'))
    return row, scores, skipped


def _row_before(content: bytes, position: int) -> dict[str, Any]:
    """The last row that begins before a position and can be read."""
    while position > 0:
        start = content.rfind(b"\n", 0, position - 1) + 1
        try:
            row = json.loads(content[start : content.find(b"\n", start)])
            return {**row, "step": int(row["step"])}
        except (ValueError, KeyError, TypeError):
            position = start
    return {}


def _time_of(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None


def _next(folder: Path, kind: str, state: State, events: Sequence[Event], queue: Queue) -> str | None:
    submitted = [event for event in events if isinstance(event, Submitted)]
    if state.name == "queued":
        job = queue.jobs.get(state.job_id or "")
        is_held = job is not None and (
            "held" in job.reason.lower() or job.state in ("REQUEUE_HOLD", "SPECIAL_EXIT")
        )
        return f"scontrol release {state.job_id}" if is_held else None
    if state.is_live or state.name == "finished":
        return None
    if submitted:
        return _submit_command(kind, submitted)
    return f"python -m hrm_dist.train {shlex.quote(str(folder / 'config.yaml'))}"


def _submit_command(kind: str, submitted: Sequence[Submitted]) -> str:
    """The command of launch.submit that goes on with what was submitted."""
    of_parts = [event for event in submitted if "--part" in event.command]
    event = (of_parts or submitted)[-1]
    words = ["python", "-m", "launch.submit", kind]
    rest = event.command[1:]
    if "--part" in rest:
        place = rest.index("--part")
        num_parts = rest[place + 1].partition("/")[2]
        rest = [*rest[:place], *rest[place + 2 :], "--parts", num_parts, "--retry-failed"]
    return shlex.join([*words, *rest, *_options(event.resources)])


def _options(resources: Mapping[str, Any]) -> Iterator[str]:
    for key, value in resources.items():
        if key in ("container_runtime", "container_mounts"):  # of a profile only
            continue
        for one in value if isinstance(value, list) else [value]:
            text = f"{one:g}" if isinstance(one, float) else str(one)
            # `--sbatch --x` would be two options.
            yield from (
                [f"--{key.replace('_', '-')}={text}"]
                if text.startswith("-")
                else [f"--{key.replace('_', '-')}", text]
            )
