"""Weights & Biases, where rows of metrics also go. Whatever becomes of it once a run has begun, training goes on."""

import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from hrm_dist.config import TrainConfig

logger = logging.getLogger(__name__)

# How long W&B may take to begin, and to send what is left at the end; the rest stays in the run folder.
_TIMEOUT_S = 60.0
# How long after that until it counts as stuck, and how many rows wait for it until then.
_GRACE_S = 15.0
_MAX_WAITING = 1000


class WandB:
    """A run there, which continues under the same id after a restart. Of the main process alone."""

    def __init__(self, config: TrainConfig, run_dir: Path, step: int) -> None:
        """step: the one reached before.

        Raise InputError where W&B does not begin; a run that resumes goes on without the network, or without W&B.
        """
        self._first_step = step
        self._run: Any = None
        self._is_lost, self._losing = False, threading.Lock()
        self._waiting: queue.Queue[dict[str, float | int | str] | None] = queue.Queue(_MAX_WAITING)
        self._thread: threading.Thread | None = None
        env_mode = os.environ.get("WANDB_MODE")
        if env_mode not in (None, config.wandb_mode):
            logger.info("WANDB_MODE=%s: has no effect, since wandb_mode=%s", env_mode, config.wandb_mode)
        is_new = not (run_dir / "wandb").exists()
        try:
            self._run = _begin(config, run_dir, config.wandb_mode)
        except Exception as error:  # of many kinds, and none is worth a run
            if step == 0:
                if is_new:
                    shutil.rmtree(run_dir / "wandb", ignore_errors=True)
                mode, remedy = config.wandb_mode, "set wandb_mode=disabled"
                if mode == "online":
                    remedy += (
                        ", or offline and `wandb sync` later; `python -m launch.doctor` says whether its server "
                        "answers and there is a key"
                    )
                raise InputError(
                    f"wandb_mode={mode}: W&B does not begin ({_reason(error)}); {remedy}."
                ) from error
            logger.warning(
                "W&B does not begin (%s); its metrics stay in %s", _reason(error), run_dir / "wandb"
            )
            try:
                self._run = _begin(config, run_dir, "offline")
            except Exception as offline_error:
                self._lose(offline_error)

    def write(self, row: dict[str, float | int | str]) -> None:
        """Log a row, as soon as W&B takes it."""
        if self._is_lost or self._run is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._log_rows, daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(row)
        except queue.Full:
            self._lose(TimeoutError(f"{_MAX_WAITING:,} rows wait for it"))

    def close(self) -> None:
        """Send what is left."""
        if self._thread is not None and not self._is_lost:
            with suppress(queue.Full):
                self._waiting.put_nowait(None)
            self._thread.join(_GRACE_S)
            if self._thread.is_alive():
                self._lose(TimeoutError("it takes no rows"))
        run = self._run
        if run is not None and not _ends(lambda: self._try(run.finish), _TIMEOUT_S + _GRACE_S):
            self._lose(TimeoutError("it does not end"))

    def _log_rows(self) -> None:
        # A process of W&B that hangs, or its disk, blocks `log`.
        while (row := self._waiting.get()) is not None and (run := self._run) is not None:
            step = int(row["step"])
            # Rows of one step become one. But the step at which an earlier process stopped is closed: what is made up
            # for it goes with the next.
            self._try(run.log, row, step=step + 1 if step == self._first_step else step)

    def _try(self, call: Callable[..., object], *values: object, **more: object) -> None:
        try:
            call(*values, **more)
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        with self._losing:
            if self._is_lost:
                return
            self._is_lost = True
        logger.warning(
            "W&B is gone (%s); training goes on without it, and metrics.jsonl has all rows", _reason(error)
        )
        self._run = None
        # Or it would try once more when the process ends, and print a traceback, or hang.
        threading.Thread(target=_tear_down, daemon=True).start()


def _tear_down() -> None:
    with suppress(Exception):
        import wandb

        wandb.teardown()


def _ends(call: Callable[[], None], within_s: float) -> bool:
    """Call in a thread that is left behind if it takes too long; return whether it has ended."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(within_s)
    return not thread.is_alive()


def _begin(config: TrainConfig, run_dir: Path, mode: str) -> Any:
    import wandb  # slow, and rarely wanted

    run_id_file = run_dir / "wandb_run_id"
    known = run_id_file.read_text().strip() if run_id_file.exists() else None
    limits = {"init_timeout": _TIMEOUT_S, "finish_timeout": _TIMEOUT_S}  # earlier versions lack the second
    run_dir.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=config.project_name or "hrm-dist",
        name=config.run_name or run_dir.resolve().name,
        id=known,
        resume="allow",
        mode="offline" if mode == "offline" else "online",
        dir=str(run_dir),
        config=config.model_dump(mode="json"),
        settings={name: limit for name, limit in limits.items() if name in wandb.Settings.model_fields},
    )
    replace_file(run_id_file, run.id.encode())
    return run


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
