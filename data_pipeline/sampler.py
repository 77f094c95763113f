"""Which examples make up the global batch of a step.

This is a pure function of (index, seed, batch size, step).

A pass visits every group once, in random order, each with the augmentation that the pass's row holds. The
examples of the puzzles fill a batch one after the other; of the puzzle that overflows it a random subset is
taken, and the next batch begins at the next puzzle. Where a batch begins thus depends on all before it, so
passes are cut into blocks: a block is a fixed number of whole passes, gives a fixed number of steps and drops
its rest. Finding a step means packing its one block, however late in the run it is.
"""

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.base.random import permutation, random_bits
from data_pipeline.schema import SplitIndex

STEPS_PER_BLOCK_AIMED_AT = 1000

_Scalar = TypeVar("_Scalar", bound=np.generic)


class BatchPlan(NamedTuple):
    """Where each example of a global batch lies; all [global_batch_size]."""

    row: NDArray[np.int64]
    group: NDArray[np.int64]
    example: NDArray[np.int64]


class _Block(NamedTuple):
    number: int
    groups: NDArray[np.int64]  # [passes * G] in the order they are visited
    first: NDArray[np.int64]  # [steps + 1] position in `groups` where each step begins


class SamplePlan:
    """The order of the training examples of a split."""

    steps_per_block: int

    def __init__(self, index: SplitIndex, seed: int, global_batch_size: int) -> None:
        if global_batch_size < 1:
            raise InputError(f"global_batch_size={global_batch_size} is no batch; set it to 1 or more.")
        if not len(index.groups):
            raise InputError(f"the {index.split} split has no groups, so there is nothing to train on.")
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._num_rows = index.num_rows
        self._examples_of_group = index.groups.num_examples
        self._shard_of_group = _shard_of_group(index)
        examples_per_pass = int(self._examples_of_group.sum())
        # A step uses up at most this many: the last puzzle may have a single example left to take.
        most_per_step = global_batch_size + int(self._examples_of_group.max()) - 1
        passes = -(-STEPS_PER_BLOCK_AIMED_AT * global_batch_size // examples_per_pass)
        self._passes_per_block = max(passes, -(-most_per_step // examples_per_pass))
        self.steps_per_block = self._passes_per_block * examples_per_pass // most_per_step
        self._block: _Block | None = None

    def batch(self, step: int) -> BatchPlan:
        """Return the global batch of a step, counted from 0."""
        number, step_in_block = divmod(step, self.steps_per_block)
        if self._block is None or self._block.number != number:
            self._block = self._pack(number)
        first, end = int(self._block.first[step_in_block]), int(self._block.first[step_in_block + 1])
        groups = self._block.groups[first:end]
        passes = number * self._passes_per_block + np.arange(first, end) // len(self._examples_of_group)
        sizes = self._examples_of_group[groups].astype(np.int64)
        taken = sizes.copy()
        taken[-1] -= sizes.sum() - self._global_batch_size
        starts = np.cumsum(taken) - taken
        example = np.arange(self._global_batch_size) - np.repeat(starts, taken)
        if taken[-1] < sizes[-1]:
            subset = permutation(int(sizes[-1]), self._seed, "subset", step)[: taken[-1]]
            example[starts[-1] :] = np.sort(subset)
        return BatchPlan(np.repeat(passes % self._num_rows, taken), np.repeat(groups, taken), example)

    def _pack(self, number: int) -> _Block:
        groups = self._group_order(number)
        ends = np.cumsum(self._examples_of_group[groups], dtype=np.int64)
        first = np.zeros(self.steps_per_block + 1, dtype=np.int64)
        position, used = 0, 0
        for step in range(self.steps_per_block):
            position = int(ends.searchsorted(used + self._global_batch_size)) + 1
            used = int(ends[position - 1])
            first[step + 1] = position
        return _Block(number, groups, first)

    def _group_order(self, number: int) -> NDArray[np.int64]:
        """Return the groups of a block's passes: shards of a pass in random order, then the groups of each."""
        num_groups, passes = len(self._examples_of_group), self._passes_per_block
        keys = random_bits(passes * num_groups, self._seed, "group order", number)
        keys = keys.reshape(passes, num_groups)
        num_shards = int(self._shard_of_group[-1]) + 1
        if num_shards > 1:
            bits = random_bits(passes * num_shards, self._seed, "shard order", number).reshape(
                passes, num_shards
            )
            place_of_shard = np.argsort(np.argsort(bits, axis=1, kind="stable"), axis=1, kind="stable")
            place_of_group = place_of_shard[:, self._shard_of_group].astype(np.uint64)
            keys = (place_of_group << np.uint64(40)) | (keys >> np.uint64(24))
        return np.argsort(keys, axis=1, kind="stable").reshape(-1)


def _shard_of_group(index: SplitIndex) -> NDArray[np.int64]:
    """Tell in which of a row's shards each group lies, the same for all rows of a training split; [G]."""
    sizes = [shard.num_samples for shard in index.shards if shard.row == 0]
    return np.repeat(np.arange(len(sizes)), sizes)


def rank_slice(array: NDArray[_Scalar], rank: int, world_size: int) -> NDArray[_Scalar]:
    """Return a rank's slice of a global batch along the first axis; all are equally long.

    Raise InputError when the batch does not divide evenly.
    """
    check_divisible(len(array), world_size)
    size = len(array) // world_size
    return array[rank * size : (rank + 1) * size]


def check_divisible(global_batch_size: int, world_size: int) -> None:
    """Raise InputError, with the nearest sizes that work, unless every rank gets the same share."""
    if global_batch_size % world_size == 0:
        return
    lower = global_batch_size // world_size * world_size
    choices = f"{lower} or {lower + world_size}" if lower else f"{world_size}"
    raise InputError(
        f"global_batch_size={global_batch_size} is not divisible by world_size={world_size}; "
        f"set it to {choices}, or change the number of processes."
    )
