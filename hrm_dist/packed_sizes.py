"""How many rows packed sequences get: one of at most four numbers, so that every batch has a shape that is known.

Which sequences a batch holds is decided on the device, and so how many rows it needs. Chosen are numbers that leave few
rows empty, and something that has room for any batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.reader import TestReader, TrainReader
from data_pipeline.schema import DatasetInfo
from data_pipeline.windows import windows_of_puzzles
from hrm_dist.config import TrainConfig
from hrm_dist.model.flops import Lengths
from hrm_dist.model.packing import inside_sequences

_ALIGNMENT = 64  # rows: what matrix products tile
_NUM_CANDIDATES = 48
_LEAST_BATCHES, _LEAST_SEQUENCES, _STEPS_BETWEEN = 8, 4096, 37


class PackedSize(NamedTuple):
    """A shape in which a process computes its part of a step."""

    num_rows: int
    """Of a micro-batch."""
    num_micro_batches: int


def training_lengths(config: TrainConfig) -> Lengths | None:
    """Return how many positions are computed of the sequences in some batches of a run, as they come; None where
    padding is computed.

    Raise InputError for a dataset that knows of no windows.
    """
    if config.padding == "keep":
        return None
    reader = TrainReader(config.data_path, config.seed, config.global_batch_size)
    num_batches = max(_LEAST_BATCHES, -(-_LEAST_SEQUENCES // config.global_batch_size))
    batches = (reader.batch(number * _STEPS_BETWEEN) for number in range(num_batches))
    return _lengths(config, reader.info, batches)


def held_out_lengths(config: TrainConfig, reader: TestReader) -> Lengths | None:
    """Return how many positions are computed of the first held-out inputs; None where padding is computed."""
    if config.padding == "keep":
        return None
    return _lengths(config, reader.info, reader.batches(_LEAST_SEQUENCES, stop=_LEAST_SEQUENCES))


def _lengths(config: TrainConfig, info: DatasetInfo, batches: Iterable[Mapping[str, Any]]) -> Lengths:
    windows = torch.from_numpy(windows_of_puzzles(config.data_path, info))
    parts = [
        inside_sequences(
            batch["inputs"], windows[batch["puzzle_identifiers"]], info.pad_id, config.arch.prefix_len
        ).sum(1)
        for batch in batches
    ]
    return torch.cat(parts).numpy()


def training_sizes(
    config: TrainConfig, lengths: Lengths, longest: int, num_sequences: int
) -> tuple[PackedSize, ...]:
    """Return the sizes for a process's `num_sequences`, the smallest first; the last has room for whatever comes.

    lengths: those of sequences of the run, in the order in which they come; longest: positions of a whole one. What few
    batches need is computed in more micro-batches, so that memory needs no room for it.
    """
    num_micro_batches = config.gradient_accumulation_steps
    at_a_time = num_sequences // num_micro_batches
    numbers = row_numbers(lengths, at_a_time, longest, config.global_batch_size // at_a_time)
    sizes = tuple(PackedSize(num_rows, num_micro_batches) for num_rows in numbers)
    most = numbers[-1]
    if most >= at_a_time * longest:
        return sizes
    parts = (num for num in range(num_micro_batches, num_sequences) if num_sequences % num == 0)
    fitting = (num for num in parts if num_sequences // num * longest <= most)
    num = next(fitting, num_sequences)
    return (*sizes, PackedSize(num_sequences // num * longest, num))


def most_rows(config: TrainConfig, lengths: Lengths | None, longest: int, world_size: int) -> int | None:
    """Return the rows of the largest micro-batch of a process, from which memory follows; None without lengths."""
    if lengths is None:
        return None
    num_sequences = -(-config.global_batch_size // world_size)
    num_sequences = -(-num_sequences // config.gradient_accumulation_steps)
    # A sequence that fits nowhere is computed alone.
    num_parts = max(1, config.global_batch_size // num_sequences)
    return max(longest, row_numbers(lengths, num_sequences, longest, num_parts)[-1])


def share_of_empty_rows(
    config: TrainConfig, lengths: Lengths, longest: int, sizes: Sequence[PackedSize], world_size: int
) -> float:
    """Return which share of the rows that are computed nothing is in, if sequences sit in the slots as they come."""
    num_micro_batches = sizes[0].num_micro_batches
    num_sequences = config.global_batch_size // world_size // num_micro_batches
    totals = _totals(lengths, num_sequences)
    fullest = _of_fullest(totals, num_sequences, world_size * num_micro_batches)
    numbers = [size.num_rows for size in sizes if size.num_micro_batches == num_micro_batches]
    computed = np.array([*numbers, num_sequences * longest])[np.searchsorted(numbers, fullest)]
    return float(1 - totals.mean() / computed.mean())


def evaluation_rows(windows: Tensor, prefix_len: int, num_slots: int, longest: int) -> tuple[int, ...]:
    """Return numbers of rows for so many slots, the smallest first; in the last there is room for any sequences."""
    order = np.random.default_rng(0).permutation(np.arange(1, len(windows)))
    lengths = windows[order].to(torch.int64).prod(1).numpy() + prefix_len
    return tuple(dict.fromkeys((*row_numbers(lengths, num_slots, longest), num_slots * longest)))


def row_numbers(
    lengths: NDArray[np.integer], num_sequences: int, longest: int, num_parts: int = 1
) -> list[int]:
    """Return at most three numbers of rows, the smallest first, such that on average the fewest rows are computed.

    A batch takes the smallest number that has room for the fullest of its parts; one that none has room for is as dear
    as if nothing were left out. lengths: of sequences in the order in which they come; num_sequences: of a part;
    longest: positions of a whole canvas; num_parts: those of a batch, over all processes.
    """
    whole = num_sequences * longest
    totals = np.sort(_of_fullest(_totals(lengths, num_sequences), num_sequences, num_parts))
    points = np.quantile(totals, np.linspace(0, 1, _NUM_CANDIDATES)).tolist()
    candidates = np.unique([min(whole, -(-int(point) // _ALIGNMENT) * _ALIGNMENT) for point in points])
    with_room = np.searchsorted(totals, candidates, side="right") / len(totals)
    # For all i, j, k at once; where one of them is not above the one before, it takes no batches.
    numbers, shares = (np.meshgrid(*[values] * 3, indexing="ij") for values in (candidates, with_room))
    mean_rows = whole * (1 - shares[-1])
    for number, share, before in zip(numbers, shares, [np.zeros(()), *shares[:-1]], strict=True):
        mean_rows = mean_rows + number * (share - before)
    is_rising = (numbers[0] <= numbers[1]) & (numbers[1] <= numbers[2])
    best = np.unravel_index(np.where(is_rising, mean_rows, np.inf).argmin(), mean_rows.shape)
    return sorted({int(candidates[index]) for index in best})


def _totals(lengths: NDArray[np.integer], num_sequences: int) -> NDArray[np.int64]:
    """Return the sums over so many neighbours, going round: sequences of one task come together."""
    repeated = np.resize(lengths, len(lengths) + num_sequences).astype(np.int64)
    ends = np.cumsum(repeated)
    return ends[num_sequences:] - ends[:-num_sequences]


def _of_fullest(totals: NDArray[np.int64], num_sequences: int, num_parts: int) -> NDArray[np.int64]:
    """Return the largest of the totals of so many parts, one behind the other, wherever the first begins."""
    return np.max([np.roll(totals, -part * num_sequences) for part in range(num_parts)], axis=0)
