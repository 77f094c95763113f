"""What a rank holds of the trained state where torch splits it, or nobody: weights, AdamATan2, moving average."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from hrm_dist.config import TrainConfig
from hrm_dist.optim import EMA, AdamATan2

_MOMENTS = ("exp_avg", "exp_avg_sq")


class LocalState:
    """The optimizer and the moving average over this rank's tensors, which are whole or shards."""

    def __init__(self, tensors: Mapping[str, Tensor], config: TrainConfig) -> None:
        self.tensors = dict(tensors)
        self._optimizer = AdamATan2(
            self.tensors.values(), config.lr, (config.beta1, config.beta2), config.weight_decay
        )
        self._ema = EMA(list(self.tensors.values()), config.ema_rate) if config.ema else None

    def step(self, lr: float) -> None:
        """Update the tensors from their gradients, and then their average."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        if self._ema is not None:
            self._ema.update()

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

    def full_state(self, whole: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """The state as `Engine.full_state` gives it; `whole` makes a tensor like the one of that name whole."""
        state: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            state[f"weights.{name}"] = whole(name, tensor.detach())
            for moment in _MOMENTS:
                value = self._optimizer.state[tensor].get(moment)
                state[f"{moment}.{name}"] = whole(name, torch.zeros_like(tensor) if value is None else value)
        if self._ema is not None:
            for name, average in zip(self.tensors, self._ema.averages, strict=True):
                state[f"ema.{name}"] = whole(name, average)
        return state

    @torch.no_grad()
    def load_full_state(
        self, state: Mapping[str, Tensor], num_updates: int, own: Callable[[Tensor], Tensor]
    ) -> None:
        """Take over a full state; `own` cuts this rank's part out of a whole tensor."""
        for name, tensor in self.tensors.items():
            tensor.copy_(own(state[f"weights.{name}"]))
            for moment in _MOMENTS:
                part = own(state[f"{moment}.{name}"])
                self._optimizer.state[tensor][moment] = part.to(tensor.device, copy=True)
        for group in self._optimizer.param_groups:
            group["step"] = num_updates
        if self._ema is not None:
            for name, average in zip(self.tensors, self._ema.averages, strict=True):
                average.copy_(own(state[f"ema.{name}"]))
