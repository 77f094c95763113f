"""The puzzle table split into parts, which a single process can hold one after the other."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrm_dist import tensor_shards
from hrm_dist.config import ArchConfig, TrainConfig
from hrm_dist.distributed.process_group import World
from hrm_dist.model.puzzle_embedding import (
    WHOLE_TABLE,
    PuzzleEmbedding,
    RowGradients,
    SignSGD,
    TablePlacement,
    place_table,
    rows_of_block,
)
from hrm_dist.tensor_shards import load_into
from tests.unit.test_model import METADATA

NUM_ROWS, WIDTH = 11, 3
CPU, META = torch.device("cpu"), torch.device("meta")
VALUES = torch.randn(NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
grad_rows = st.lists(st.integers(-3, 3).map(float), min_size=WIDTH, max_size=WIDTH)
batches = st.lists(st.tuples(st.integers(0, NUM_ROWS - 1), grad_rows), min_size=1, max_size=12)


def filled(placement: TablePlacement = WHOLE_TABLE) -> PuzzleEmbedding:
    table = PuzzleEmbedding(NUM_ROWS, WIDTH, placement)
    table.init_weights(lambda *_: None)
    load_into(table.shard(table.rows), lambda _, start, stop: VALUES.view(-1)[start:stop])
    return table


def own_rows(table: PuzzleEmbedding) -> Tensor:
    return table.shard(table.own_rows()).data.view(-1, WIDTH)


def gradients_of(batch: list[tuple[int, list[float]]]) -> RowGradients:
    identifiers = torch.tensor([identifier for identifier, _ in batch], dtype=torch.int32)
    return RowGradients(identifiers, torch.tensor([grad for _, grad in batch]))


def stepped(table: PuzzleEmbedding, *parts: RowGradients, update_applied: Tensor | None = None) -> Tensor:
    """This part's rows after an update with the gradients of the global batch."""
    table.gradients = [*parts]
    SignSGD(table, weight_decay=0.1).step(lr=0.01, update_applied=update_applied)
    return own_rows(table)


@given(st.integers(1, 200), st.integers(1, 40))
def test_parts_hold_every_row_once_and_none_more_than_an_equal_share(num_rows: int, num_blocks: int) -> None:
    parts = [rows_of_block(num_rows, part, num_blocks) for part in range(num_blocks)]
    assert [*chain.from_iterable(parts)] == [*range(num_rows)]
    assert max(len(part) for part in parts) == -(-num_rows // num_blocks)


@given(batches, st.integers(2, 14))
def test_parts_updated_one_by_one_are_the_updated_table_bit_for_bit(
    batch: list[tuple[int, list[float]]], num_blocks: int
) -> None:
    gradients = gradients_of(batch)
    parts = [stepped(filled(TablePlacement(part, num_blocks)), gradients) for part in range(num_blocks)]
    assert torch.equal(torch.cat(parts), stepped(filled(), gradients))


@given(batches, st.data())
def test_gradients_of_several_backwards_update_as_those_of_one(
    batch: list[tuple[int, list[float]]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(batch) - 1))
    parts = [gradients_of(part) for part in (batch[cut:], batch[:cut]) if part]
    # Whole numbers add up to the same in any order.
    assert torch.equal(stepped(filled(), *parts), stepped(filled(), gradients_of(batch)))


def test_two_forwards_with_their_backwards_are_one_of_both_batches() -> None:
    identifiers, factors = torch.tensor([4, 7, 4, 0]), torch.tensor([[1.0], [-2.0], [3.0], [1.0]])
    whole, halves = filled(), filled()
    (whole(identifiers) * factors).sum().backward()
    for half in (slice(0, 2), slice(2, 4)):
        (halves(identifiers[half]) * factors[half]).sum().backward()
    for table in (whole, halves):
        SignSGD(table, weight_decay=0.1).step(lr=0.01)
    assert not torch.equal(whole.weights, VALUES)
    assert torch.equal(halves.weights, whole.weights)


@pytest.mark.parametrize("placement", [WHOLE_TABLE, TablePlacement(block=1, num_blocks=2)])
def test_an_update_that_may_not_be_made_changes_nothing_though_gradients_are_not_finite(
    placement: TablePlacement,
) -> None:
    table = filled(placement)
    gradients = RowGradients(torch.tensor([0, 7, 7]), torch.full((3, WIDTH), torch.nan))
    before = own_rows(table).clone()
    assert torch.equal(stepped(table, gradients, update_applied=torch.tensor(False)), before)
    good = gradients._replace(grads=torch.randn(3, WIDTH))
    assert torch.equal(
        stepped(table, good, update_applied=torch.tensor(True)), stepped(filled(placement), good)
    )


def test_a_forward_whose_backward_never_comes_leaves_nothing_for_the_update() -> None:
    table, other = filled(), filled()
    table(torch.tensor([0]))
    with torch.no_grad():
        table(torch.tensor([1]))
    for each in (table, other):
        each(torch.tensor([2])).sum().backward()
        SignSGD(each, weight_decay=0.1).step(lr=0.01)
    assert torch.equal(table.weights, other.weights)


def test_training_with_a_part_of_the_table_never_waits_for_the_device() -> None:
    # A meta tensor has a shape and no content: reading any, or a shape that depends on it, is an error.
    table = filled(TablePlacement(block=0, num_blocks=2)).to("meta")
    table(torch.empty(5, dtype=torch.int32, device="meta")).sum().backward()
    SignSGD(table, weight_decay=0.1).step(
        lr=0.01, update_applied=torch.empty((), dtype=torch.bool, device="meta")
    )
    assert table.gradients == []  # the step went through, and used them up


def test_a_table_with_a_device_of_its_own_stays_there_when_the_model_moves() -> None:
    stays, follows = filled(TablePlacement(device=CPU)), filled()
    model = torch.nn.ModuleList([stays, follows]).to("meta")
    assert stays.weights.device == CPU
    assert follows.weights.device.type == "meta"
    assert [name for name, _ in model.named_buffers()] == ["0.weights", "1.weights"]
    with torch.device("meta"):
        assert PuzzleEmbedding(NUM_ROWS, WIDTH, TablePlacement(device=CPU)).weights.device == CPU


@pytest.mark.parametrize("num_blocks", [1, 2, 14])
def test_rows_are_loaded_in_small_blocks(num_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_shards, "_READ_ELEMENTS", 2 * WIDTH)
    asked: list[int] = []

    def read(_: str, start: int, stop: int) -> Tensor:
        assert stop - start <= 2 * WIDTH
        asked.extend(range(start, stop))
        return VALUES.view(-1)[start:stop]

    for part in range(num_blocks):
        table = PuzzleEmbedding(NUM_ROWS, WIDTH, TablePlacement(part, num_blocks))
        load_into(table.shard(table.rows), read)
        assert torch.equal(own_rows(table), VALUES[table.own_rows()])
    assert asked == [*range(NUM_ROWS * WIDTH)]


@pytest.mark.parametrize(
    ("num_rows", "world_size", "settings", "expected"),
    [
        (2**20, 4, {}, TablePlacement(0, 1, META)),
        (2**20 + 1, 4, {}, TablePlacement(2, 4, META)),
        (2**20 + 1, 1, {}, TablePlacement(0, 1, META)),
        (2**20 + 1, 4, {"puzzle_emb_shard": False}, TablePlacement(0, 1, META)),
        (3, 4, {"puzzle_emb_shard": True, "puzzle_emb_device": "cpu"}, TablePlacement(2, 4, CPU)),
        (3, 4, {"puzzle_emb_device": "cpu"}, TablePlacement(0, 1, CPU)),
    ],
)
def test_a_table_is_split_if_asked_for_or_larger_than_a_gibibyte(
    num_rows: int, world_size: int, settings: dict[str, object], expected: TablePlacement
) -> None:
    arch = ArchConfig(hidden_size=256, num_heads=4)
    config = TrainConfig.model_validate({"data_path": "data", "arch": arch, **settings})
    metadata = METADATA.model_copy(update={"num_puzzle_identifiers": num_rows})
    assert place_table(config, metadata, World(min(2, world_size - 1), world_size, META)) == expected
