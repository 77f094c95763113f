"""The table of learned vectors, one row per puzzle identifier, and its sign-SGD.

A step touches only the rows of the puzzles in its batch, so the table is a buffer with an optimizer of its
own: the gradient of a row seen once in a long while is worth its sign, which is also what Adam would make
of it (as published). No row is touched by weight decay while its puzzle is away.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrm_dist import distributed
from hrm_dist.model.layers import Draw


class LookedUp(NamedTuple):
    """The rows that the last training forward used."""

    identifiers: Tensor  # [B]
    rows: Tensor  # [B, puzzle_emb_ndim] float32, a leaf that collects the gradient


class PuzzleEmbedding(nn.Module):
    """Rows of `weights`, [num_puzzle_identifiers, puzzle_emb_ndim] float32, all zero at first."""

    weights: Tensor

    def __init__(self, num_identifiers: int, puzzle_emb_ndim: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.empty(num_identifiers, puzzle_emb_ndim))
        self.looked_up: LookedUp | None = None

    def reset_parameters(self, _draw: Draw) -> None:
        nn.init.zeros_(self.weights)

    def forward(self, identifiers: Tensor) -> Tensor:
        """Rows of the identifiers, [B, puzzle_emb_ndim] float32; in training, remembered for `SignSGD`."""
        rows = self.weights[identifiers]
        if self.training:
            self.looked_up = LookedUp(identifiers, rows.requires_grad_())
        return rows


class SignSGD:
    """Sign-SGD with decoupled weight decay on the rows that the global batch used."""

    def __init__(self, table: PuzzleEmbedding, weight_decay: float) -> None:
        self.table = table
        self.weight_decay = weight_decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move each used row by lr against the sign of its gradient, summed over the global batch.

        Every rank makes the same update. A gradient that vanishes but for rounding has a sign that depends
        on the order of summation.
        """
        looked_up = self.table.looked_up
        assert looked_up is not None, "step() follows a forward in training"
        assert looked_up.rows.grad is not None, "step() follows a backward"
        identifiers = distributed.all_gather_rows(looked_up.identifiers)
        grads = distributed.all_gather_rows(looked_up.rows.grad)
        # Rows of one identifier sum up through a product with the equality matrix. Unlike torch.unique, its
        # shape is known beforehand, so the device is never waited for; duplicates write equal values.
        same = (identifiers[:, None] == identifiers[None, :]).to(grads.dtype)
        rows = self.table.weights[identifiers]
        rows.mul_(1 - lr * self.weight_decay).add_(torch.sign(same @ grads), alpha=-lr)
        self.table.weights[identifiers] = rows
        self.table.looked_up = None
