"""The engine of one process, and of many with a whole copy each (DistributedDataParallel)."""

from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hrm_dist import distributed
from hrm_dist.config import TrainConfig
from hrm_dist.engines.local_state import LocalState


# DDP checks that the return annotation is this very one.
def _sum_gradients(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Gradients of the ranks add up: each rank's loss is already divided by the global batch size."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


class DDPEngine:
    """Replicated weights, optimizer and moving average."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self._state = LocalState(dict(network.named_parameters()), config)
        self.network = network
        if distributed.world_size() > 1:
            # The initial weights are a function of the seed and the same everywhere.
            wrapped = DistributedDataParallel(network, init_sync=False, gradient_as_bucket_view=True)
            wrapped.register_comm_hook(None, _sum_gradients)
            self.network = wrapped

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> None:
        self._state.step(lr)
        self._state.clear_gradients(keep=True)  # they are views of DDP's buckets

    def averaged(self) -> AbstractContextManager[None]:
        return self._state.averaged()

    def full_state(self) -> dict[str, Tensor]:
        return self._state.full_state(lambda _, tensor: tensor)

    def load_full_state(self, state: dict[str, Tensor], num_updates: int) -> None:
        self._state.load_full_state(state, num_updates, own=lambda tensor: tensor)
