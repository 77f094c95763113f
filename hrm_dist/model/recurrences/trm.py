"""TRM's recurrence (arXiv 2510.04871): HRM's with one network in both roles.

Shapes: B sequences, S positions, D hidden_size.
"""

from torch import Tensor

from hrm_dist.model.layers import Level, Positions
from hrm_dist.model.recurrences.base import Recurrence, States
from hrm_dist.model.recurrences.hrm import refine


class TRMRecurrence(Recurrence):
    """Refine the latent z_L, then the answer z_H; published with gradient in the last cycle."""

    L_level: Level

    def forward(
        self, states: States, input_BSD: Tensor, positions: Positions, noise_keys: Tensor | None = None
    ) -> States:
        return refine(self, self.L_level, self.L_level, states, input_BSD, positions, noise_keys)
