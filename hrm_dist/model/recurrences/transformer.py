"""Direct prediction, the baseline of HRM's paper: one pass of a transformer.

Nothing is carried to another pass. Shapes: B sequences, S positions, D hidden_size.
"""

from torch import Tensor

from hrm_dist.model.layers import Level, Positions
from hrm_dist.model.recurrences.base import Recurrence, States


class TransformerRecurrence(Recurrence):
    """Run every block once on the embedded input."""

    H_level: Level

    def forward(
        self, states: States, input_BSD: Tensor, positions: Positions, noise_keys: Tensor | None = None
    ) -> States:
        return (self.H_level(input_BSD, positions),)
