"""Sums of metrics on the device, and the rows they become. Where rows go: hrm_dist/run_log."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hrm_dist.distributed import collectives
from hrm_dist.model.losses import total_loss

Row = dict[str, float | int | str]

# In the order of checkpoints that do not name their sums; whatever else `act_loss` returns comes behind.
_FIRST_SUMS = (
    "num_steps", "count", "accuracy", "exact_accuracy", "q_halt_accuracy", "steps",
    "lm_loss", "q_halt_loss", "q_continue_loss", "skipped_updates",
)  # fmt: skip
_NAMES_IN_ROW = {"accuracy": "cell_accuracy", "steps": "segments"}


class MetricSums:
    """Sums of all metrics over the steps since the last logged row; nothing waits for the device before `row`."""

    def __init__(self, device: torch.device) -> None:
        self.names: list[str] = list(_FIRST_SUMS)
        self.values = torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def add(self, metrics: dict[str, Tensor], update_applied: Tensor) -> None:
        """Add a step's sums if its update was applied (bool, on the device): others are not finite, and counted."""
        self._extend([name for name in metrics if name not in self.names])
        zero = self.values.new_zeros(())
        share = zero + 1 / collectives.world_size()
        values, of_skipped = (
            torch.stack([step.get(name, zero).to(torch.float64) for name in self.names])
            for step in ({"num_steps": share, **metrics}, {"skipped_updates": share})
        )
        self.values += torch.where(update_applied, values, of_skipped)

    def total(self) -> list[float]:
        """Return the sums over all ranks."""
        return collectives.sum_over_ranks(self.values).tolist()

    def _extend(self, names: Sequence[str]) -> None:
        """Begin sums for names that have none yet."""
        if not names:  # a recorded step knows the sums by their place
            return
        self.names += names
        self.values = torch.cat((self.values, self.values.new_zeros(len(names))))

    def load(self, values: Tensor, names: Sequence[str] = ()) -> None:
        """Take over this rank's share of the sums of these names; a checkpoint without names has the first ones."""
        self.names = list(names or _FIRST_SUMS)[: len(values)]
        self.values = values.to(self.values)
        self._extend([name for name in _FIRST_SUMS if name not in self.names])

    def row(self, global_batch_size: int) -> Row:
        """Return averages over the steps summed up, over all ranks, and start anew.

        Losses are per sequence of the global batch (not a number where no update was applied), all other metrics per
        sequence that halted (0 when none did).
        """
        sums = dict(zip(self.names, self.total(), strict=True))
        self.values.zero_()
        skipped, count = sums.pop("skipped_updates"), sums.pop("count")
        sequences, halted = round(sums.pop("num_steps")) * global_batch_size or math.nan, max(count, 1)
        row: Row = {"train/loss": total_loss(sums) / sequences}
        for name, value in sums.items():
            divisor = sequences if name.endswith("_loss") else halted
            row[f"train/{_NAMES_IN_ROW.get(name, name)}"] = value / divisor
        return row | {"train/halted": count / sequences, "train/skipped_updates": round(skipped)}
