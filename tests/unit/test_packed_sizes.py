"""Sizes of packed batches: few, with room for every batch, and little of them empty."""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.reader import TestReader
from data_pipeline.schema import load_dataset_info
from data_pipeline.windows import windows_of_puzzles
from hrm_dist.config import TrainConfig, load_config
from hrm_dist.packed_sizes import (
    _ALIGNMENT,
    PackedSize,
    evaluation_rows,
    held_out_lengths,
    most_rows,
    row_numbers,
    share_of_empty_rows,
    training_lengths,
    training_sizes,
)

LONGEST = 901
sequences = st.lists(st.integers(2, LONGEST), min_size=1, max_size=200).map(np.array)


def totals(lengths: np.ndarray, num_sequences: int) -> list[int]:
    repeated = np.resize(lengths, len(lengths) + num_sequences)
    return [int(repeated[i : i + num_sequences].sum()) for i in range(len(lengths))]


@given(sequences, st.integers(1, 50))
def test_numbers_of_rows_are_few_and_no_larger_than_needed(lengths: np.ndarray, num_sequences: int) -> None:
    numbers = row_numbers(lengths, num_sequences, LONGEST)
    assert 1 <= len(numbers) <= 3
    assert numbers == sorted(set(numbers))
    assert numbers[-1] <= min(num_sequences * LONGEST, max(totals(lengths, num_sequences)) + _ALIGNMENT)


def test_of_several_parts_the_fullest_decides() -> None:
    lengths = np.array([100, 100, 100, 800] * 50)
    assert row_numbers(lengths, 1, LONGEST) == [128, 832]
    assert row_numbers(lengths, 1, LONGEST, num_parts=4) == [832]


@given(sequences, st.integers(1, 20))
def test_no_other_numbers_leave_fewer_rows_empty(lengths: np.ndarray, num_sequences: int) -> None:
    needed, whole = np.array(totals(lengths, num_sequences)), num_sequences * LONGEST

    def mean(numbers: Sequence[int]) -> float:
        sizes = np.array([*sorted(numbers), whole])
        return float(sizes[np.searchsorted(sizes, needed)].mean())

    aligned = np.unique(np.minimum(whole, -(-needed // _ALIGNMENT) * _ALIGNMENT)).tolist()
    if len(aligned) <= 12:
        best = min(mean(choice) for choice in combinations_with_replacement(aligned, 3))
        assert mean(row_numbers(lengths, num_sequences, LONGEST)) <= best * 1.02  # candidates are quantiles


def config_of(config: Path, batch_size: int, *settings: str) -> TrainConfig:
    return load_config(config, [f"global_batch_size={batch_size}", "padding=skip", *settings])


def windows_in(dataset: Path) -> torch.Tensor:
    return torch.from_numpy(windows_of_puzzles(dataset, load_dataset_info(dataset)))


@pytest.mark.parametrize(("batch_size", "num_parts"), [(8, 1), (12, 2), (1, 1), (30, 1), (7, 1)])
def test_what_does_not_fit_is_computed_in_more_parts(
    config: Path, dataset: Path, batch_size: int, num_parts: int
) -> None:
    settings = config_of(config, batch_size, f"gradient_accumulation_steps={num_parts}")
    lengths = training_lengths(settings)
    assert lengths is not None
    sizes = training_sizes(settings, lengths, 37, batch_size)
    assert 1 <= len(sizes) <= 4
    last = sizes[-1]
    assert batch_size % last.num_micro_batches == 0
    assert last.num_rows >= batch_size // last.num_micro_batches * 37  # room for any sequences
    if last.num_micro_batches > num_parts:  # in memory that another size takes, too
        assert last.num_rows <= max(37, *(size.num_rows for size in sizes[:-1]))
    assert {size.num_micro_batches for size in sizes[:-1]} <= {num_parts}


def test_lengths_are_a_function_of_data_and_configuration(config: Path) -> None:
    settings = config_of(config, 16)
    np.testing.assert_array_equal(training_lengths(settings), training_lengths(settings))


def test_memory_follows_the_size_that_holds_the_fullest_batch(config: Path, dataset: Path) -> None:
    settings = config_of(config, 16, "gradient_accumulation_steps=2")
    lengths = training_lengths(settings)
    assert lengths is not None
    sizes = training_sizes(settings, lengths, 37, 8)  # of a process of two
    most = max(size.num_rows for size in sizes)
    assert most_rows(settings, lengths, 37, world_size=2) == most


def test_rows_are_empty_where_one_of_several_processes_needs_more_than_the_others() -> None:
    config = TrainConfig(data_path="unused", global_batch_size=2)
    lengths = np.array([100, 300] * 50)
    sizes = (PackedSize(256, 1), PackedSize(320, 1), PackedSize(900, 2))
    alone = share_of_empty_rows(config, lengths, 900, sizes, world_size=1)
    assert alone == pytest.approx(1 - 400 / 1800)  # fits nowhere
    two = share_of_empty_rows(config, lengths, 900, sizes, world_size=2)
    assert two == pytest.approx(1 - 200 / 320)


def test_held_out_inputs_are_as_long_as_their_windows_on_the_canvas(config: Path, dataset: Path) -> None:
    reader = TestReader(dataset)
    lengths = held_out_lengths(config_of(config, 16), reader)
    assert lengths is not None
    [batch] = reader.batches(len(reader))
    inside = windows_in(dataset)[batch["puzzle_identifiers"]].to(torch.int64).prod(1).numpy()
    assert len(lengths) == len(reader)
    assert (lengths <= 1 + inside).all()
    assert (lengths == 1 + inside).any()


def test_there_are_no_lengths_where_padding_is_computed(config: Path, dataset: Path) -> None:
    settings = config_of(config, 16, "padding=keep")
    assert training_lengths(settings) is held_out_lengths(settings, TestReader(dataset)) is None


def test_evaluation_has_room_for_any_sequences(dataset: Path) -> None:
    numbers = evaluation_rows(windows_in(dataset), 1, 10, 37)
    assert numbers[-1] == 370
    assert len(numbers) <= 4
    assert list(numbers) == sorted(set(numbers))
