"""What a run tells of a step, described once for all sinks: its numbers, its scores as a table, and pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hrm_dist.metrics import Row
from hrm_dist.run_log.score_table import ScoreLine, score_table


class Picture(NamedTuple):
    """A held-out puzzle beside what the model makes of it."""

    name: str
    """The same at every evaluation."""
    caption: str
    pixels: NDArray[np.uint8]  # [height, width, 3]


@dataclass(frozen=True)
class Entry:
    """A row of training, or what an evaluation has found."""

    step: int
    values: Row
    """By name, such as `train/loss` and `eval/exact_accuracy`."""
    subset: str = ""
    """Of which puzzles scores are, if that is known."""
    draw: Callable[[], Sequence[Picture]] = tuple

    # What takes a while is made by whoever asks first: a thread of a sink, not the training.

    @cached_property
    def scores(self) -> Sequence[ScoreLine]:
        """Return the table of scores; empty for a row of training."""
        found = {
            key.removeprefix("eval/"): value for key, value in self.values.items() if key.startswith("eval/")
        }
        return score_table({key: float(value) for key, value in found.items()}, self.subset)

    @cached_property
    def pictures(self) -> Sequence[Picture]:
        """Return pictures of some answers."""
        return self.draw()


class Sink(Protocol):
    """Somewhere entries go, on the main process alone. None may hold up training, or change what it computes."""

    def write(self, entry: Entry) -> None:
        """Take an entry; the steps of entries never fall."""
        ...

    def flush(self) -> None:
        """Have on disk what must be there before a checkpoint of the last step. Raises WriteError."""
        ...

    def close(self) -> None:
        """Finish what can be finished."""
        ...
