"""What the trainer asks of an engine: hold the trained network, turn losses into updates, give up its state."""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn


class Engine(Protocol):
    """One way to spread the network, its optimizer and its moving average over the ranks.

    State is exchanged whole and by name, so that a checkpoint does not know which engine wrote it:
    `weights.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME` and `ema.NAME`, with NAME as in the unwrapped network.
    """

    network: nn.Module
    """The module to call in place of the network given to the engine."""

    def backward(self, loss: Tensor) -> None:
        """Add this rank's gradient; the update uses the sum over ranks of the losses given here."""
        ...

    def step(self, lr: float) -> None:
        """Update the weights and their moving average, and clear the gradients."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Within this context the network has its averaged weights (its own, where there is no average)."""
        ...

    def full_state(self) -> dict[str, Tensor]:
        """Every tensor of the state, whole, in float32."""
        ...

    def load_full_state(self, state: dict[str, Tensor], num_updates: int) -> None:
        """Take over a full state after `num_updates` updates."""
        ...
