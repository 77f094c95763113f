from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError
from data_pipeline.sampler import BatchPlan, SamplePlan, rank_slice
from data_pipeline.schema import GroupTable, ShardIndex, SplitIndex

EXAMPLES = [3, 1, 4, 2, 5, 3, 2]  # per puzzle of seven groups
GOLDEN_BATCH = [
    [1, 1, 1, 1, 1, 1, 1, 1],
    [2, 2, 2, 2, 3, 3, 4, 4],
    [0, 1, 2, 3, 0, 1, 2, 3],
]  # rows, groups, examples


def make_index(examples: list[int], num_rows: int = 4, groups_per_shard: int = 1000) -> SplitIndex:
    """A train split's index without its files."""
    numbers = np.arange(len(examples))
    groups = GroupTable(
        num_puzzles=np.full_like(numbers, num_rows),
        num_examples=np.array(examples, dtype=np.int64),
        first_identifier=1 + numbers * num_rows,
        names=None,
    )
    parts = [
        (start, examples[start : start + groups_per_shard])
        for start in range(0, len(examples), groups_per_shard)
    ]
    shards = [
        ShardIndex(
            file=f"row-{row}-{start}.tar.zst",
            row=row,
            first_group=start,
            num_samples=len(part),
            num_examples=sum(part),
            size_bytes=0,
            sha256="",
            tar_sha256="",
        )
        for row in range(num_rows)
        for start, part in parts
    ]
    return SplitIndex(
        split="train", num_rows=num_rows, canvas=2, seq_len=4, groups=groups, shards=tuple(shards)
    )


def puzzles_of(plan: BatchPlan) -> list[tuple[int, int, list[int]]]:
    """Runs of one puzzle in a batch: row, group, examples."""
    place = np.stack([plan.row, plan.group], axis=1)
    ends = np.flatnonzero((place[1:] != place[:-1]).any(axis=1)) + 1
    return [
        (int(plan.row[run[0]]), int(plan.group[run[0]]), plan.example[run].tolist())
        for run in np.split(np.arange(len(plan.row)), ends)
    ]


def tuples(plan: BatchPlan) -> list[list[int]]:
    return [array.tolist() for array in plan]


@settings(max_examples=50, deadline=None)
@given(
    examples=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    batch_size=st.integers(1, 40),
    steps=st.lists(st.integers(0, 5000), min_size=1, max_size=6),
)
def test_a_step_does_not_depend_on_which_were_asked_before(
    examples: list[int], batch_size: int, steps: list[int]
) -> None:
    index = make_index(examples)
    plan = SamplePlan(index, seed=5, global_batch_size=batch_size)
    for step in steps:
        assert tuples(plan.batch(step)) == tuples(SamplePlan(index, 5, batch_size).batch(step))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 3000))
def test_every_batch_is_exactly_full_and_within_its_puzzles(
    examples: list[int], batch_size: int, step: int
) -> None:
    plan = SamplePlan(make_index(examples), 0, batch_size).batch(step)
    assert [len(array) for array in plan] == [batch_size] * 3
    assert (plan.example >= 0).all()
    assert (plan.example < np.array(examples)[plan.group]).all()


def test_a_pass_visits_every_group_once_with_all_examples_but_those_of_an_overflowing_puzzle() -> None:
    plan = SamplePlan(make_index(EXAMPLES), seed=1, global_batch_size=7)
    visited: list[int] = []
    for step in range(plan.steps_per_block):
        puzzles = puzzles_of(plan.batch(step))
        for _, group, examples in puzzles[:-1]:
            assert examples == list(range(EXAMPLES[group]))
        last_group, last_examples = puzzles[-1][1:]
        assert sorted(set(last_examples)) == last_examples
        assert len(last_examples) <= EXAMPLES[last_group]
        visited += [group for _, group, _ in puzzles]
    passes = [visited[i : i + 7] for i in range(0, len(visited) - 6, 7)]
    assert all(sorted(one_pass) == list(range(7)) for one_pass in passes)
    assert len({tuple(one_pass) for one_pass in passes}) > len(passes) // 2


def test_passes_read_the_rows_in_turn_so_no_augmentation_repeats_in_a_sweep() -> None:
    num_rows = 5
    plan = SamplePlan(make_index(EXAMPLES, num_rows), seed=1, global_batch_size=7)
    rows_of_group: dict[int, list[int]] = {}
    for step in range(300):
        for row, group, _ in puzzles_of(plan.batch(step)):
            rows_of_group.setdefault(group, []).append(row)
    for rows in rows_of_group.values():
        assert all(after == (before + 1) % num_rows for before, after in pairwise(rows))


def test_the_subset_of_an_overflowing_puzzle_is_uniform() -> None:
    plan = SamplePlan(make_index([4]), seed=0, global_batch_size=2)
    counts = np.zeros(4)
    for step in range(4000):
        counts[plan.batch(step).example] += 1
    np.testing.assert_allclose(counts / 8000, 0.25, atol=0.02)


def test_the_puzzle_that_overflows_a_batch_is_not_continued_in_the_next() -> None:
    plan = SamplePlan(make_index([4, 4, 4]), seed=0, global_batch_size=6)
    for step in range(50):
        assert [len(examples) for _, _, examples in puzzles_of(plan.batch(step))] == [4, 2]


def test_groups_of_one_shard_stay_together_within_a_pass() -> None:
    index = make_index([1] * 12, num_rows=1, groups_per_shard=4)
    plan = SamplePlan(index, seed=0, global_batch_size=12)
    orders = {tuple((plan.batch(step).group // 4).tolist()) for step in range(60)}
    assert len(orders) == 6  # every order of the three shards, none interleaved
    assert all(sum(a != b for a, b in pairwise(order)) == 2 for order in orders)
    assert len({tuple(plan.batch(step).group.tolist()) for step in range(60)}) == 60


def test_blocks_differ_and_so_do_seeds() -> None:
    index = make_index(EXAMPLES)
    plan = SamplePlan(index, seed=0, global_batch_size=7)
    assert tuples(plan.batch(0)) != tuples(plan.batch(plan.steps_per_block))
    assert tuples(plan.batch(0)) != tuples(SamplePlan(index, 1, 7).batch(0))


def test_the_order_of_the_data_is_fixed_for_good() -> None:
    # A change here changes every run that is resumed with it.
    plan = SamplePlan(make_index(EXAMPLES), seed=42, global_batch_size=8).batch(12345)
    assert tuples(plan) == GOLDEN_BATCH


@given(st.integers(1, 12), st.integers(1, 8))
def test_rank_slices_partition_the_global_batch(per_rank: int, world_size: int) -> None:
    batch = np.arange(per_rank * world_size)
    slices = [rank_slice(batch, rank, world_size) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(slices), batch)
    assert {len(part) for part in slices} == {per_rank}


@given(st.integers(1, 100), st.integers(2, 16))
def test_an_indivisible_batch_is_refused_with_sizes_that_work(batch_size: int, world_size: int) -> None:
    assume(batch_size % world_size)
    with pytest.raises(
        InputError, match=f"global_batch_size={batch_size} .*world_size={world_size}"
    ) as caught:
        rank_slice(np.zeros(batch_size), 0, world_size)
    lower = batch_size // world_size * world_size
    assert f"{lower + world_size}" in str(caught.value)
    assert not lower or f"{lower} or" in str(caught.value)


def test_a_split_without_groups_is_refused() -> None:
    empty = make_index([], num_rows=0)
    with pytest.raises(InputError, match="no groups"):
        SamplePlan(empty, 0, 8)
