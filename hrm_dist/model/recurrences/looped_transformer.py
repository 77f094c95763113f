"""A transformer in HRM's outer loop, without its hierarchy.

This is the ablation of ARC Prize (arcprize.org/blog/hrm-analysis).
Shapes: B sequences, S positions, D hidden_size.
"""

from torch import Tensor

from hrm_dist.model.layers import Level, Positions
from hrm_dist.model.recurrences.base import Recurrence, States


class LoopedTransformerRecurrence(Recurrence):
    """Refine z_H by one pass through every block per segment."""

    H_level: Level

    def forward(
        self, states: States, input_BSD: Tensor, positions: Positions, noise_keys: Tensor | None = None
    ) -> States:
        [z_H] = states
        return (self.settled(z_H, self.H_level(z_H, positions, input_BSD), noise_keys, 1, 0),)
