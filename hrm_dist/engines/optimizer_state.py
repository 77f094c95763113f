"""What a rank holds of the trained state where torch splits it, or nobody: weights, AdamATan2, moving average."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from hrm_dist.config import TrainConfig
from hrm_dist.optim import EMA, AdamATan2
from hrm_dist.tensor_shards import Piece, Place, Read, fill


class LocalState:
    """The optimizer and the moving average over this rank's tensors, each a run of a whole one."""

    def __init__(
        self, tensors: Mapping[str, Tensor], places: Mapping[str, Place], config: TrainConfig
    ) -> None:
        self.tensors, self._places = dict(tensors), dict(places)
        self._optimizer = AdamATan2(
            self.tensors.values(), config.lr, (config.beta1, config.beta2), config.weight_decay
        )
        self._ema = EMA(list(self.tensors.values()), config.ema_rate) if config.ema else None
        self._averages = dict(zip(self.tensors, self._ema.averages, strict=True)) if self._ema else {}

    def step(self, lr: float, finite: Tensor) -> Tensor:
        """Update the tensors from their gradients, and then their average; see `Engine.step`."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.finite = finite
        self._optimizer.step()
        if self._ema is not None:
            self._ema.update(self._optimizer.finite)
        return self._optimizer.finite

    def clear_gradients(self, *, keep: bool) -> None:
        """Set the gradients to zero, or let go of them."""
        self._optimizer.zero_grad(set_to_none=not keep)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the tensors hold their averages, where there are any."""
        if self._ema is None:
            yield
            return
        self._ema.swap()
        try:
            yield
        finally:
            self._ema.swap()

    def num_updates(self) -> int:
        return int(self._optimizer.num_updates.item())

    def pieces(self, names: Collection[str]) -> Iterator[Piece]:
        """The state of the tensors of these names."""
        for name in names:
            for kind, tensor in self._states_of(name).items():
                yield Piece(f"{kind}.{name}", self._places[name], tensor.detach().reshape(-1))

    def load(self, read: Read, num_updates: int) -> None:
        for name in self.tensors:
            for kind, tensor in self._states_of(name).items():
                fill(tensor, self._places[name].start, f"{kind}.{name}", read)
        self._optimizer.num_updates.fill_(num_updates)

    def _states_of(self, name: str) -> dict[str, Tensor]:
        tensor = self.tensors[name]
        exp_avg, exp_avg_sq = self._optimizer.moments(tensor)
        states = {"model": tensor, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        if name in self._averages:
            states["ema"] = self._averages[name]
        return states


@torch.no_grad()
def copy_whole(parameter: Tensor, values: Tensor) -> None:
    """Overwrite a parameter that is whole on this rank."""
    parameter.copy_(values)
