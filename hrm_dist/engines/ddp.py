"""The engine of one process, and of many with a whole copy each (DistributedDataParallel)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hrm_dist.config import TrainConfig
from hrm_dist.distributed import collectives
from hrm_dist.engines.base import InitModuleFn, copy_whole, named_parameters
from hrm_dist.engines.optimizer_state import LocalState
from hrm_dist.tensor_shards import ReadFn, TensorShard, partition_by_size


# DDP checks that the return annotation is this very one.
def _sum_gradients(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Gradients of the ranks add up: each rank's loss is already divided by the global batch size."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


class DDPEngine:
    """Replicated weights, optimizer and moving average."""

    def __init__(
        self, network: nn.Module, config: TrainConfig, device: torch.device, init_module: InitModuleFn
    ) -> None:
        network.to_empty(device=device)
        for name, module in network.named_modules():
            init_module(name, module, copy_whole)
        shards = {
            name: TensorShard(name, tuple(param.shape), 0, param)
            for name, param in named_parameters(network).items()
        }
        self._state = LocalState(shards, config)
        self.network, self._ddp = network, None
        if collectives.world_size() > 1:
            # The initial weights are a function of the seed and the same everywhere.
            self._ddp = DistributedDataParallel(network, init_sync=False, gradient_as_bucket_view=True)
            self._ddp.register_comm_hook(None, _sum_gradients)
            self.network = self._ddp

    def warm_up_backward(self, forward_backward: Callable[[], None]) -> None:
        # After a process's first backward DDP lays out its buckets anew, by when gradients came. In a sum over more
        # than two ranks the position in a bucket decides on rounding: no step may be made with the first layout.
        if self._ddp is not None:
            forward_backward()
            self._state.clear_gradients(keep=True)

    def set_requires_gradient_sync(self, is_last: bool) -> None:
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = is_last  # as DDP's no_sync() does

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float, finite: Tensor) -> Tensor:
        update_applied = self._state.step(lr, finite)
        self._state.clear_gradients(keep=True)  # they are views of DDP's buckets
        return update_applied

    def ema_weights(self) -> AbstractContextManager[None]:
        return self._state.ema_weights()

    def num_updates(self) -> int:
        return self._state.num_updates()

    def tensor_shards(self) -> Iterator[TensorShard]:
        # Every rank has everything, and writes some.
        sizes = {name: tensor.numel() for name, tensor in self._state.tensors.items()}
        writer_of = partition_by_size(sizes, collectives.world_size())
        return self._state.tensor_shards(name for name in sizes if writer_of[name] == collectives.rank())

    def load(self, read: ReadFn, num_updates: int) -> None:
        self._state.load(read, num_updates)
