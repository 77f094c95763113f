"""Shards of tensors: a rank's share of the trained state, how it is read and written.

Every engine splits a tensor into ranges of its flattened elements, so ranges are all that engines and checkpoints
need to know of each other.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_READ_ELEMENTS = 2**24


class TensorShard(NamedTuple):
    """A range of the elements of a flattened tensor of the state."""

    key: str
    """`KIND.NAME`; kinds are model (weights, initial states, puzzle table), ema, exp_avg, exp_avg_sq, carry, and rank
    for what is one rank's own."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offset: int
    """Of the first element, in the flattened tensor."""
    data: Tensor
    """The elements, [n]."""


ReadFn = Callable[[str, int, int], Tensor]
"""Return elements start..stop-1 of the flattened tensor of a key, on the CPU."""


def replicated(key: str, tensor: Tensor) -> TensorShard:
    """Return the shard that is a whole tensor, a view of it where it is contiguous."""
    return TensorShard(key, tuple(tensor.shape), 0, tensor.detach().reshape(-1))


def is_finite(tensor: Tensor) -> bool:
    """Return whether every element is a finite number, in no more memory than the tensor has."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.detach().aminmax())


@torch.no_grad()
def load_into(shard: TensorShard, read: ReadFn) -> None:
    """Overwrite the elements of a shard by what is read, 64 MiB at a time, so that not much is in memory twice."""
    start = shard.offset
    for block in shard.data.split(_READ_ELEMENTS):
        block.copy_(read(shard.key, start, start + len(block)))
        start += len(block)


def partition_by_size(sizes: dict[str, int], num_partitions: int) -> dict[str, int]:
    """Return the number of the partition that each name goes to, so that all are about equally large.

    The largest first, each to the smallest partition so far; equal on every rank.
    """
    totals = [0] * num_partitions
    partition_of: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = totals.index(min(totals))
        partition_of[name] = smallest
        totals[smallest] += sizes[name]
    return partition_of
