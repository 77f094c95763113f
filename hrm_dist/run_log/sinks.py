"""The sinks of a run: metrics.jsonl always, W&B and TensorBoard where asked for."""

import logging
from pathlib import Path
from typing import Any

from data_pipeline.base.extras import install_command
from hrm_dist.config import TrainConfig
from hrm_dist.run_log.draw_answers import can_draw
from hrm_dist.run_log.entry import Sink
from hrm_dist.run_log.metrics_file import FILE, JsonLines
from hrm_dist.run_log.tensorboard_events import TensorBoard
from hrm_dist.run_log.wandb_run import WandB
from hrm_dist.run_record import Dataset, Start

logger = logging.getLogger(__name__)


def facts_of(start: Start, dataset: Dataset, num_parameters: int) -> dict[str, Any]:
    """Return how a run came about, as run.json has it."""
    return {
        **start.model_dump(mode="json"),
        "dataset": dataset.model_dump(mode="json"),
        "num_parameters": num_parameters,
    }


def shows_pictures(config: TrainConfig) -> bool:
    """Return whether any sink takes pictures, and they can be drawn."""
    return (config.wandb_mode != "disabled" or config.tensorboard) and can_draw()


def open_sinks(
    config: TrainConfig,
    run_dir: Path,
    step: int,
    redone: tuple[str, ...],
    facts: dict[str, Any],
    wandb: WandB | None,
) -> list[Sink]:
    """Open them, on the main process.

    step: the one reached; redone: `train/` or `eval/` if its row of these is to come, whether or not an earlier process
    wrote it; wandb: has begun before anything was written.
    """
    sinks: list[Sink] = [JsonLines(run_dir / FILE, step, redone)]
    if wandb is not None:
        sinks.append(wandb)
    if config.tensorboard:
        sinks.append(TensorBoard(config, run_dir, step, facts, is_redone=bool(redone)))
    if len(sinks) > 1 and config.eval_interval is not None and not can_draw():
        logger.warning("no pictures of answers: Pillow is missing or too old; %s", install_command("report"))
    return sinks
