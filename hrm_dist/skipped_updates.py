"""Updates that were skipped because a loss or gradient was not finite.

How many there are, since which step, and which puzzles caused them.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hrm_dist.distributed import collectives

_NOBODY = -1


class Skipped(NamedTuple):
    """What was skipped since the last report."""

    num_updates: int
    in_a_row: int
    """Ending with the last step."""
    first_step: int
    identifiers: list[int]
    """Puzzles whose own loss, or gradient of the embedding, was not finite in the first of these steps."""

    def describe(self, data_path: Path) -> str:
        """Return it in words, with the puzzles' names in the dataset."""
        names = json.loads((data_path / "identifiers.json").read_bytes())
        puzzles = ", ".join(str(names[identifier]) for identifier in self.identifiers[:10])
        if len(self.identifiers) > 10:
            puzzles += f" and {len(self.identifiers) - 10} more, so it is hardly theirs"
        return (
            f"{self.num_updates} update(s) skipped, the first in step {self.first_step}, as loss or gradient was not "
            f"finite; puzzles: {puzzles or 'none, the losses are finite and their gradient is not'}"
        )


class SkippedUpdates:
    """Keep count on the device, so that no step waits for it."""

    def __init__(self, num_sequences: int, device: torch.device) -> None:
        """num_sequences: of this rank, in a step."""
        # Always the same tensors, changed in place: a recorded step knows them by their places.
        self._in_a_row, self._count, self._first_step = torch.zeros(3, dtype=torch.int64, device=device)
        # Identifiers of puzzles in the first of the steps, or _NOBODY.
        self._culprits = torch.full((num_sequences,), _NOBODY, dtype=torch.int64, device=device)

    def add(self, step: Tensor, update_applied: Tensor, finite: Tensor, identifiers: Tensor) -> None:
        """Note a step, []: whether its update was applied, [], and which of this rank's sequences, [b], were finite."""
        skipped = ~update_applied
        is_first = skipped & (self._count == 0)
        culprits = torch.where(finite, _NOBODY, identifiers)
        self._culprits.copy_(torch.where(is_first, culprits, self._culprits))
        self._first_step.copy_(torch.where(is_first, step, self._first_step))
        self._count += skipped
        self._in_a_row.copy_(torch.where(skipped, self._in_a_row + 1, 0))

    def report(self) -> Skipped | None:
        """Return what was skipped since the last report, the same on every rank; None if nothing was."""
        count, first_step = int(self._count.item()), int(self._first_step.item())
        if count == 0:
            return None
        own = self._culprits[self._culprits != _NOBODY].tolist()
        self._count.zero_()
        everybody = {identifier for of_rank in collectives.gather_objects(own) for identifier in of_rank}
        return Skipped(count, int(self._in_a_row.item()), first_step, sorted(everybody))
