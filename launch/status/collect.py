"""What is known of a run, a dataset or predictions: from the folder's files, and from what Slurm says of its jobs."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from data_pipeline.base.errors import EXIT_INTERRUPTED, InputError
from data_pipeline.schema import DatasetMetadata, load_dataset_info
from hrm_dist.config import TrainConfig, load_config, total_steps
from hrm_dist.run_lock import holder
from launch.jobs import log
from launch.jobs.job_state import Queue, State, ask_queue
from launch.jobs.last_error import last_error
from launch.jobs.log import Ended, Event, Failed, Started, Submitted
from launch.status.run_state import Part, Progress, part_states, run_state, state_of_parts

# A run may hang whose last row is older than this many times their usual distance, and than this many seconds.
_STALLED_ROWS, _STALLED_S = 10, 300.0
_NOT_SEARCHED = {"checkpoints", "jobs", "wandb", "train", "test", "building"}


class RunSummary(NamedTuple):
    """What is known; None where it is not, or means nothing."""

    folder: Path
    kind: str
    state: State
    restarts: int
    last_error: str | None
    log: Path | None
    """With stderr of rank 0 of the job that counts."""
    next: str | None
    """The command that makes it go on."""
    parts: Sequence[Part] = ()
    progress: Progress = Progress()
    row: Mapping[str, Any] | None = None
    """The last row of metrics."""
    last_evaluation: Mapping[str, Any] | None = None
    """The last row with scores."""
    skipped_updates: int = 0
    """In all rows."""
    row_age_s: float | None = None
    """Since the last row or the last start, whichever is later; while it runs."""
    is_stalled: bool = False
    eta_s: float | None = None
    """Until the last step at the speed of the last row, without evaluations; while it runs."""
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
    problems: list[str] = []
    events_of: dict[Path, list[Event]] = {}
    summaries: list[RunSummary] = []
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
            kinds = [event.kind for event in events if isinstance(event, Submitted)]
            if kinds and kinds[-1] != "train":
                summaries.append(_summary_of_parts(folder, kinds[-1], events, queue))
            else:
                summaries.append(_summary_of_run(folder, events, queue))
        except OSError as error:
            problems.append(f"{folder}: {error.filename or folder} cannot be read ({error.strerror})")
    return summaries, problems


def _summary_of_run(folder: Path, events: Sequence[Event], queue: Queue) -> RunSummary:
    now = datetime.now(UTC)
    config, notes = _config(folder)
    row, scores, skipped_updates = _metrics(folder / "metrics.jsonl")
    progress = _progress(folder, row, config)
    state = run_state(events, queue, progress, now)
    starts = [event.time for event in events if isinstance(event, Started)]
    error, stderr = _error_and_log(folder, state, events)
    age_s, is_stalled, eta_s = None, False, None
    if state.name == "running":
        written = _time_of(folder / "metrics.jsonl")
        times = [time for time in (written, *starts[-1:]) if time is not None]
        age_s = max(0.0, (now - max(times)).total_seconds()) if times else None
        is_stalled, eta_s = _pace(config, row, progress, age_s)
        if written is not None and written >= max(times) and not is_stalled:
            error = None  # it has been overcome
    return RunSummary(
        folder, "train", state, max(0, len(starts) - 1), error, stderr, _next(folder, "train", state, events, queue),
        (), progress, row, scores, skipped_updates, age_s, is_stalled, eta_s, notes,
    )  # fmt: skip


def _summary_of_parts(folder: Path, kind: str, events: Sequence[Event], queue: Queue) -> RunSummary:
    parts = part_states(events, queue)
    state = state_of_parts(parts)
    ended = [part for part in parts if not part.state.is_live]
    error, stderr = _error_and_log(folder, state_of_parts(ended) if ended else state, events)
    restarts = sum(max(0, part.num_starts - 1) for part in parts)
    next_command = _next(folder, kind, state, events, queue)
    return RunSummary(folder, kind, state, restarts, error, stderr, next_command, parts)


def _pace(
    config: TrainConfig | None, row: Mapping[str, Any] | None, progress: Progress, age_s: float | None
) -> tuple[bool, float | None]:
    """Return whether the run may hang, and how many seconds are left."""
    if config is None or row is None or not row.get("examples_per_s"):
        return False, None
    step_s = config.global_batch_size / row["examples_per_s"]
    is_stalled = age_s is not None and age_s > max(_STALLED_ROWS * config.log_interval * step_s, _STALLED_S)
    if progress.last_step is None or progress.step is None:
        return is_stalled, None
    return is_stalled, (progress.last_step - progress.step) * step_s


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
    if not paths:
        return None, ()
    try:
        return load_config(max(paths, key=lambda path: path.stat().st_mtime)), ()
    except (InputError, OSError) as error:
        return None, [str(error)]


def _progress(folder: Path, row: Mapping[str, Any] | None, config: TrainConfig | None) -> Progress:
    latest = folder / "checkpoints" / "latest" / "state.json"
    state: dict[str, Any] = {}
    try:
        # Not by hrm_dist.checkpoint.reader, which imports torch; and whether it is whole is for a resume to find out.
        state = dict(json.loads(latest.read_bytes()))
        saved = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError):
        saved = None
    times = [time for path in (folder / "metrics.jsonl", latest) if (time := _time_of(path))]
    try:
        lock_file = (folder / ".lock").read_text(encoding="utf-8").strip()
    except OSError:
        lock_file = None
    last_step = None if config is None else _last_step(config, state)
    step = None if row is None else row["step"]
    return Progress(step, saved, last_step, max(times, default=None), lock_file, holder(folder))


def _last_step(config: TrainConfig, state: Mapping[str, Any]) -> int | None:
    """Return it by what the checkpoint says of its dataset, or else by the dataset; None if there is neither."""
    try:
        metadata = DatasetMetadata.model_validate(state["dataset"]["metadata"])
    except (KeyError, TypeError, ValidationError):
        try:
            metadata = load_dataset_info(config.data_path).metadata("train")
        except InputError:
            return None
    steps = total_steps(config, metadata)
    return min(steps, config.max_steps or steps)


def _metrics(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None, int]:
    """Return the last row of training, the last one with scores, and the number of skipped updates in all."""
    try:
        content = path.read_bytes()
    except OSError:
        return None, None, 0
    lines = content.split(b"\n")[:-1]  # what follows is cut short
    skipped_updates = sum(map(int, re.findall(rb'"train/skipped_updates": (\d+)', content)))
    return _last_row(lines, b'"train/'), _last_row(lines, b'"eval/'), skipped_updates


def _last_row(lines: Sequence[bytes], key: bytes) -> dict[str, Any] | None:
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):
            if key in line:
                row = json.loads(line)
                return {**row, "step": int(row["step"])}
    return None


def _time_of(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None


def _next(folder: Path, kind: str, state: State, events: Sequence[Event], queue: Queue) -> str | None:
    if state.name == "queued":
        job = queue.jobs.get(state.job_id or "")
        is_held = job and ("held" in job.reason.lower() or job.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"))
        return f"scontrol release {state.job_id}" if is_held else None
    if state.is_live or state.name == "finished":
        return None
    commands = [event.resubmit for event in events if isinstance(event, Submitted) and event.resubmit]
    if commands:
        return shlex.join(["python", "-m", "launch.submit", *commands[-1]])
    return f"python -m hrm_dist.train {shlex.quote(str(folder / 'config.yaml'))}" if kind == "train" else None
