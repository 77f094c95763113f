"""The engine that splits weights, gradients, optimizer and moving average over the ranks (FSDP2, `fully_shard`)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from hrm_dist.config import TrainConfig
from hrm_dist.distributed import collectives
from hrm_dist.engines.base import InitModuleFn, gather_units, named_parameters
from hrm_dist.engines.optimizer_state import LocalState
from hrm_dist.tensor_shards import ReadFn, TensorShard


class FSDPEngine:
    """Every parameter split by rows; whole only while it is used."""

    def __init__(
        self, network: nn.Module, config: TrainConfig, device: torch.device, init_module: InitModuleFn
    ) -> None:
        mesh = init_device_mesh(device.type, (collectives.world_size(),))
        for module in (*gather_units(network, config.gather_unit), network):
            # Also the root: weights left whole after an evaluation would not be the averaged ones of the next.
            sharded = cast(FSDPModule, fully_shard(module, mesh=mesh, reshard_after_forward=True))
            # Gradients of the ranks add up (gloo knows no other reduction): each rank's loss is already divided
            # by the global batch size.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
        network.to_empty(device=device)
        for name, module in network.named_modules():
            init_module(name, module, _copy_own_rows)
        self.network = network
        self._params = {name: cast(DTensor, param) for name, param in named_parameters(network).items()}
        # The optimizer works on this rank's rows, as plain tensors.
        shards = {
            name: TensorShard(
                name,
                tuple(param.shape),
                _rows_before(param) * (param.numel() // param.shape[0]),
                param.to_local().detach(),
            )
            for name, param in self._params.items()
        }
        self._state = LocalState(shards, config)

    def warm_up_backward(self, forward_backward: Callable[[], None]) -> None:
        """Do nothing: every step is computed in the same way."""

    def set_requires_gradient_sync(self, is_last: bool) -> None:
        """Do nothing: the gradients of every part are summed over the ranks, so that none is kept whole."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float, finite: Tensor) -> Tensor:
        for name, param in self._params.items():
            grad = None if param.grad is None else cast(DTensor, param.grad).to_local()
            self._state.tensors[name].grad = grad
            param.grad = None
        update_applied = self._state.step(lr, finite)
        self._state.clear_gradients(keep=False)
        return update_applied

    def ema_weights(self) -> AbstractContextManager[None]:
        return self._state.ema_weights()

    def num_updates(self) -> int:
        return self._state.num_updates()

    def tensor_shards(self) -> Iterator[TensorShard]:
        return self._state.tensor_shards(name for name, rows in self._state.tensors.items() if rows.numel())

    def load(self, read: ReadFn, num_updates: int) -> None:
        self._state.load(read, num_updates)


def _rows_before(param: Tensor) -> int:
    """Count a parameter's rows on earlier ranks, as `Shard(0)` splits them: the last may have fewer, or none."""
    rows = param.shape[0]
    return min(rows, collectives.rank() * -(-rows // collectives.world_size()))


@torch.no_grad()
def _copy_own_rows(param: Tensor, values: Tensor) -> None:
    local = cast(DTensor, param).to_local()
    start = _rows_before(param)
    local.copy_(values[start : start + len(local)])
