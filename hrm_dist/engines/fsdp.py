"""The engine that splits weights, gradients, optimizer and moving average over the ranks (FSDP2, `fully_shard`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from hrm_dist import distributed
from hrm_dist.config import TrainConfig
from hrm_dist.optim import EMA, AdamATan2


class FSDPEngine:
    """Every parameter split by rows; whole only while it is used."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        device = next(network.parameters()).device
        self._mesh = init_device_mesh(device.type, (distributed.world_size(),))
        # The whole recurrence is one unit, so it is gathered once per segment, however many cycles that has.
        for module in (network.get_submodule("recurrence"), network):
            # Also the root: weights left whole after an evaluation would not be the averaged ones of the next.
            sharded = cast(FSDPModule, fully_shard(module, mesh=self._mesh, reshard_after_forward=True))
            # Gradients of the ranks add up (gloo knows no other reduction): each rank's loss is already divided
            # by the global batch size.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
        self.network = network
        self._params = {name: cast(DTensor, param) for name, param in network.named_parameters()}
        # The optimizer works on this rank's rows, as plain tensors.
        self._shards = {name: param.to_local().detach() for name, param in self._params.items()}
        self._optimizer = AdamATan2(
            self._shards.values(), config.lr, (config.beta1, config.beta2), config.weight_decay
        )
        self._ema = EMA(list(self._shards.values()), config.ema_rate) if config.ema else None

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> None:
        for name, param in self._params.items():
            self._shards[name].grad = None if param.grad is None else cast(DTensor, param.grad).to_local()
            param.grad = None
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
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
        for name, shard in self._shards.items():
            state[f"weights.{name}"] = self._whole(name, shard)
            for moment in ("exp_avg", "exp_avg_sq"):
                value = self._optimizer.state[shard].get(moment)
                state[f"{moment}.{name}"] = self._whole(
                    name, torch.zeros_like(shard) if value is None else value
                )
        if self._ema is not None:
            for name, average in zip(self._shards, self._ema.averages, strict=True):
                state[f"ema.{name}"] = self._whole(name, average)
        return state

    @torch.no_grad()
    def load_full_state(self, state: dict[str, Tensor], num_updates: int) -> None:
        for name, shard in self._shards.items():
            shard.copy_(self._own_rows(state[f"weights.{name}"]))
            for moment in ("exp_avg", "exp_avg_sq"):
                self._optimizer.state[shard][moment] = self._own_rows(state[f"{moment}.{name}"]).to(
                    shard.device, copy=True
                )
        for group in self._optimizer.param_groups:
            group["step"] = num_updates
        if self._ema is not None:
            for name, average in zip(self._shards, self._ema.averages, strict=True):
                average.copy_(self._own_rows(state[f"ema.{name}"]))

    def _whole(self, name: str, shard: Tensor) -> Tensor:
        param = self._params[name]
        sharded = DTensor.from_local(
            shard, self._mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
        )
        return sharded.full_tensor()

    def _own_rows(self, whole: Tensor) -> Tensor:
        """This rank's rows, as `Shard(0)` splits them: the last ranks may have fewer, or none."""
        parts = whole.chunk(distributed.world_size())
        rank = distributed.rank()
        return parts[rank] if rank < len(parts) else whole[:0]
