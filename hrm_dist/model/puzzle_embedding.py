"""The table of learned vectors, one row per puzzle identifier, and its sign-SGD.

A step touches only the rows of the puzzles in its batch, so the table is a buffer with an optimizer of its
own: the gradient of a row seen once in a long while is worth its sign, which is also what Adam would make
of it (as published). No row is touched by weight decay while its puzzle is away.

A large table is split over the ranks in blocks of rows. Training has fixed shapes all the same, so that
nothing waits for the device: every rank answers for every identifier of the global batch, and the one that
asked picks the answer of the rank that holds the row.
Shapes: B identifiers of this rank, W ranks, D puzzle_emb_ndim.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import TrainConfig
from hrm_dist.distributed import collectives
from hrm_dist.distributed.process_group import World
from hrm_dist.model.initialization import InitFn
from hrm_dist.tensor_shards import TensorShard

_SHARD_ABOVE_BYTES = 2**30
STATE_KEY = "model.puzzle_emb.weights"
"""Of the table in a state."""


class TablePlacement(NamedTuple):
    """Which rows of the table this rank holds, and where."""

    block: int = 0
    num_blocks: int = 1  # as many as there are ranks, or 1: every rank holds the whole table
    device: torch.device | None = None  # made there to stay there; None: goes with the model


WHOLE_TABLE = TablePlacement()


def place_table(config: TrainConfig, metadata: DatasetMetadata, world: World) -> TablePlacement:
    """Return where the configuration puts the table of a rank."""
    shard = config.puzzle_emb_shard
    if shard is None:
        shard = 4 * metadata.num_puzzle_identifiers * config.arch.puzzle_emb_width > _SHARD_ABOVE_BYTES
    block, num_blocks = (world.rank, world.world_size) if shard else (0, 1)
    device = torch.device("cpu") if config.puzzle_emb_device == "cpu" else world.device
    return TablePlacement(block, num_blocks, device)


def rows_of_block(num_rows: int, block: int, num_blocks: int) -> range:
    """Return the rows of one of num_blocks blocks of equal size; the last ones have fewer, or none."""
    size = -(-num_rows // num_blocks)
    return range(min(block * size, num_rows), min((block + 1) * size, num_rows))


class RowGradients(NamedTuple):
    """What a backward gave the rows that its forward looked up."""

    identifiers: Tensor  # [B]
    grads: Tensor  # [B, D] float32


class PuzzleEmbedding(nn.Module):
    """This rank's rows of the table in `weights`, [rows, D] float32, all zero at first.

    A block of the table has one more row at its end, a stand-in for all rows of other ranks: it is read and
    written in place of theirs, and its content means nothing.
    """

    weights: Tensor

    def __init__(
        self, num_identifiers: int, puzzle_emb_ndim: int, placement: TablePlacement = WHOLE_TABLE
    ) -> None:
        super().__init__()
        self.num_identifiers, self.placement = num_identifiers, placement
        self.rows = rows_of_block(num_identifiers, placement.block, placement.num_blocks)
        local_rows = len(self.rows) + (1 if self.is_sharded else 0)
        weights = torch.empty(local_rows, puzzle_emb_ndim, device=placement.device)
        self.register_buffer("weights", weights)
        self.gradients: list[RowGradients] = []
        """Since the last step, one for each forward whose backward came."""

    @property
    def is_sharded(self) -> bool:
        return self.placement.num_blocks > 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Do what `.to(device)` and the like ask for; a table with a device of its own stays as it is."""
        return self if self.placement.device is not None else super()._apply(fn, recurse)

    def init_weights(self, init: InitFn) -> None:
        init("weights", 0.0)

    def forward(self, identifiers: Tensor) -> Tensor:
        """Return the rows of the identifiers, [B, D] float32; in training, keep their gradient for `SignSGD`.

        Of a sharded table all ranks look up equally many rows at the same time.
        """
        rows = self._ask_all_ranks(identifiers) if self.is_sharded else self._local_rows(identifiers)
        if self.training:
            self._keep_gradient(identifiers, rows)
        return rows

    def local_index(self, identifiers: Tensor) -> Tensor:
        """Return where in `weights` the rows of the identifiers are; those of other ranks, in the last row."""
        if not self.is_sharded:
            return identifiers
        is_here = (identifiers >= self.rows.start) & (identifiers < self.rows.stop)
        return torch.where(is_here, identifiers - self.rows.start, len(self.rows))

    def _local_rows(self, identifiers: Tensor) -> Tensor:
        index = self.local_index(identifiers).to(self.weights.device)
        return self.weights[index].to(identifiers.device)

    def _ask_all_ranks(self, identifiers: Tensor) -> Tensor:
        """Return the rows of the identifiers from whichever rank holds them, [B, D].

        Every rank sends and receives W * B * D numbers, all of the global batch, however many ranks there are.
        """
        size = len(identifiers)
        asked = collectives.all_gather_rows(identifiers)  # [W * B]
        answers = collectives.exchange_blocks(self._local_rows(asked))
        owner = identifiers // -(-self.num_identifiers // self.placement.num_blocks)
        slot = torch.arange(size, device=identifiers.device)
        return answers.unflatten(0, (-1, size))[owner, slot]

    def _keep_gradient(self, identifiers: Tensor, rows: Tensor) -> None:
        """Collect the gradient once it is there: a forward without backward leaves nothing."""

        def collect(rows: Tensor) -> None:
            assert rows.grad is not None
            self.gradients.append(RowGradients(identifiers, rows.grad))
            rows.grad = None

        rows.requires_grad_().register_post_accumulate_grad_hook(collect)

    def finite_gradients(self) -> Tensor:
        """Return, for each identifier looked up since the last step, whether its gradient is finite, [B] bool."""
        return torch.cat([torch.isfinite(one.grads).all(-1) for one in self.gradients])

    # For checkpoints

    def own_rows(self) -> range:
        """Return the rows that this rank saves: over all ranks each row once, also where every rank holds all."""
        if self.is_sharded:
            return self.rows
        return rows_of_block(self.num_identifiers, collectives.rank(), collectives.world_size())

    def shard(self, rows: range) -> TensorShard:
        """Return rows that are held here as a shard of the table, a view."""
        first, width = rows.start - self.rows.start, self.weights.shape[1]
        data = self.weights[first : first + len(rows)].reshape(-1)
        return TensorShard(STATE_KEY, (self.num_identifiers, width), rows.start * width, data)


class SignSGD:
    """Sign-SGD with decoupled weight decay on the rows that the global batch used."""

    def __init__(self, table: PuzzleEmbedding, weight_decay: float, *, compiles: bool = False) -> None:
        self.table = table
        self.weight_decay = weight_decay
        self._moved_rows = (
            torch.compile(_moved_rows, fullgraph=True, dynamic=False) if compiles else _moved_rows
        )

    @torch.no_grad()
    def step(self, lr: Tensor | float, update_applied: Tensor | None = None) -> None:
        """Move each used row by lr, [], against the sign of its gradient, summed over the global batch.

        update_applied: [] bool, whether the engine applied its update; if not, nothing changes here either, but the
        gradients since the last step are used up all the same.
        Every rank finds the same update and makes it on the rows it holds. A gradient that vanishes but for
        rounding has a sign that depends on the order of summation.
        """
        gradients, weights = self.table.gradients, self.table.weights
        assert gradients, "step() follows a forward in training and its backward"
        # Of a sharded table each rank needs the gradients of its own rows alone. Which those are is not known
        # beforehand: sent to their owners in blocks of a fixed size, they would come to as many bytes.
        identifiers = collectives.all_gather_rows(torch.cat([one.identifiers for one in gradients]))
        grads = collectives.all_gather_rows(torch.cat([one.grads for one in gradients]))
        self.table.gradients = []
        if update_applied is None:
            update_applied = torch.ones((), dtype=torch.bool, device=identifiers.device)
        lr = torch.as_tensor(lr, dtype=torch.float64, device=identifiers.device)
        index = self.table.local_index(identifiers).to(weights.device)
        rows = weights[index].to(identifiers.device)
        moved = self._moved_rows(rows, identifiers, grads, lr, self.weight_decay, update_applied)
        # Outside of what is compiled, so that it is in place for certain, without a copy of the table.
        weights[index] = moved.to(weights.device)


def _moved_rows(
    rows: Tensor, identifiers: Tensor, grads: Tensor, lr: Tensor, weight_decay: float, update_applied: Tensor
) -> Tensor:
    """Return the rows after an update, [B, D]; without one, as they are."""
    # Rows of one identifier sum up through a product with the equality matrix. Unlike torch.unique, its
    # shape is known beforehand, so the device is never waited for; duplicates write equal values.
    same = (identifiers[:, None] == identifiers[None, :]).to(grads.dtype)
    decay, rate = (number.to(rows.dtype) for number in (1 - lr * weight_decay, lr))
    moved = rows * decay - torch.sign(same @ grads) * rate
    return torch.where(update_applied, moved, rows)
