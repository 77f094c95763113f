"""Matmul operations that training and evaluation take, and the rate at which a device makes them."""

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import ArchConfig
from hrm_dist.config.architectures import level_runs
from hrm_dist.model.network import Network

Lengths = NDArray[np.integer]


def flops_per_sequence(
    arch: ArchConfig,
    metadata: DatasetMetadata,
    activation_checkpointing: bool = False,
    lengths: Lengths | None = None,
) -> int:
    """Return the matmul operations of one training segment on one sequence.

    A backward costs two forwards, and a third where blocks are computed again. The Q-target costs a second forward of
    the segment, and each of several chains one, to find the winner. lengths: where padding is not computed, how many
    positions are of each of some sequences, over which the mean is taken.
    """
    of_head, of_level = _forward_flops(arch, metadata, lengths)
    of_chains = arch.num_chains if arch.num_chains > 1 else 0
    flops = (3 + of_chains) * of_head
    for name, runs in level_runs(arch).items():
        forwards = (1 + arch.has_q_target + of_chains) * runs.total
        backwards = (3 if activation_checkpointing else 2) * runs.with_gradient
        flops += (forwards + backwards) * of_level[name]
    return flops


def evaluation_flops_per_sequence(
    arch: ArchConfig, metadata: DatasetMetadata, lengths: Lengths | None = None
) -> int:
    """Return the matmul operations of one evaluation segment on one sequence, or the mean over those of `lengths`."""
    of_head, of_level = _forward_flops(arch, metadata, lengths)
    return of_head + sum(runs.total * of_level[name] for name, runs in level_runs(arch).items())


def _forward_flops(
    arch: ArchConfig, metadata: DatasetMetadata, lengths: Lengths | None
) -> tuple[int, dict[str, int]]:
    """Return the operations of the lm_head, and of one forward of each level, on one sequence."""
    with torch.device("meta"):
        network = Network(arch, metadata)
    numbers, counts = np.unique([network.seq_len] if lengths is None else lengths, return_counts=True)

    def mean(of_length: Callable[[int], int]) -> int:
        return round(np.average([of_length(int(number)) for number in numbers], weights=counts))

    of_answer = 2 * arch.hidden_size * metadata.vocab_size
    # Of packed rows none is told apart, so the prefix gets logits too.
    of_head = of_answer * metadata.seq_len if lengths is None else mean(lambda number: of_answer * number)
    of_level = {
        name: mean(lambda number, level=level: sum(block.flops(number) for block in level.blocks()))
        for name, level in network.levels().items()
    }
    return of_head, of_level


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
