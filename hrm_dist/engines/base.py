"""What the trainer asks of an engine.

An engine holds the trained network, turns losses into updates, and gives up its state.

`Engine` is the interface and what all share, `LocalEngine` what the engines of torch do.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from hrm_dist.config import TrainConfig
from hrm_dist.optim import AdamATan2
from hrm_dist.tensor_shards import ReadFn, TensorShard, load_into

CopyFn = Callable[[Tensor, Tensor], object]
"""Overwrite a (perhaps split) parameter by a whole tensor."""
InitModuleFn = Callable[[str, nn.Module, CopyFn], None]
"""Give the parameters of one module, known by its name in the network, their initial values."""

PREFIX = "network"
"""Before the names of parameters in a state: the network's name in the model."""


OPTIMIZER = AdamATan2
"""What updates the weights, in every engine: a subclass has another `_update`."""


class Engine:
    """One way to spread the network, its optimizer and its moving average over the ranks.

    An engine is made of a network on the meta device, so that it never holds more than its share. State is
    exchanged as shards of tensors, by name, so a checkpoint does not know which engine wrote it: `model.NAME`,
    `exp_avg.NAME`, `exp_avg_sq.NAME` and `ema.NAME`, with NAME as in the model that has the network.
    """

    network: nn.Module
    """The module to call in place of the network given to the engine."""
    _optimizer: OPTIMIZER

    def warm_up_backward(self, forward_backward: Callable[[], None], *, is_wanted: bool) -> None:
        """Prepare for the first step of a process; may call `forward_backward`, of which only gradients stay.

        is_wanted: whether that call also serves others.
        """

    def set_requires_gradient_sync(self, is_last: bool) -> None:
        """Say, before the forward of each micro-batch of a step, whether it is the last one."""

    def backward(self, loss: Tensor) -> None:
        """Add this rank's gradient; the update uses the sum over ranks of the losses given here."""
        loss.backward()

    def step(self, lr: Tensor, finite: Tensor) -> Tensor:
        """Update the weights and their moving average, and clear the gradients.

        lr: [] float64. finite: whether this rank found nothing else than finite numbers (bool, on the device). Return
        whether the update was applied: on every rank, or, if a loss or gradient of any is not finite, on none.
        """
        self._optimizer.prepare(lr, finite)
        self._update()
        return self._optimizer.update_applied

    def ema_weights(self) -> AbstractContextManager[None]:
        """Let the network have its averaged weights within a context (its own, where there is no average)."""
        return self._optimizer.ema_weights(on_swap=self._weights_changed)

    def num_updates(self) -> int:
        """Return the number of updates so far."""
        return int(self._optimizer.num_updates.item())

    def tensor_shards(self) -> Iterator[TensorShard]:
        """Yield this rank's share of the state; the shares of all ranks are the whole state once."""
        return self._all_shards()

    @torch.no_grad()
    def load(self, read: ReadFn, num_updates: int) -> None:
        """Take over a state after `num_updates` updates."""
        for shard in self._all_shards():
            load_into(shard, read)
        self._optimizer.num_updates.fill_(num_updates)
        self._weights_changed()

    def _update(self) -> None:
        """Let the optimizer make its step, and clear the gradients."""
        raise NotImplementedError

    def _all_shards(self) -> Iterator[TensorShard]:
        """Yield views of all state that is here, whichever rank writes it."""
        raise NotImplementedError

    def _weights_changed(self) -> None:
        """Let the network compute with the weights that the optimizer holds now, if those are not its own."""


class LocalEngine(Engine):
    """What engines of torch have in common: AdamATan2 works on this rank's weights, which autograd gives gradients."""

    def __init__(self, network: nn.Module, shards: Sequence[TensorShard], config: TrainConfig) -> None:
        """shards: by name in a state; their data, of any shape, are the tensors to train."""
        self.network = network
        self._weights = {shard.key: shard for shard in shards}
        compiles = config.compiles_on(shards[0].data.device.type)
        weights = [shard.data for shard in shards]
        self._optimizer = OPTIMIZER(weights, **optimizer_settings(config), compiles=compiles)

    def _all_shards(self) -> Iterator[TensorShard]:
        for name, weight in self._weights.items():
            for kind, state in {"model": weight.data, **self._optimizer.state_of(weight.data)}.items():
                yield weight._replace(key=f"{kind}.{name}", data=state.detach().view(-1))


def optimizer_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the optimizer's arguments beside the tensors."""
    return {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
        "ema_rate": config.ema_rate if config.ema else None,
    }


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
