"""What a rank holds of the trained state where torch splits it, or nobody: weights, and AdamATan2 with its average."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from hrm_dist.config import TrainConfig
from hrm_dist.optim import AdamATan2
from hrm_dist.tensor_shards import ReadFn, TensorShard, load_into


def optimizer_settings(config: TrainConfig) -> dict[str, Any]:
    """Return AdamATan2's arguments beside the tensors."""
    return {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
        "ema_rate": config.ema_rate if config.ema else None,
    }


class LocalState:
    """Hold the weights of this rank and their optimizer."""

    def __init__(self, shards: Mapping[str, TensorShard], config: TrainConfig) -> None:
        """shards: by name in a state; their data, of any shape, are the tensors to train."""
        self.tensors = {name: shard.data for name, shard in shards.items()}
        self._shards = shards
        self._optimizer = AdamATan2(self.tensors.values(), **optimizer_settings(config))

    def step(self, lr: float, finite: Tensor) -> Tensor:
        """Update the weights from their gradients; see `Engine.step`."""
        self._optimizer.prepare(lr, finite)
        self._optimizer.step()
        return self._optimizer.update_applied

    def clear_gradients(self, *, keep: bool) -> None:
        """Set the gradients to zero, or let go of them."""
        self._optimizer.zero_grad(set_to_none=not keep)

    def ema_weights(self) -> AbstractContextManager[None]:
        return self._optimizer.ema_weights()

    def num_updates(self) -> int:
        return int(self._optimizer.num_updates.item())

    def tensor_shards(self, names: Iterable[str]) -> Iterator[TensorShard]:
        """Yield views of the weights of these names, and of what the optimizer keeps for them."""
        for name in names:
            tensor = self.tensors[name]
            for kind, state in {"model": tensor, **self._optimizer.state_of(tensor)}.items():
                yield self._shards[name]._replace(key=f"{kind}.{name}", data=state.detach().view(-1))

    def load(self, read: ReadFn, num_updates: int) -> None:
        for shard in self.tensor_shards(self.tensors):
            load_into(shard, read)
        self._optimizer.num_updates.fill_(num_updates)
