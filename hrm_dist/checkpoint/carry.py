"""The carry in a checkpoint: each tensor whole, over the global batch. So any number of ranks can slice it."""

from collections.abc import Iterator

from torch import Tensor

from hrm_dist.checkpoint.reader import Checkpoint
from hrm_dist.distributed.process_group import World
from hrm_dist.model.act import Carry
from hrm_dist.tensor_shards import TensorShard, load_into


def carry_shards(carry: Carry, world: World) -> Iterator[TensorShard]:
    """Yield the carry of this rank's slots, as views."""
    for key, tensor in _tensors(carry).items():
        shape = (world.world_size * len(tensor), *tensor.shape[1:])
        yield TensorShard(key, shape, world.rank * tensor.numel(), tensor.view(-1))


def load_carry(opened: Checkpoint, carry: Carry, world: World) -> None:
    """Overwrite the carry of this rank's slots by that of a checkpoint, if it was saved."""
    if opened.has("carry"):
        for shard in carry_shards(carry, world):
            load_into(shard, opened.read)


def _tensors(carry: Carry) -> dict[str, Tensor]:
    states = {f"carry.{name}": state for name, state in carry.inner_carry._asdict().items()}
    data = {f"carry.current_data.{name}": tensor for name, tensor in carry.current_data.items()}
    return {**states, "carry.steps": carry.steps, "carry.halted": carry.halted, **data}
