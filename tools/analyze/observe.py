"""See every state of a model after each update, while it runs as it always does.

Whatever the architecture, an update of a state ends in `Recurrence.settled`, so that is where to look: nothing of a
recurrence is written a second time, and what is seen is what the model goes on with.
Shapes: B sequences, S positions, D hidden_size.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrm_dist.model.act import ACTModel
from hrm_dist.model.packing import Packing, unpack


class Update(NamedTuple):
    """What an update does to a state."""

    number: int
    """Which of the segment's H_cycles * L_cycles fast updates it belongs to, from 1."""
    state: int
    """Which state, in the order of the architecture's description."""
    old: Tensor  # [B, S, D]; positions that are not computed are 0
    new: Tensor  # [B, S, D]
    num_positions: Tensor  # [B] that are computed


@contextmanager
def observed(model: ACTModel, see: Callable[[Update], None]) -> Generator[None]:
    """Call `see` after every update within the block; the model must not be compiled or recorded."""
    recurrence = model.recurrence
    settled = recurrence.settled
    packings: list[Packing | None] = [None]

    def note_packing(_: nn.Module, given: tuple[Any, ...]) -> None:
        packings[0] = given[2].packing

    def settled_and_seen(old: Tensor, new: Tensor, noise_keys: Tensor | None, *place: int) -> Tensor:
        after = settled(old, new, noise_keys, *place)
        number, state = place
        see(Update(number, state, *_dense(old, after, packings[0])))
        return after

    hook = recurrence.register_forward_pre_hook(note_packing)
    recurrence.settled = settled_and_seen
    try:
        yield
    finally:
        hook.remove()
        del recurrence.settled  # the method is there again


def _dense(old: Tensor, new: Tensor, packing: Packing | None) -> tuple[Tensor, Tensor, Tensor]:
    if packing is None:
        return old, new, torch.full((len(new),), new.shape[1], device=new.device)
    zero = torch.zeros((), dtype=new.dtype, device=new.device)
    old, new = (unpack(state.squeeze(0), zero, packing) for state in (old, new))
    return old, new, packing.is_inside_BS.sum(1)
