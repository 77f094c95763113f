"""One training run per run folder at a time."""

import logging
import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from data_pipeline.base import locks
from data_pipeline.base.files import make_folder
from hrm_dist.config import ConfigError

logger = logging.getLogger(__name__)

# A job that Slurm has started again: its old processes may still be dying, and NFS lets go of a lost node's locks after
# 90 seconds.
_RESTARTED_WAITS_S = 300.0


def refuse_foreign(run_dir: Path) -> None:
    """Raise ConfigError for a folder that is something else than a run's, or that goes when a checkpoint is deleted."""
    folder = Path(os.path.realpath(run_dir))
    in_checkpoint = [above for above in (folder, *folder.parents) if (above / "state.json").is_file()]
    what = None
    if (folder / "dataset.json").is_file():
        what = "is a dataset"
    elif in_checkpoint:
        what = f"is or lies in a checkpoint, {in_checkpoint[0]}"
    elif folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file():
        what = f"holds the checkpoints of the run {folder.parent}"
    if what is not None:
        raise ConfigError(
            f"checkpoint_path={run_dir}: {what}; a run needs a folder of its own (to go on from a checkpoint: "
            "resume=CHECKPOINT)."
        )


@contextmanager
def locked(run_dir: Path) -> Generator[None]:
    """Hold the run folder, which is made if missing; ConfigError if another process does.

    The lock is that of `.lock` in the folder. At the end the file goes, and so do folders made for a run that wrote
    nothing. A job that Slurm has started again waits for it.
    """
    refuse_foreign(run_dir)
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    is_restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"

    def log_wait(owner: str) -> None:
        logger.info(
            "checkpoint_path=%s: this job was started again, and what may be its old processes still train here (%s); "
            "waiting for their end, up to %.0f s", run_dir, owner, _RESTARTED_WAITS_S,
        )  # fmt: skip

    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            make_folder(run_dir)
            wait_s = _RESTARTED_WAITS_S if is_restarted else 0
            is_safe = stack.enter_context(locks.hold(run_dir / ".lock", wait_s, log_wait))
        except locks.LockedError as error:
            raise ConfigError(
                f"checkpoint_path={run_dir}: another run trains here ({error}); wait for its end, stop it, or choose "
                "another checkpoint_path."
            ) from error
        except OSError as error:
            raise ConfigError(
                f"checkpoint_path={run_dir}: cannot be made or written ({error.strerror}); choose another folder."
            ) from error
        if not is_safe:
            logger.warning("%s: this file system has no locks; start only one run in the folder", run_dir)
        yield


def holder(run_dir: Path) -> str | None:
    """Return host and process that hold the run folder, if another process does and the file system can tell."""
    return locks.holder(run_dir / ".lock")


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # something was written
        for folder in folders:
            folder.rmdir()
