"""What training costs: matmul operations of a sequence, bytes of a rank, the device's matmul rate.

Shapes: S = P + T positions, D hidden_size, I SwiGLU width, V vocabulary.
"""

import time
from typing import NamedTuple

import torch

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import ArchConfig, TrainConfig
from hrm_dist.distributed.process_group import World
from hrm_dist.model.act import ACTModel
from hrm_dist.model.hrm import num_updates_with_gradient
from hrm_dist.model.layers import Block, swiglu_size
from hrm_dist.model.network import DTYPES, Network
from hrm_dist.model.puzzle_embedding import place_table


def _block_flops(arch: ArchConfig, seq_len: int) -> int:
    """Matmul operations of one block's forward on one sequence (a multiply and an add are two)."""
    size = arch.hidden_size
    feed_forward = seq_len * 6 * size * swiglu_size(size, arch.expansion)
    if arch.mlp_t:
        return feed_forward + size * 6 * seq_len * swiglu_size(seq_len, arch.expansion)
    return feed_forward + seq_len * 8 * size * size + 4 * seq_len * seq_len * size


class _BlockRuns(NamedTuple):
    """How often a segment runs a block."""

    total: int
    with_gradient: int


def _block_runs(arch: ArchConfig) -> _BlockRuns:
    H_layers = arch.H_layers if arch.name == "hrm" else arch.L_layers  # TRM has one network in both roles
    num_updates = num_updates_with_gradient(arch)
    num_slow_updates = -(-num_updates // arch.L_cycles)
    return _BlockRuns(
        total=arch.H_cycles * (arch.L_cycles * arch.L_layers + H_layers),
        with_gradient=num_updates * arch.L_layers + num_slow_updates * H_layers,
    )


def _has_q_target(arch: ArchConfig) -> bool:
    return arch.act_continue and arch.halt_max_steps > 1


def flops_per_sequence(arch: ArchConfig, metadata: DatasetMetadata, recomputes: bool = False) -> int:
    """Matmul operations of one training segment on one sequence.

    A backward costs two forwards, and a third where blocks are recomputed. The Q-target costs a second
    forward of the segment.
    """
    runs = _block_runs(arch)
    forwards = 2 if _has_q_target(arch) else 1
    num_blocks = forwards * runs.total + (3 if recomputes else 2) * runs.with_gradient
    head = 3 * 2 * metadata.seq_len * arch.hidden_size * metadata.vocab_size
    return num_blocks * _block_flops(arch, arch.prefix_len + metadata.seq_len) + head


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product, measured for about half a second."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)

    def seconds(repeats: int) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, a)
        _synchronize(device)
        return time.perf_counter() - start

    seconds(2)  # warm-up
    repeats = max(3, int(0.1 / max(seconds(1), 1e-6)))
    return 2 * size**3 * repeats / min(seconds(repeats) for _ in range(3))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def num_parameters(arch: ArchConfig, metadata: DatasetMetadata) -> int:
    """Trained weights, without the puzzle table."""
    with torch.device("meta"):
        model = ACTModel(arch, metadata)
    return sum(parameter.numel() for parameter in model.parameters())


def _unit_parameters(arch: ArchConfig, metadata: DatasetMetadata, gather_unit: str) -> int:
    """Trained weights of the largest unit that is gathered at a time."""
    with torch.device("meta"):
        recurrence = Network(arch, metadata).recurrence
    levels = list(recurrence.children())
    blocks = [block for level in levels for block in level.get_submodule("layers").children()]
    units = {"loop": [recurrence], "level": levels, "layer": blocks}[gather_unit]
    return max(sum(parameter.numel() for parameter in unit.parameters()) for unit in units)


# What of weights, gradients, and optimizer with its average an engine splits over the ranks. DeepSpeed keeps the
# weights twice: to compute with and, split, to update.
_IS_SPLIT = {
    "ddp": (False, False, False),
    "zero1": (False, False, True),
    "zero2": (False, True, True),
    "zero3": (True, True, True),
    "fsdp2": (True, True, True),
}


def memory_per_rank(config: TrainConfig, metadata: DatasetMetadata, world_size: int) -> dict[str, int]:
    """Estimated bytes that training holds on each rank, by purpose."""
    arch, recomputes = config.arch, config.activation_checkpointing
    weights = 4 * num_parameters(arch, metadata)
    share = -(-weights // world_size)
    of_weights, of_gradients, of_optimizer = (
        share if split else weights for split in _IS_SPLIT[config.engine]
    )
    item = DTYPES[arch.forward_dtype].itemsize
    seq_len = arch.prefix_len + metadata.seq_len
    batch_size = -(-config.global_batch_size // world_size)
    state = batch_size * seq_len * arch.hidden_size * item
    at_a_time = -(-batch_size // config.gradient_accumulation_steps)
    num_parts = place_table(config, metadata, World(0, world_size, torch.device("cpu"))).num_parts
    # Of what is split, one unit at a time is whole, with its gradients in the backward pass.
    gathered = 8 * _unit_parameters(arch, metadata, config.gather_unit) if _IS_SPLIT[config.engine][0] else 0
    return {
        "weights": of_weights + (share if config.engine.startswith("zero") else 0),
        "gathered": gathered,
        "gradients": of_gradients,
        "optimizer": 2 * of_optimizer,
        "moving average": of_optimizer if config.ema else 0,
        "puzzle table": 4 * -(-metadata.num_puzzle_identifiers // num_parts) * arch.puzzle_emb_width,
        "carry": 2 * state + batch_size * metadata.seq_len * 8,
        "activations": _bytes_of_a_pass(arch, metadata, at_a_time, recomputes),
    }


def _bytes_of_a_pass(
    arch: ArchConfig, metadata: DatasetMetadata, local_batch_size: int, recomputes: bool
) -> int:
    """Bytes held for the backward pass, and by it, which are gone after it."""
    seq_len = arch.prefix_len + metadata.seq_len
    with torch.device("meta"):
        block = Block(arch, seq_len)
    block_weights = sum(parameter.numel() for parameter in block.parameters())
    num_runs = _block_runs(arch).with_gradient
    size = local_batch_size * activation_bytes(arch, metadata, recomputes)
    if recomputes or _has_q_target(arch):
        # While all is kept, one block is computed again, or the Q-target's blocks one after the other.
        size += local_batch_size * _block_bytes(arch, seq_len)
    if arch.forward_dtype != "float32":  # a run casts the weights, and keeps that too
        num_cast = 1 if recomputes else num_runs
        size += num_cast * DTYPES[arch.forward_dtype].itemsize * block_weights
    num_blocks = arch.L_layers + (arch.H_layers if arch.name == "hrm" else 0)
    if recomputes and num_runs > num_blocks:
        # The gradients of several uses of a weight add up apart. Without recomputation, what each use
        # kept makes room for that.
        size += 4 * num_blocks * block_weights
    return size


def activation_bytes(arch: ArchConfig, metadata: DatasetMetadata, recomputes: bool = False) -> int:
    """Bytes that one sequence keeps for the backward pass, uncompiled, to about 1%.

    Every block that runs with gradient keeps its own, or its input alone where it is recomputed. The lm_head
    keeps its input, a copy behind a prefix; the Q-head z_H whole. The loss keeps of each logit, under
    stablemax, two float64 and a bool, under softmax a float32; of each token its input and label, under
    stablemax two float64 and a bool more.
    """
    item = DTYPES[arch.forward_dtype].itemsize
    seq_len, size = arch.prefix_len + metadata.seq_len, arch.hidden_size
    block = item * seq_len * size if recomputes else _block_bytes(arch, seq_len)
    heads = item * size * (seq_len + (metadata.seq_len if arch.prefix_len else 0))
    per_logit, per_token = (17, 29) if arch.loss_type == "stablemax_cross_entropy" else (4, 12)
    loss = metadata.seq_len * (per_logit * metadata.vocab_size + per_token)
    return _block_runs(arch).with_gradient * block + heads + loss


def _block_bytes(arch: ArchConfig, seq_len: int) -> int:
    """Bytes that a block keeps of one sequence.

    Attention keeps its input, the projected q, k and v, the rotated q and k, and its output; SwiGLU its
    input, gate and up, the activated gate, and their product; each norm its float32 input. TRM's MLP over the
    sequence is a SwiGLU for each channel.
    """
    item, size = DTYPES[arch.forward_dtype].itemsize, arch.hidden_size

    def swiglu(rows: int, width: int) -> int:
        return item * rows * (width + 4 * swiglu_size(width, arch.expansion))

    if arch.mlp_t:
        mixing = swiglu(size, seq_len)
    else:
        mixing = item * seq_len * size * (7 if arch.pos_encodings == "rope" else 5)
    return mixing + swiglu(seq_len, size) + 2 * 4 * seq_len * size
