"""The engine that splits weights, gradients, optimizer and moving average over the ranks (FSDP2, `fully_shard`)."""

from contextlib import AbstractContextManager
from typing import cast

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from hrm_dist import distributed
from hrm_dist.config import TrainConfig
from hrm_dist.engines.local_state import LocalState


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
        rows = {name: param.to_local().detach() for name, param in self._params.items()}
        self._state = LocalState(rows, config)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> None:
        for name, param in self._params.items():
            grad = None if param.grad is None else cast(DTensor, param.grad).to_local()
            self._state.tensors[name].grad = grad
            param.grad = None
        self._state.step(lr)
        self._state.clear_gradients(keep=False)

    def averaged(self) -> AbstractContextManager[None]:
        return self._state.averaged()

    def full_state(self) -> dict[str, Tensor]:
        return self._state.full_state(self._whole)

    def load_full_state(self, state: dict[str, Tensor], num_updates: int) -> None:
        self._state.load_full_state(state, num_updates, self._own_rows)

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
