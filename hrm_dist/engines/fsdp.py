"""The engine that splits all trained state over the ranks (FSDP2, `fully_shard`).

That is weights, gradients, optimizer and moving average.
"""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from hrm_dist.config import TrainConfig
from hrm_dist.distributed import collectives
from hrm_dist.engines.base import InitModuleFn, LocalEngine, gather_units, named_parameters
from hrm_dist.tensor_shards import TensorShard


class FSDPEngine(LocalEngine):
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
        self._params = {name: cast(DTensor, param) for name, param in named_parameters(network).items()}
        super().__init__(network, [_own_rows(name, param) for name, param in self._params.items()], config)

    def warm_up_backward(self, forward_backward: Callable[[], None], *, is_wanted: bool) -> None:
        if is_wanted:
            forward_backward()
            for param in self._params.values():
                param.grad = None

    def _update(self) -> None:
        for name, param in self._params.items():
            grad = None if param.grad is None else cast(DTensor, param.grad).to_local()
            self._weights[name].data.grad = grad
            param.grad = None
        self._optimizer.step()
        self._optimizer.zero_grad()

    def tensor_shards(self) -> Iterator[TensorShard]:
        return (shard for shard in super().tensor_shards() if len(shard.data))


def _own_rows(name: str, param: DTensor) -> TensorShard:
    """Return this rank's rows of a parameter as a plain tensor, which the optimizer works on."""
    offset = _rows_before(param) * (param.numel() // param.shape[0])
    return TensorShard(name, tuple(param.shape), offset, param.to_local().detach())


def _rows_before(param: Tensor) -> int:
    """Count a parameter's rows on earlier ranks, as `Shard(0)` splits them: the last may have fewer, or none."""
    rows = param.shape[0]
    return min(rows, collectives.rank() * -(-rows // collectives.world_size()))


def _copy_own_rows(param: Tensor, values: Tensor) -> None:
    local = cast(DTensor, param).to_local()
    start = _rows_before(param)
    local.copy_(values[start : start + len(local)])
