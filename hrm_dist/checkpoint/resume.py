"""Which checkpoint a run resumes from, and whether it may.

Also whether it will resume bit for bit, and what the run folder says of it.

`resume` with one of the run's own checkpoints rewinds the run, once: rewind.json in the run folder keeps the setting
that did so, {"resume": "runs/x/checkpoints/step_400", "step": 400}. The same command then resumes from `latest`, as
after any interruption; a start with another `resume` deletes the record.
"""

import json
import logging
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import make_folder, replace_file
from data_pipeline.schema import WINDOWS, load_dataset_info
from hrm_dist.checkpoint import config_changes, pointer
from hrm_dist.checkpoint.config_changes import changed_settings, described, fixed, of_the_result
from hrm_dist.checkpoint.pointer import STEP_DIR
from hrm_dist.checkpoint.reader import (
    Checkpoint,
    CheckpointState,
    open_checkpoint,
    previous_complete,
    read_state,
)
from hrm_dist.checkpoint.writer import restore_pointers, rewind
from hrm_dist.config import ConfigError, TrainConfig, to_yaml
from hrm_dist.distributed import collectives
from hrm_dist.schedule import Schedule

logger = logging.getLogger(__name__)

REWIND_FILE = "rewind.json"


class Start(NamedTuple):
    """Where a run begins, if not at its first step."""

    checkpoint: Checkpoint
    rewinds: bool
    """Whether the run goes back to this checkpoint of its own, and what lies beyond is abandoned."""
    changes: config_changes.Changes
    """Of the settings since."""


def find_start(
    config: TrainConfig, run_dir: Path, dataset: dict[str, Any], schedule: Schedule, device: torch.device
) -> Start | None:
    """Return the checkpoint that `resume` names: `auto` (the run's latest, if any), `never`, or a path.

    A path within another run is where this one starts; one of its own rewinds the run, once. After either, the same
    command resumes from the run's latest. Say what has changed since, and raise ConfigError where the run cannot
    resume with these settings and this dataset. Call on all ranks.
    """
    path, rewinds = collectives.run_on_rank0(lambda: _choose(config, run_dir))
    if path is None:
        return None
    try:
        opened = open_checkpoint(path)
    except InputError as error:
        complete = collectives.run_on_rank0(lambda: previous_complete(path))
        if complete is None:
            raise
        raise InputError(
            f"{error} The last complete one beside it: resume={complete}; the run then resumes from there."
        ) from error
    state = opened.state
    changes = changed_settings(state.config, config)
    _check_same_run(state, opened.path, config, dataset, schedule)
    if changes:
        log = logger.warning if of_the_result(changes) else logger.info
        collectives.log_once(log, f"changed settings from step {state.step} on: {described(changes)}")
    now, then = environment(config, device), state.environment
    inexact = [
        f"{key} {then[key]}, now {value}" for key, value in now.items() if then.get(key, value) != value
    ]
    if inexact:
        collectives.log_once(logger.info, f"equal up to rounding, not bit for bit: {'; '.join(inexact)}")
    return Start(opened, rewinds, changes)


def check_start(config: TrainConfig, run_dir: Path, dataset: dict[str, Any], schedule: Schedule) -> None:
    """Raise InputError where `find_start` would, but for damaged tensors: before a job waits for its turn."""
    if config.resume != "auto" or pointer.is_pointer(run_dir / "checkpoints" / "latest"):
        path, _ = _choose(config, run_dir)
        if path is not None:
            _check_same_run(read_state(path), pointer.target(path), config, dataset, schedule)


def start_run_folder(config: TrainConfig, run_dir: Path, start: Start | None) -> None:
    """Note in the run folder what begins now, and take its checkpoints back if it rewinds. Call on rank 0."""
    make_folder(run_dir)
    if start is None:
        config_changes.record(run_dir, 0, {}, {})
    else:
        state = start.checkpoint.state
        config_changes.record(run_dir, state.step, state.config, start.changes)
    replace_file(run_dir / "config.yaml", to_yaml(config).encode())
    if start is not None and start.rewinds:
        rewind(pointer.target(start.checkpoint.path))
        record = {"resume": config.resume, "step": start.checkpoint.state.step}
        replace_file(run_dir / REWIND_FILE, f"{json.dumps(record)}\n".encode())
    elif not _has_rewound(run_dir, config.resume):
        (run_dir / REWIND_FILE).unlink(missing_ok=True)


def _has_rewound(run_dir: Path, resume: str) -> bool:
    """Return whether this setting was the last to rewind the run, and its latest checkpoint can be read."""
    try:
        read_state(run_dir / "checkpoints" / "latest")
        return json.loads((run_dir / REWIND_FILE).read_bytes())["resume"] == resume
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return False


def _choose(config: TrainConfig, run_dir: Path) -> tuple[Path | None, bool]:
    """Return the checkpoint to start from, if any, and whether the run goes back to it."""
    latest = run_dir / "checkpoints" / "latest"
    restore_pointers(latest.parent)
    has_latest = pointer.is_pointer(latest)  # even if what it points to is gone, which is an error
    if not has_latest and config.resume in ("auto", "never"):
        newest = previous_complete(latest)  # the link got lost, or was never made
        if newest is not None:
            logger.warning(
                "%s: there is no such link; the newest complete checkpoint is %s", latest, newest.name
            )
            pointer.point(latest, newest)
            has_latest = True
    if config.resume == "never":
        if has_latest:
            raise ConfigError(
                f"resume=never: {run_dir} already holds a run ({pointer.target(latest).name}); continue it with "
                "resume=auto, choose another checkpoint_path, or delete the folder."
            )
        return None, False
    if config.resume == "auto":
        return (latest if has_latest else None), False
    given = Path(config.resume)
    is_own = pointer.target(given).parent == pointer.target(latest.parent)
    if is_own and not _has_rewound(run_dir, config.resume):
        if given.is_dir() and not STEP_DIR.fullmatch(pointer.target(given).name):
            raise ConfigError(
                f"resume={given}: is in the run's own folder, but is no step_N of it; rename it, if it was abandoned, "
                "or choose another checkpoint."
            )
        return given, True
    return (latest if has_latest else given), False


def _check_same_run(
    state: CheckpointState, path: Path, config: TrainConfig, dataset: dict[str, Any], schedule: Schedule
) -> None:
    """Raise ConfigError unless a run with these settings and this dataset can resume from a checkpoint.

    At the last step it can if what changed does not matter to what has been trained.
    """
    last_step, changes = schedule.last_step, changed_settings(state.config, config)
    problems = [
        f"{key} is {now!r}, the checkpoint has {then!r}"
        for key, (then, now) in sorted(fixed(changes).items())
    ]
    if state.dataset != dataset:
        problems.append(f"data_path={config.data_path} is not the dataset it was trained on")
    if problems:
        raise ConfigError(
            f"{path}: cannot resume from another run's checkpoint: {'; '.join(problems)}. Set them back, or "
            "start a new run with another checkpoint_path."
        )
    if state.step > last_step:
        raise ConfigError(
            f"{path}: is at step {state.step}, beyond the last step {last_step}; raise epochs or max_steps."
        )
    too_late = of_the_result(changes)
    if state.step == last_step and too_late:
        limits = {"max_steps": config.max_steps, "epochs": schedule.total_steps}
        raised = " and ".join(key for key, limit in limits.items() if limit == last_step)
        raise ConfigError(
            f"{path}: is at the last step, {last_step}, so nothing can be trained with changed settings "
            f"({described(too_late)}). Put them back, train a new run with another checkpoint_path, or raise {raised} "
            "to resume from here with the new settings."
        )


def environment(config: TrainConfig, device: torch.device) -> dict[str, str | int | bool]:
    """Return what bit-for-bit equality depends on beside the configuration."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "compile": config.compiles_on(device.type),
        "world_size": collectives.world_size(),
        "engine": config.engine,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        **windows_digest(config),
    }


def windows_digest(config: TrainConfig) -> dict[str, str]:
    """Return the digest of a dataset's windows where they decide what is computed, under its name.

    Windows are no part of a dataset's identity, and another version may find others.
    """
    if config.padding == "keep":
        return {}
    return {"windows": load_dataset_info(config.data_path).documents.get(WINDOWS, "none")}
