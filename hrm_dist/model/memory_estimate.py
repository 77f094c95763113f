"""Bytes that training holds on a rank, estimated from the configuration alone."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import ArchConfig, TrainConfig
from hrm_dist.config.architectures import level_runs
from hrm_dist.distributed.process_group import World
from hrm_dist.model.layers import DTYPES, Block
from hrm_dist.model.losses import LOSSES
from hrm_dist.model.network import Network
from hrm_dist.model.puzzle_embedding import place_table

# What of weights, gradients, and optimizer with its average an engine splits over the ranks. DeepSpeed keeps the
# weights twice: to compute with and, split, to update.
_IS_SPLIT = {
    "ddp": (False, False, False),
    "zero1": (False, False, True),
    "zero2": (False, True, True),
    "zero3": (True, True, True),
    "fsdp2": (True, True, True),
}

# cuBLAS has a workspace for each thread that calls it: one for the forward, another for the backward pass. They are of
# this size on Hopper, smaller elsewhere.
_WORKSPACES = 2 * 32 * 2**20


def num_parameters(arch: ArchConfig, metadata: DatasetMetadata) -> int:
    """Return the number of trained weights, without the puzzle table."""
    return _num_weights(_network(arch, metadata))


def _network(arch: ArchConfig, metadata: DatasetMetadata) -> Network:
    with torch.device("meta"):
        return Network(arch, metadata)


def _num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def memory_per_rank(
    config: TrainConfig, metadata: DatasetMetadata, world_size: int, num_rows: int | None = None
) -> dict[str, int]:
    """Return the estimated bytes that training holds on each rank, by purpose.

    num_rows: of a packed micro-batch; None: all positions are computed. Of a device that is left open they are those on
    a GPU.
    """
    arch, network = config.arch, _network(config.arch, metadata)
    weights = 4 * _num_weights(network)
    share = -(-weights // world_size)
    of_weights, of_gradients, of_optimizer = (
        share if split else weights for split in _IS_SPLIT[config.engine]
    )
    item = DTYPES[arch.forward_dtype].itemsize
    batch_size = -(-config.global_batch_size // world_size)
    state = batch_size * network.seq_len * arch.hidden_size * item
    at_a_time = -(-batch_size // config.gradient_accumulation_steps)
    num_blocks = place_table(config, metadata, World(0, world_size, torch.device("cpu"))).num_blocks
    # Of what is split, one unit at a time is whole, with its gradients in the backward pass.
    levels = list(network.levels().values())
    units = {
        "loop": [network.recurrence],
        "level": levels,
        "layer": [block for level in levels for block in level.blocks()],
    }[config.gather_unit]
    gathered = 8 * max(map(_num_weights, units)) if _IS_SPLIT[config.engine][0] else 0
    activations = _bytes_of_a_pass(config, metadata, _Size(at_a_time, num_rows))
    if config.engine == "ddp" and world_size * config.gradient_accumulation_steps == 1:
        # Without DDP's buckets a backward pass makes the gradients, in the place of activations that it is done with.
        of_gradients = max(0, of_gradients - activations)
    return {
        "weights": of_weights + (share if config.engine.startswith("zero") else 0),
        "gathered": gathered,
        "gradients": of_gradients,
        "optimizer": 2 * of_optimizer,
        "moving average": of_optimizer if config.ema else 0,
        "puzzle table": 4 * -(-metadata.num_puzzle_identifiers // num_blocks) * arch.puzzle_emb_width,
        "carry": arch.num_chains * len(arch.description.states) * state + batch_size * metadata.seq_len * 8,
        "activations": activations,
        "libraries": _WORKSPACES if _device_type(config) == "cuda" else 0,
    }


def _device_type(config: TrainConfig) -> str:
    """Return the type of device, a GPU if it is left open."""
    return "cpu" if config.device == "cpu" else "cuda"


def _blocks(arch: ArchConfig, metadata: DatasetMetadata) -> list[tuple[Block, int]]:
    """Return every block, and how often a segment runs it with gradient."""
    levels, runs = _network(arch, metadata).levels(), level_runs(arch)
    return [(block, runs[name].with_gradient) for name, level in levels.items() for block in level.blocks()]


class _Size(NamedTuple):
    """What is computed at a time."""

    num_sequences: int
    num_rows: int | None
    """Of all sequences, packed; None where they are not."""

    def of_rows(self, bytes_of: Callable[[int], int], num_positions: int) -> int:
        """Return the bytes of what is computed, given those of some positions of one sequence; packed, it is one."""
        if self.num_rows is None:
            return self.num_sequences * bytes_of(num_positions)
        return bytes_of(self.num_rows)


def _bytes_of_a_pass(config: TrainConfig, metadata: DatasetMetadata, size: _Size) -> int:
    """Return the bytes held for the backward pass, with the most that is computed along the way."""
    arch, activation_checkpointing, compiled = (
        config.arch,
        config.activation_checkpointing,
        config.compiles_on(_device_type(config)),
    )
    blocks = _blocks(arch, metadata)
    block = blocks[0][0]
    num_runs = sum(runs for _, runs in blocks)
    block_weights = _num_weights(block)
    of_row = arch.hidden_size * DTYPES[arch.forward_dtype].itemsize
    num_states = len(arch.description.states)
    num_positions = arch.prefix_len + metadata.seq_len

    def of_rows(bytes_of: Callable[[int], int]) -> int:
        return size.of_rows(bytes_of, num_positions)

    state, whole_state = of_rows(lambda n: n * of_row), size.num_sequences * num_positions * of_row
    total = _activation_bytes(arch, metadata, size, activation_checkpointing, compiled)
    along_the_way = of_rows(block.gradient_bytes)
    if activation_checkpointing:  # a block is computed again, from an input that is kept
        along_the_way += of_rows(lambda n: block.saved_bytes(n, compiled=compiled)) - state
    if size.num_rows is None:
        # The heads keep the answer's state, which is carried; the others are carried alone.
        total += max(0, num_states - 1) * state
        # A segment whose input and states are there beside those that this one began with.
        at_once = (2 * num_states + 1) * state
    else:
        # What is carried is unpacked, beside the input and the states of which this segment packed its own.
        total += num_states * whole_state
        at_once = (num_states + 1) * (whole_state + state)
        along_the_way = max(along_the_way, at_once)
        at_once += num_states * state
    if arch.num_chains > 1:
        # What all chains come to is carried. What they began with is there as long as the winner's segment runs.
        of_chains = arch.num_chains * num_states * whole_state
        total += of_chains
        at_once += of_chains
        along_the_way = max(along_the_way, of_chains + num_states * whole_state)
    if arch.has_q_target:
        following = at_once + of_rows(lambda n: block.working_bytes(n, compiled=compiled))
        along_the_way = max(along_the_way, following)
    total += along_the_way
    if arch.forward_dtype != "float32":  # a run casts the weights, and keeps that too
        num_cast = 1 if activation_checkpointing else num_runs
        if arch.has_q_target:  # whose updates share all weights, cast once
            num_cast += len(blocks)
        total += num_cast * DTYPES[arch.forward_dtype].itemsize * block_weights
    if activation_checkpointing and num_runs > len(blocks):
        # The gradients of several uses of a weight add up apart. Where all is kept, what each use kept makes room.
        total += 4 * len(blocks) * block_weights
    return total


def activation_bytes(
    arch: ArchConfig,
    metadata: DatasetMetadata,
    activation_checkpointing: bool = False,
    *,
    compiled: bool = False,
) -> int:
    """Return the bytes that one sequence keeps for the backward pass, to about 1%."""
    return _activation_bytes(arch, metadata, _Size(1, None), activation_checkpointing, compiled)


def _activation_bytes(
    arch: ArchConfig,
    metadata: DatasetMetadata,
    size: _Size,
    activation_checkpointing: bool,
    compiled: bool,
) -> int:
    """Return the bytes that are kept for the backward pass.

    Every run of a block with gradient keeps its own, or its input alone where it is computed again. The lm_head keeps
    its input, a copy behind a prefix; the Q-head the answer's state whole. What the loss keeps, it says itself.
    """
    seq_len, state = metadata.seq_len, DTYPES[arch.forward_dtype].itemsize * arch.hidden_size
    is_copied = arch.prefix_len > 0 and size.num_rows is None

    def of_positions(num_rows: int) -> int:
        blocks = sum(
            runs
            * (
                num_rows * state
                if activation_checkpointing
                else block.saved_bytes(num_rows, compiled=compiled)
            )
            for block, runs in _blocks(arch, metadata)
        )
        return blocks + state * (num_rows + (seq_len if is_copied else 0))

    loss = LOSSES[arch.loss_type]
    of_loss = seq_len * (loss.bytes_per_logit * metadata.vocab_size + loss.bytes_per_token)
    return size.of_rows(of_positions, arch.prefix_len + seq_len) + size.num_sequences * of_loss
