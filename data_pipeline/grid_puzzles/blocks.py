"""Do with millions of puzzles what needs much memory for each: some of them at a time."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.grid_puzzles.csv_source import Puzzles

_Function = TypeVar("_Function", bound=Callable[..., NDArray[Any]])


def in_blocks(size: int) -> Callable[[_Function], _Function]:
    """Let a function of n puzzles see `size` of them at a time, so that its intermediate arrays stay in the cache.

    Its arguments that are arrays or `Puzzles`, the first among them, are of n puzzles, and so is what it returns.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def whole(*arguments: Any) -> NDArray[Any]:
            first = arguments[0]
            count = first.num_puzzles if isinstance(first, Puzzles) else len(first)
            blocks = (slice(start, start + size) for start in range(0, max(1, count), size))
            return np.concatenate(
                [function(*(_cut(value, block) for value in arguments)) for block in blocks]
            )

        return cast(_Function, whole)

    return decorate


def _cut(value: Any, block: slice) -> Any:
    if isinstance(value, Puzzles):
        return value.take(block)
    return cast(NDArray[Any], value)[block] if isinstance(value, np.ndarray) else value
