"""Parts of tensors: what a rank holds of the trained state, and how it is read and written.

Every engine splits a tensor into runs of its flattened elements, so a run is all that engines and checkpoints
have to know of each other.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where a run of elements lies in a whole tensor."""

    shape: tuple[int, ...]  # of the whole
    start: int  # of the run, in the flattened whole


class Piece(NamedTuple):
    """A run of elements of a tensor of the state."""

    key: str
    """`KIND.NAME`; kinds are model (weights, initial states, puzzle table), ema, exp_avg, exp_avg_sq, carry, and rank
    for what is one rank's own."""
    place: Place
    data: Tensor
    """Flattened, [n]."""


Read = Callable[[str, int, int], Tensor]
"""Elements start..stop-1 of the flattened tensor of a key, on the CPU."""


def whole(key: str, tensor: Tensor) -> Piece:
    """A tensor that this rank holds entirely."""
    return Piece(key, Place(tuple(tensor.shape), 0), tensor.detach().reshape(-1))


@torch.no_grad()
def fill(tensor: Tensor, start: int, key: str, read: Read) -> None:
    """Overwrite a contiguous tensor, which is the run from `start` on, by what is read."""
    tensor.view(-1).copy_(read(key, start, start + tensor.numel()))


def share_out(sizes: dict[str, int], num_shares: int) -> dict[str, int]:
    """Name -> number of the share that it goes to, so that the shares are about equally large.

    The largest first, each to the smallest share so far; equal on every rank.
    """
    totals = [0] * num_shares
    share_of: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = totals.index(min(totals))
        share_of[name] = smallest
        totals[smallest] += sizes[name]
    return share_of
