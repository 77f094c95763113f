"""HRM's recurrence: a slow module H and a fast module L refine z_H and z_L.

Published in arXiv 2506.21734. Shapes: B sequences, S positions, D hidden_size.
"""

from torch import Tensor

from hrm_dist.model.layers import Level, Positions
from hrm_dist.model.recurrences.base import Recurrence, States


def refine(
    recurrence: Recurrence,
    H_level: Level,
    L_level: Level,
    states: States,
    input_BSD: Tensor,
    positions: Positions,
    noise_keys: Tensor | None,
) -> States:
    """Run a segment's N = H_cycles slow updates of T = L_cycles fast updates each."""

    def update(number: int, states: States) -> States:
        z_H, z_L = states
        z_L = recurrence.settled(z_L, L_level(z_L, positions, z_H, input_BSD), noise_keys, number, 1)
        if number % recurrence.arch.L_cycles == 0:
            z_H = recurrence.settled(z_H, H_level(z_H, positions, z_L), noise_keys, number, 0)
        return z_H, z_L

    return recurrence.run_updates(update, states)


class HRMRecurrence(Recurrence):
    """Two networks ("Hierarchical Reasoning Model"); published with gradient in the last update of each."""

    H_level: Level
    L_level: Level

    def forward(
        self, states: States, input_BSD: Tensor, positions: Positions, noise_keys: Tensor | None = None
    ) -> States:
        return refine(self, self.H_level, self.L_level, states, input_BSD, positions, noise_keys)
