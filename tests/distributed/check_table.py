"""A command for tests: a sharded puzzle table against a replicated one, bit for bit, in lookups and updates.

RANK=... WORLD_SIZE=... python -m tests.distributed.check_table
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World, process_group
from hrm_dist.model.puzzle_embedding import PuzzleEmbedding, SignSGD, TablePlacement
from hrm_dist.tensor_shards import load_into

WIDTH, BATCH_SIZE = 5, 6


def main() -> int:
    assert len(sys.argv) == 1, "takes no arguments"
    with process_group("cpu") as world:
        for num_rows in (64, 11, 5):  # 11 is not divisible; of 5 rows the last of four ranks has none
            _check(num_rows, world)
    return 0


def _batches(num_rows: int, world: World) -> Iterator[Tensor]:
    """Identifiers of this rank, [BATCH_SIZE]."""
    generator = torch.Generator().manual_seed(world.rank)
    for _ in range(3):
        yield torch.randint(num_rows, (BATCH_SIZE,), generator=generator, dtype=torch.int32)
    for identifier in (0, num_rows - 1):  # all of one rank, and duplicates throughout
        yield torch.full((BATCH_SIZE,), identifier, dtype=torch.int32)
    yield torch.arange(BATCH_SIZE, dtype=torch.int32) % -(-num_rows // world.world_size)


def _check(num_rows: int, world: World) -> None:
    whole = PuzzleEmbedding(num_rows, WIDTH)
    part = PuzzleEmbedding(num_rows, WIDTH, TablePlacement(world.rank, world.world_size))
    values = torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(7))
    tables = (whole, part)
    optimizers = [SignSGD(table, weight_decay=0.1) for table in tables]
    for table in tables:
        load_into(table.shard(table.rows), lambda _, start, stop: values.view(-1)[start:stop])
    generator = torch.Generator().manual_seed(100 + world.rank)
    for identifiers in _batches(num_rows, world):
        _check_evaluation(whole, part, num_rows, world)
        for factor in (torch.nan, 1.0):  # of the first, nothing may remain
            before = whole.weights.clone()
            grads = factor * torch.randn(BATCH_SIZE, WIDTH, generator=generator)
            for table, optimizer in zip(tables, optimizers, strict=True):
                for half in (slice(0, BATCH_SIZE // 2), slice(BATCH_SIZE // 2, BATCH_SIZE)):
                    rows = table(identifiers[half])
                    assert torch.equal(rows, before[identifiers[half]])
                    (rows * grads[half]).sum().backward()
                optimizer.step(0.01, update_applied=torch.tensor(factor == 1.0))
            _check_shares(whole, part)
        assert not torch.equal(whole.weights, values)


def _check_evaluation(whole: PuzzleEmbedding, part: PuzzleEmbedding, num_rows: int, world: World) -> None:
    """In evaluation too, ranks look up equally many rows, such as others look up."""
    identifiers = torch.arange(3 * world.rank, 3 * world.rank + 5, dtype=torch.int32) % num_rows
    part.eval()
    assert torch.equal(part(identifiers), whole.weights[identifiers])
    part.train()


def _check_shares(whole: PuzzleEmbedding, part: PuzzleEmbedding) -> None:
    """A replicated and a sharded table give the same shares, which are the table once."""
    expected, own = (table.shard(table.own_rows()) for table in (whole, part))
    assert own.offset == expected.offset
    assert torch.equal(own.data, expected.data)
    shares = collectives.gather_objects(own.data)
    assert torch.equal(torch.cat(shares), whole.weights.view(-1))
