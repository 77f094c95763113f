"""The engine of one process, and of many with a whole copy each (DistributedDataParallel)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hrm_dist import distributed
from hrm_dist.config import TrainConfig
from hrm_dist.optim import EMA, AdamATan2


# DDP checks that the return annotation is this very one.
def _sum_gradients(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Gradients of the ranks add up: each rank's loss is already divided by the global batch size."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


class DDPEngine:
    """Replicated weights, optimizer and moving average."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self._params = dict(network.named_parameters())
        self._optimizer = AdamATan2(
            self._params.values(), config.lr, (config.beta1, config.beta2), config.weight_decay
        )
        self._ema = EMA(list(self._params.values()), config.ema_rate) if config.ema else None
        self.network = network
        if distributed.world_size() > 1:
            # The initial weights are a function of the seed and the same everywhere.
            wrapped = DistributedDataParallel(network, init_sync=False, gradient_as_bucket_view=True)
            wrapped.register_comm_hook(None, _sum_gradients)
            self.network = wrapped

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        if self._ema is not None:
            self._ema.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self._ema is None:
            yield
            return
        self._ema.swap()
        try:
            yield
        finally:
            self._ema.swap()

    def full_state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name, param in self._params.items():
            state[f"weights.{name}"] = param.detach()
            for moment in ("exp_avg", "exp_avg_sq"):
                value = self._optimizer.state[param].get(moment)
                state[f"{moment}.{name}"] = torch.zeros_like(param) if value is None else value
        if self._ema is not None:
            state |= {f"ema.{name}": a for name, a in zip(self._params, self._ema.averages, strict=True)}
        return state

    @torch.no_grad()
    def load_full_state(self, state: dict[str, Tensor], num_updates: int) -> None:
        for name, param in self._params.items():
            param.copy_(state[f"weights.{name}"])
            for moment in ("exp_avg", "exp_avg_sq"):
                self._optimizer.state[param][moment] = state[f"{moment}.{name}"].to(param.device, copy=True)
        for group in self._optimizer.param_groups:
            group["step"] = num_updates
        if self._ema is not None:
            for name, average in zip(self._params, self._ema.averages, strict=True):
                average.copy_(state[f"ema.{name}"])
