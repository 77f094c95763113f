"""What is due at which step of a run. A step is named by its number when it is completed; the first is 1."""

import math

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import TrainConfig, total_steps


class Schedule:
    """Know the last step, those with a row of metrics, an evaluation or a checkpoint, and the learning rate of each."""

    def __init__(self, config: TrainConfig, metadata: DatasetMetadata) -> None:
        self._config = config
        self.total_steps = total_steps(config, metadata)
        """Over which the learning rate decays; `last_step` may come before."""
        self.last_step = min(self.total_steps, config.max_steps or self.total_steps)
        self._eval_every: int | None = None
        if config.eval_interval is not None:
            every = max(1, round(self.total_steps * config.eval_interval / config.epochs))
            interval = config.log_interval
            # On a logged step where that is near, so that no row of metrics covers only a few steps.
            self._eval_every = every if every < interval else round(every / interval) * interval

    def is_last(self, step: int) -> bool:
        return step == self.last_step

    def evaluates(self, step: int) -> bool:
        return self._due(step, self._eval_every)

    def logs(self, step: int) -> bool:
        """Return whether the step writes a row of metrics; every step with an evaluation does."""
        return self._due(step, self._config.log_interval) or self.evaluates(step)

    def saves(self, step: int) -> bool:
        """Return whether the step writes a checkpoint; every step with an evaluation and the last step do."""
        return self._due(step, self._config.checkpoint_interval) or self.evaluates(step) or self.is_last(step)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step's update of the weights, 0 where only the puzzle table is trained."""
        step -= self._config.table_only_steps
        return (
            self._rate(step, self._config.lr, self.total_steps - self._config.table_only_steps)
            if step > 0
            else 0.0
        )

    def table_lr(self, step: int) -> float:
        """Return the learning rate of a step's update of the puzzle table."""
        return self._rate(step, self._config.puzzle_emb_lr, self.total_steps)

    def _rate(self, step: int, base_lr: float, total_steps: int) -> float:
        return learning_rate(
            step, base_lr, self._config.lr_warmup_steps, total_steps, self._config.lr_min_ratio
        )

    def _due(self, step: int, interval: int | None) -> bool:
        return interval is not None and (step % interval == 0 or self.is_last(step))


def learning_rate(step: int, base_lr: float, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Return the rate of a step: a linear warm-up, then a half cosine from base_lr to min_ratio * base_lr."""
    if step < warmup_steps:
        return base_lr * step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base_lr * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
