"""Which checkpoint a run goes on from, whether it may, and whether it will be bit for bit."""

import logging
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_pipeline.base.errors import InputError
from hrm_dist.checkpoint import reader as checkpoint
from hrm_dist.checkpoint.config_changes import Changes, changed_settings, described, of_the_result
from hrm_dist.checkpoint.reader import Checkpoint, CheckpointState
from hrm_dist.checkpoint.writer import link, put_back
from hrm_dist.config import ConfigError, TrainConfig, flat_settings
from hrm_dist.distributed import collectives
from hrm_dist.schedule import Schedule

logger = logging.getLogger(__name__)

# A resumed run goes on with the same batches and carry, so these must be what they were, and all of `arch`.
_FIXED = ("global_batch_size", "seed")


class Start(NamedTuple):
    """Where a run begins, if not at its first step."""

    checkpoint: Checkpoint
    sets_back: bool
    """Whether the checkpoint is the run's own, named by the user: `latest` goes back to it."""


def find_start(config: TrainConfig, run_dir: Path) -> Start | None:
    """The checkpoint that `resume` names: `auto` (the run's latest, if any), `never`, or a path.

    A checkpoint of another run is where this one starts, and one of its own sets the run back. Having got further
    from there, it goes on from its latest, so that the same command continues it. Call on all ranks.
    """
    path, sets_back = collectives.run_on_rank0(lambda: _choose(config, run_dir))
    if path is None:
        return None
    try:
        return Start(checkpoint.open_checkpoint(path), sets_back)
    except InputError as error:
        complete = collectives.run_on_rank0(lambda: checkpoint.previous_complete(path))
        if complete is None:
            raise
        raise InputError(
            f"{error} The last complete one beside it: resume={complete}; the run then goes on from there."
        ) from error


def _choose(config: TrainConfig, run_dir: Path) -> tuple[Path | None, bool]:
    """The checkpoint to start from, if any, and whether it sets the run back."""
    latest = run_dir / "checkpoints" / "latest"
    put_back(latest)
    has_latest = latest.is_symlink()  # even if what it points to is gone, which is an error
    if latest.exists() and not has_latest:
        raise ConfigError(
            f"{latest}: is a folder where a link should be, as in a copy of a run; delete it, and the run goes on "
            "from the newest of its step_N folders."
        )
    if not has_latest and config.resume in ("auto", "never"):
        newest = checkpoint.previous_complete(latest)  # the link got lost, or was never made
        if newest is not None:
            logger.warning(
                "%s: there is no such link; the newest complete checkpoint is %s", latest, newest.name
            )
            link(latest, newest)
            has_latest = True
    if config.resume == "never":
        if has_latest:
            raise ConfigError(
                f"resume=never: {run_dir} already holds a run ({latest.resolve().name}); continue it with "
                "resume=auto, choose another checkpoint_path, or delete the folder."
            )
        return None, False
    if config.resume == "auto":
        return (latest if has_latest else None), False
    given = Path(config.resume)
    is_own = given.resolve().parent == latest.parent.resolve()
    if is_own and not _has_gone_on(latest, given, config.resume):
        return given, True
    return (latest if has_latest else given), False


def _has_gone_on(latest: Path, given: Path, command: str) -> bool:
    """Whether the run was set back to `given` before, by the same words, and has saved its progress since."""
    if not latest.is_dir() or latest.resolve() == given.resolve():
        return False
    try:
        state = checkpoint.read_state(latest)
        return state.config["resume"] == command and state.step > checkpoint.read_state(given).step
    except InputError:
        return False


def check_same_run(
    state: CheckpointState, path: Path, config: TrainConfig, dataset: dict[str, Any], schedule: Schedule
) -> None:
    """Raise ConfigError unless a run with these settings and this dataset can go on from a checkpoint.

    At the last step it can if what changed does not matter to what has been trained.
    """
    last_step = schedule.last_step
    now, then = _fixed_settings(config.model_dump(mode="json")), _fixed_settings(state.config)
    problems = [
        f"{key} is {now.get(key)!r}, the checkpoint has {then.get(key)!r}"
        for key in sorted(now | then)
        if now.get(key) != then.get(key)
    ]
    if state.dataset != dataset:
        problems.append(f"data_path={config.data_path} is not the dataset it was trained on")
    if problems:
        raise ConfigError(
            f"{path}: cannot go on with another run's checkpoint: {'; '.join(problems)}. Set them back, or "
            "start a new run with another checkpoint_path."
        )
    if state.step > last_step:
        raise ConfigError(
            f"{path}: is at step {state.step}, beyond the last step {last_step}; raise epochs or max_steps."
        )
    changes = of_the_result(changed_settings(state.config, config))
    if state.step == last_step and changes:
        limits = {"max_steps": config.max_steps, "epochs": schedule.total_steps}
        raised = " and ".join(key for key, limit in limits.items() if limit == last_step)
        raise ConfigError(
            f"{path}: is at the last step, {last_step}, so nothing can be trained with changed settings "
            f"({described(changes)}). Put them back, train a new run with another checkpoint_path, or raise {raised} "
            "to go on from here with the new settings."
        )


def report_changes(changes: Changes, step: int) -> None:
    """Log the settings that are not those of the checkpoint of a step."""
    if changes:
        log = logger.warning if of_the_result(changes) else logger.info
        collectives.log_once(log, f"changed settings from step {step} on: {described(changes)}")


def _fixed_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Settings that a resumed run must share with its checkpoint, with dotted keys."""
    return {
        key: value for key, value in flat_settings(config).items() if key in _FIXED or key.startswith("arch.")
    }


def environment(config: TrainConfig, device: torch.device) -> dict[str, str | int | bool]:
    """What bit-for-bit equality depends on beside the configuration."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "compile": config.compile,
        "world_size": collectives.world_size(),
        "engine": config.engine,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
    }


def warn_if_inexact(state: CheckpointState, now: dict[str, str | int | bool]) -> None:
    """Say so if going on will not be bit for bit."""
    then = state.environment
    changed = [
        f"{key} {then[key]}, now {value}" for key, value in now.items() if then.get(key, value) != value
    ]
    if changed:
        collectives.log_once(logger.info, f"equal up to rounding, not bit for bit: {'; '.join(changed)}")
