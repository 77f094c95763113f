"""What the trainer asks of an engine: hold the trained network, turn losses into updates, give up its state."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from hrm_dist.tensor_shards import ReadFn, TensorShard

CopyFn = Callable[[Tensor, Tensor], None]
"""Overwrite a (perhaps split) parameter by a whole tensor."""
InitModuleFn = Callable[[str, nn.Module, CopyFn], None]
"""Give the parameters of one module, known by its name in the network, their initial values."""

PREFIX = "network"
"""Before the names of parameters in a state: the network's name in the model."""


class Engine(Protocol):
    """One way to spread the network, its optimizer and its moving average over the ranks.

    An engine is made of a network on the meta device, so that it never holds more than its share. State is
    exchanged as shards of tensors, by name, so a checkpoint does not know which engine wrote it: `model.NAME`,
    `exp_avg.NAME`, `exp_avg_sq.NAME` and `ema.NAME`, with NAME as in the model that has the network.
    """

    network: nn.Module
    """The module to call in place of the network given to the engine."""

    def warm_up_backward(self, forward_backward: Callable[[], None]) -> None:
        """Call before the first step of a process; it may call `forward_backward`, which has no effect on the state."""
        ...

    def set_requires_gradient_sync(self, is_last: bool) -> None:
        """Call before the forward of each part of a step's batch, saying whether it is the last one."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add this rank's gradient; the update uses the sum over ranks of the losses given here."""
        ...

    def step(self, lr: float, finite: Tensor) -> Tensor:
        """Update the weights and their moving average, and clear the gradients.

        finite: whether this rank found nothing else than finite numbers (bool, on the device). Return whether the
        update was applied: on every rank, or, if a loss or gradient of any is not finite, on none.
        """
        ...

    def ema_weights(self) -> AbstractContextManager[None]:
        """Let the network have its averaged weights within a context (its own, where there is no average)."""
        ...

    def num_updates(self) -> int:
        """Return the number of updates so far."""
        ...

    def tensor_shards(self) -> Iterator[TensorShard]:
        """Yield this rank's share of the state; the shares of all ranks are the whole state once."""
        ...

    def load(self, read: ReadFn, num_updates: int) -> None:
        """Take over a state after `num_updates` updates."""
        ...


def named_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the network's parameters under their names in a state."""
    return dict(network.named_parameters(prefix=PREFIX))


def gather_units(network: nn.Module, gather_unit: str) -> list[nn.Module]:
    """Return the modules whose weights are gathered together, in an engine that splits them.

    loop: the recurrence, gathered once per segment, however many cycles it has. level: each of its levels,
    gathered once per update. layer: each block of them.
    """
    recurrence = network.get_submodule("recurrence")
    if gather_unit == "loop":
        return [recurrence]
    levels = list(recurrence.children())
    if gather_unit == "level":
        return levels
    return [layer for level in levels for layer in level.get_submodule("layers").children()]


@torch.no_grad()
def copy_whole(parameter: Tensor, values: Tensor) -> None:
    """Overwrite a parameter that is whole on this rank."""
    parameter.copy_(values)
