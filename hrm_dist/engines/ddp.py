"""The engine that keeps a whole copy on every rank (DistributedDataParallel).

It is also the engine of a run with one process.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hrm_dist.config import TrainConfig
from hrm_dist.cuda_graph import why_plain
from hrm_dist.distributed import collectives
from hrm_dist.engines.base import InitModuleFn, LocalEngine, named_parameters
from hrm_dist.tensor_shards import TensorShard, partition_by_size


# DDP checks that the return annotation is this very one.
def _sum_gradients(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum the gradients over the ranks; each rank's loss is already divided by the global batch size."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


class DDPEngine(LocalEngine):
    """Replicate weights, optimizer and moving average on every rank."""

    def __init__(
        self, network: nn.Module, config: TrainConfig, device: torch.device, init_module: InitModuleFn
    ) -> None:
        """Where steps are recorded, gradients are summed by one collective after the backward, without DDP."""
        network.to_empty(device=device)
        for name, module in network.named_modules():
            init_module(name, module, Tensor.copy_)
        params = named_parameters(network)
        shards = [TensorShard(name, tuple(param.shape), 0, param) for name, param in params.items()]
        super().__init__(network, shards, config)
        sizes = {name: param.numel() for name, param in params.items()}
        self._writer_of = partition_by_size(sizes, collectives.world_size())
        self._ddp = None
        is_recorded = why_plain(config, device.type, collectives.world_size()) is None
        self._sums_at_once = dist.is_initialized() and is_recorded
        if dist.is_initialized() and not is_recorded:
            # The initial weights are a function of the seed and the same everywhere.
            self._ddp = DistributedDataParallel(network, init_sync=False, gradient_as_bucket_view=True)
            self._ddp.register_comm_hook(None, _sum_gradients)
            self.network: nn.Module = self._ddp

    def warm_up_backward(self, forward_backward: Callable[[], None], *, is_wanted: bool) -> None:
        # After a process's first backward DDP lays out its buckets anew, by when gradients came. In a sum over more
        # than two ranks the position in a bucket decides on rounding: no step may be made with the first layout.
        if self._ddp is not None or is_wanted:
            forward_backward()
            self._clear_gradients()

    def set_requires_gradient_sync(self, is_last: bool) -> None:
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = is_last  # as DDP's no_sync() does

    def _update(self) -> None:
        if self._sums_at_once:
            grads = [param.grad for param in self.network.parameters() if param.grad is not None]
            sums = torch.cat([grad.view(-1) for grad in grads])
            dist.all_reduce(sums)
            parts = sums.split([grad.numel() for grad in grads])
            torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])
        self._optimizer.step()
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        # Of DDP they are views of its buckets; otherwise the next backward makes them, without adding to zero.
        self._optimizer.zero_grad(set_to_none=self._ddp is None)

    def tensor_shards(self) -> Iterator[TensorShard]:
        """Yield some of the weights: every rank has them all."""
        for shard in super().tensor_shards():
            if self._writer_of[shard.key.split(".", 1)[1]] == collectives.rank():
                yield shard
