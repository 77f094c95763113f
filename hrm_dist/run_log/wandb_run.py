"""Weights & Biases: curves, settings, scores and pictures of a run. Whatever becomes of it, training goes on."""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from hrm_dist.config import TrainConfig
from hrm_dist.run_log.background import TIMEOUT_S, Background, reason
from hrm_dist.run_log.entry import Entry
from hrm_dist.run_log.metrics_file import FILE, LastSteps, last_steps
from hrm_dist.run_log.score_table import ScoreLine

logger = logging.getLogger(__name__)

_ID_FILE = "wandb_run_id"


class WandB:
    """A run there, which continues under the same id after a restart. Of the main process alone."""

    def __init__(
        self, config: TrainConfig, run_dir: Path, step: int, facts: dict[str, Any], *, continues: bool
    ) -> None:
        """step: the one reached before; facts: how the run came about; continues: whether it goes on from there.

        Raise InputError where W&B does not begin; a run that continues does so without the network, or without W&B.
        """
        self._run: Any = None
        self._curves: set[str] = set()
        self._known = LastSteps()
        self._background = Background("W&B", self._log, self._finish, self._tear_down)
        env_mode = os.environ.get("WANDB_MODE")
        if env_mode not in (None, config.wandb_mode):
            logger.info("WANDB_MODE=%s: has no effect, since wandb_mode=%s", env_mode, config.wandb_mode)
        known_id = _known_id(run_dir) if continues else None
        if known_id is not None:
            self._known = last_steps(run_dir / FILE)
        is_new = not (run_dir / "wandb").exists()
        try:
            self._run = _begin(config, run_dir, config.wandb_mode, facts, known_id)
        except Exception as error:  # of many kinds, and none is worth a run
            if step == 0:
                if is_new:
                    shutil.rmtree(run_dir / "wandb", ignore_errors=True)
                raise InputError(_refusal(config.wandb_mode, error)) from error
            logger.warning(
                "W&B does not begin (%s); its metrics stay in %s", reason(error), run_dir / "wandb"
            )
            try:
                self._run = _begin(config, run_dir, "offline", facts, known_id)
            except Exception as offline_error:
                self._background.lose(offline_error)

    def write(self, entry: Entry) -> None:
        """Log an entry, as soon as W&B takes it.

        Nothing can be taken back there: what an earlier process has logged beyond the checkpoint stays, and is not
        logged twice.
        """
        is_evaluation = any(key.startswith("eval/") for key in entry.values)
        known = self._known.of_scores if is_evaluation else self._known.of_training
        if entry.step > known:
            self._background.write(entry)

    def flush(self) -> None:
        """Do nothing: no checkpoint waits for W&B."""

    def close(self) -> None:
        """Send what is left."""
        self._background.close()

    def _log(self, entry: Entry) -> None:
        # A process of W&B that hangs, or its disk, blocks what is called here.
        import wandb

        run = self._run
        for name in entry.values:
            if name not in self._curves:
                self._curves.add(name)
                run.define_metric(name, step_metric="step", summary=_summary(name))
        values: dict[str, Any] = {"step": entry.step, **entry.values}
        if entry.scores:
            rows = [list(line) for line in entry.scores]
            values["scores"] = wandb.Table(columns=list(ScoreLine._fields), data=rows)
        for picture in entry.pictures:
            values[f"grids/{picture.name}"] = wandb.Image(picture.pixels, caption=picture.caption)
        # Entries of one step become one. But the step at which an earlier process stopped is closed: what is made up
        # for it goes with the next.
        run.log(values, step=max(entry.step, max(self._known) + 1))

    def _finish(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _tear_down(self) -> None:
        # Or it would try once more when the process ends, and print a traceback, or hang.
        self._run = None
        import wandb

        wandb.teardown()


def _summary(name: str) -> str:
    """Return what a table of runs shows of a curve: how it ended, and how good it was at its best."""
    if name.endswith("loss"):
        return "min,last"
    return "max,last" if name.startswith("eval/") or name.endswith("accuracy") else "last"


def _refusal(mode: str, error: Exception) -> str:
    remedy = "set wandb_mode=disabled"
    if mode == "online":
        remedy += (
            ", or offline and `wandb sync` later; `python -m launch.doctor` says whether its server answers and there "
            "is a key"
        )
    return f"wandb_mode={mode}: W&B does not begin ({reason(error)}); {remedy}."


def _known_id(run_dir: Path) -> str | None:
    with suppress(OSError):
        return (run_dir / _ID_FILE).read_text().strip() or None
    return None


def _begin(config: TrainConfig, run_dir: Path, mode: str, facts: dict[str, Any], known_id: str | None) -> Any:
    import wandb  # slow, and rarely wanted

    limits = {"init_timeout": TIMEOUT_S, "finish_timeout": TIMEOUT_S}  # earlier versions lack the second
    run_dir.mkdir(parents=True, exist_ok=True)
    # Tables are artifacts too, of which a copy waits to be sent: by default in the home directory.
    os.environ.setdefault("WANDB_DATA_DIR", str((run_dir / "wandb" / "data").resolve()))
    run = wandb.init(
        project=config.project_name or "hrm-dist",
        name=config.run_name or run_dir.resolve().name,
        id=known_id,
        resume="allow",
        mode="offline" if mode == "offline" else "online",
        dir=str(run_dir),
        config=config.model_dump(mode="json") | {"run": facts},
        settings={name: limit for name, limit in limits.items() if name in wandb.Settings.model_fields},
    )
    replace_file(run_dir / _ID_FILE, run.id.encode())
    run.define_metric("step", hidden=True)
    return run
