"""Matmul operations that training and evaluation take, and the rate at which a device makes them."""

import time

import torch

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import ArchConfig
from hrm_dist.config.architectures import level_runs
from hrm_dist.model.network import Network


def flops_per_sequence(
    arch: ArchConfig, metadata: DatasetMetadata, activation_checkpointing: bool = False
) -> int:
    """Return the matmul operations of one training segment on one sequence.

    A backward costs two forwards, and a third where blocks are computed again. The Q-target costs a second
    forward of the segment.
    """
    of_level = _level_flops(arch, metadata)
    flops = 3 * _head_flops(arch, metadata)
    for name, runs in level_runs(arch).items():
        forwards = (2 if arch.has_q_target else 1) * runs.total
        backwards = (3 if activation_checkpointing else 2) * runs.with_gradient
        flops += (forwards + backwards) * of_level[name]
    return flops


def evaluation_flops_per_sequence(arch: ArchConfig, metadata: DatasetMetadata) -> int:
    """Return the matmul operations of one evaluation segment on one sequence."""
    of_level = _level_flops(arch, metadata)
    runs_of_level = level_runs(arch).items()
    return _head_flops(arch, metadata) + sum(runs.total * of_level[name] for name, runs in runs_of_level)


def _head_flops(arch: ArchConfig, metadata: DatasetMetadata) -> int:
    return 2 * metadata.seq_len * arch.hidden_size * metadata.vocab_size


def _level_flops(arch: ArchConfig, metadata: DatasetMetadata) -> dict[str, int]:
    """Return the operations of one forward of each level on one sequence."""
    with torch.device("meta"):
        levels = Network(arch, metadata).levels()
    return {name: sum(block.flops() for block in level.blocks()) for name, level in levels.items()}


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of a large square matrix product, for about half a second."""
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
