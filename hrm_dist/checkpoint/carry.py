"""The carry in a checkpoint: each tensor whole, over the global batch. So any number of ranks can slice it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hrm_dist.checkpoint.reader import Checkpoint
from hrm_dist.config import ArchConfig
from hrm_dist.distributed.process_group import World
from hrm_dist.model.act import Carry, inner_carry_type
from hrm_dist.tensor_shards import TensorShard

_DATA = "carry.current_data."


def carry_shards(carries: Sequence[Carry], world: World) -> Iterator[TensorShard]:
    """Yield this rank's slice, given by micro-batches."""
    for index, carry in enumerate(carries):
        position = world.rank * len(carries) + index
        for key, tensor in _tensors(carry).items():
            shape = (world.world_size * len(carries) * len(tensor), *tensor.shape[1:])
            yield TensorShard(key, shape, position * tensor.numel(), tensor.reshape(-1))


def read_carries(opened: Checkpoint, arch: ArchConfig, world: World, num_micro_batches: int) -> list[Carry]:
    """Read this rank's slice of a saved carry, one carry for each micro-batch; none if it was not saved."""
    shapes = {key: shape for key, shape in opened.shapes.items() if key.startswith("carry.")}
    carries: list[Carry] = []
    for index in range(num_micro_batches) if shapes else ():
        position = world.rank * num_micro_batches + index
        tensors: dict[str, Tensor] = {}
        for key, shape in shapes.items():
            slice_shape = (shape[0] // (world.world_size * num_micro_batches), *shape[1:])
            size = torch.Size(slice_shape).numel()
            # A copy, since what is read may be a view of the file.
            stored = opened.read(key, position * size, (position + 1) * size)
            tensors[key] = stored.view(slice_shape).clone().to(world.device)
        data = {key.removeprefix(_DATA): tensor for key, tensor in tensors.items() if key.startswith(_DATA)}
        states = inner_carry_type(arch.name)(*(tensors[f"carry.{name}"] for name in arch.description.states))
        carries.append(Carry(states, tensors["carry.steps"], tensors["carry.halted"], data))
    return carries


def _tensors(carry: Carry) -> dict[str, Tensor]:
    states = {f"carry.{name}": state for name, state in carry.inner_carry._asdict().items()}
    data = {f"{_DATA}{name}": tensor for name, tensor in carry.current_data.items()}
    return {**states, "carry.steps": carry.steps, "carry.halted": carry.halted, **data}
