"""What is known of a run, a dataset or predictions: from the folder's files, and from what Slurm says of its jobs."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipeline.base import jsonl
from data_pipeline.base.errors import EXIT_INTERRUPTED, InputError
from data_pipeline.schema import DatasetMetadata, load_dataset_info
from hrm_dist.checkpoint import pointer
from hrm_dist.config import TrainConfig, load_config, total_steps
from hrm_dist.run_lock import holder
from launch.jobs import log
from launch.jobs.job_state import Queue, State, ask_queue
from launch.jobs.last_error import last_error
from launch.jobs.log import Ended, Event, Failed, Started, Submitted
from launch.status.run_state import Part, Progress, part_states, run_state, state_of_parts

# A run may hang whose last row is older than this many times their usual distance, and than this many seconds.
_STALLED_ROWS, _STALLED_S = 10, 300.0
_NOT_SEARCHED = {"checkpoints", "jobs", "wandb", "tensorboard", "train", "test", "building"}


@dataclass
class RunSummary:
    """What is known; None where it is not, or means nothing."""

    folder: Path
    kind: str
    state: State
    progress: Progress = Progress()  # noqa: RUF009  it is immutable
    parts: Sequence[Part] = ()
    restarts: int = 0
    row_age_s: float | None = None  # since the last row or the last start, whichever is later; while it runs
    is_stalled: bool = False
    eta_s: float | None = None
    """Until the last step at the speed of the last row, without evaluations; while it runs."""
    last_error: str | None = None
    log: Path | None = None  # with stderr of rank 0 of the job that counts
    next: str | None = None  # the command that makes it go on
    notes: Sequence[str] = ()


def is_known_folder(folder: Path) -> bool:
    """Return whether a folder is a run's, or has jobs."""
    names = ("config.yaml", "metrics.jsonl", ".lock", "jobs/jobs.jsonl")
    try:
        return any((folder / name).exists() for name in names)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}).") from error


def known_folders(root: Path) -> list[Path]:
    """Return all below a folder, itself included, in the order of their names."""
    found: list[Path] = []
    for folder, names, _ in os.walk(root):
        names[:] = [name for name in names if name not in _NOT_SEARCHED]
        if is_known_folder(Path(folder)):
            found.append(Path(folder))
    return sorted(found)


def summaries_of(folders: Sequence[Path]) -> tuple[list[RunSummary], list[str]]:
    """Return the summary of each folder, and problems that concern them all."""
    problems, summaries = list[str](), list[RunSummary]()
    events_of: dict[Path, list[Event]] = {}
    for folder in folders:
        try:
            events_of[folder] = log.read(folder)
        except InputError as error:
            problems.append(str(error))
    queue = ask_queue([event for events in events_of.values() for event in events])
    if queue.problem:
        problems.append(f"Slurm does not answer, so this is from files alone: {queue.problem}")
    for folder, events in events_of.items():
        try:
            summaries.append(_summary(folder, events, queue))
        except OSError as error:
            problems.append(f"{folder}: {error.filename or folder} cannot be read ({error.strerror})")
    return summaries, problems


def _summary(folder: Path, events: Sequence[Event], queue: Queue) -> RunSummary:
    kinds = [event.kind for event in events if isinstance(event, Submitted)]
    if kinds and kinds[-1] != "train":
        parts = part_states(events, queue)
        one = RunSummary(folder, kinds[-1], state_of_parts(parts), parts=parts)
        one.restarts = sum(max(0, part.num_starts - 1) for part in parts)
        ended = [part for part in parts if not part.state.is_live]
        one.last_error, one.log = _error_and_log(folder, state_of_parts(ended or parts), events)
        one.next = _next(one, events, queue)
        return one
    now = datetime.now(UTC)
    config, notes = _config(folder)
    progress = _progress(folder, config)
    one = RunSummary(folder, "train", run_state(events, queue, progress, now), progress, notes=notes)
    starts = [event.time for event in events if isinstance(event, Started)]
    one.restarts = max(0, len(starts) - 1)
    one.last_error, one.log = _error_and_log(folder, one.state, events)
    one.next = _next(one, events, queue)
    last = max([*starts[-1:], *filter(None, [progress.row_time])], default=None)
    if one.state.name == "running" and last is not None:
        one.row_age_s = max(0.0, (now - last).total_seconds())
        speed = (progress.row or {}).get("examples_per_s")
        if config is not None and speed:
            step_s = config.global_batch_size / speed
            one.is_stalled = one.row_age_s > max(_STALLED_ROWS * config.log_interval * step_s, _STALLED_S)
            if progress.last_step is not None and progress.step is not None:
                one.eta_s = (progress.last_step - progress.step) * step_s
        if last == progress.row_time and not one.is_stalled:
            one.last_error = None  # it has been overcome
    return one


def _error_and_log(folder: Path, state: State, events: Sequence[Event]) -> tuple[str | None, Path | None]:
    """Return what went wrong in the last start of the job that decided a state, and its log."""
    if state.job_id is None:
        return None, None
    own = [event for event in events if event.job_id == state.job_id]
    stderr = log.stderr_of(folder, state.job_id)
    shown = stderr if stderr.exists() else None
    was_stopped = isinstance(own[-1], Ended) and own[-1].exit_code == EXIT_INTERRUPTED
    if state.name == "finished" or was_stopped:  # what Slurm says of it then is no error
        return None, shown
    starts = [index for index, event in enumerate(own) if isinstance(event, Started)]
    since = own[starts[-1] :] if starts else own
    for event in since:  # the first error is the cause of the others
        if isinstance(event, Failed | Ended) and event.error:
            return event.error, shown
    return last_error(stderr, since[0].log_start if isinstance(since[0], Started) else 0), shown


def _config(folder: Path) -> tuple[TrainConfig | None, Sequence[str]]:
    """Return the configuration that was started or submitted last."""
    candidates = (folder / "config.yaml", log.jobs_folder(folder) / "config.yaml")
    paths = [path for path in candidates if path.exists()]
    try:
        return (load_config(max(paths, key=lambda path: path.stat().st_mtime)) if paths else None), ()
    except (InputError, OSError) as error:
        return None, [str(error)]


def _progress(folder: Path, config: TrainConfig | None) -> Progress:
    metrics = folder / "metrics.jsonl"
    latest = pointer.target(folder / "checkpoints" / "latest") / "state.json"
    lines = jsonl.lines(metrics)
    row, scores = _last_row(lines, b'"train/'), _last_row(lines, b'"eval/')
    skipped = sum(int(n) for line in lines for n in re.findall(rb'"train/skipped_updates": (\d+)', line))
    state, saved_step, lock_file = {}, None, None
    # Not by hrm_dist.checkpoint.reader, which imports torch; and whether it is whole is for a resume to find out.
    with suppress(OSError, ValueError, KeyError, TypeError):
        state = dict(json.loads(latest.read_bytes()))
        saved_step = int(state["step"])
    with suppress(OSError):
        lock_file = (folder / ".lock").read_text(encoding="utf-8").strip()
    last_step = None if config is None else _last_step(config, state)
    row_time, saved_time = (_time_of(path) for path in (metrics, latest))
    time = max(filter(None, [row_time, saved_time]), default=None)
    step = None if row is None else row["step"]
    return Progress(
        step, saved_step, last_step, time, lock_file, holder(folder), row, row_time, scores, skipped
    )


def _last_step(config: TrainConfig, state: Mapping[str, Any]) -> int | None:
    """Return it by what the checkpoint says of its dataset, or else by the dataset; None if there is neither."""
    with suppress(InputError):
        try:
            metadata = DatasetMetadata.model_validate(state["dataset"]["metadata"])
        except (KeyError, TypeError, ValidationError):
            metadata = load_dataset_info(config.data_path).metadata("train")
        steps = total_steps(config, metadata)
        return min(steps, config.max_steps or steps)
    return None


def _last_row(lines: Sequence[bytes], key: bytes) -> dict[str, Any] | None:
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):
            if key in line:
                row = json.loads(line)
                return {**row, "step": int(row["step"])}
    return None


def _time_of(path: Path) -> datetime | None:
    with suppress(OSError):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return None


def _next(summary: RunSummary, events: Sequence[Event], queue: Queue) -> str | None:
    state = summary.state
    if state.name == "queued":
        job = queue.jobs.get(state.job_id or "")
        is_held = job and ("held" in job.reason.lower() or job.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"))
        return f"scontrol release {state.job_id}" if is_held else None
    if state.is_live or state.name == "finished":
        return None
    commands = [event.resubmit for event in events if isinstance(event, Submitted) and event.resubmit]
    if commands:
        return shlex.join(["python", "-m", "launch.submit", *commands[-1]])
    command = ["python", "-m", "hrm_dist.train", str(summary.folder / "config.yaml")]
    return shlex.join(command) if summary.kind == "train" else None
