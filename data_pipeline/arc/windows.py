"""The window of an ARC task: the cells that its grids need, found without its held-out outputs.

It holds every grid that is known: all inputs, and the outputs that train. Of the test inputs of a held-out task the
outputs are unknown, and their sides are inferred, height and width apart, from those of the demonstrations:

  constant size        an output has always the same
  constant ratio       it is always the same multiple of the input's, rounded up
  constant difference  it is always the input's, and as many more or less
  square               it is always the input's times itself: each cell becomes a grid

Where several rules hold, as of a single demonstration, the largest side counts. Where none holds, the next output may
be as much larger than the largest as that is than the smallest.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.augment import TRANSPOSING
from data_pipeline.arc.rows import Group
from data_pipeline.arc.task import Task
from data_pipeline.arc.tokens import Grid
from data_pipeline.windows import Misfit, Windows

Sides = NDArray[np.int64]  # [n], heights or widths of some grids


def window(task: Task, canvas: int) -> tuple[int, int]:
    """Return height and width with end marks, at most the canvas'."""
    known = task.training_pairs
    if not known:
        return canvas, canvas
    inputs, outputs = (_sizes([pair[side] for pair in known]) for side in range(2))
    all_inputs = _sizes([pair.input for pair in task.pairs])
    sides = np.concatenate([all_inputs, outputs]).max(axis=0)
    if task.held_out:
        largest = _sizes([pair.input for pair in task.tests]).max(axis=0)
        inferred = [largest_output(inputs[:, d], outputs[:, d], int(largest[d])) for d in range(2)]
        sides = np.maximum(sides, inferred)
    height, width = with_end_marks(sides, canvas).tolist()
    return height, width


def largest_output(inputs: Sides, outputs: Sides, test_input: int) -> int:
    """Return the largest side that an output may have, from those of demonstrations and that of the largest test input.

    All rules grow with the input, so the largest decides.
    """
    size, ratio_to, difference = outputs[0], inputs[0], outputs[0] - inputs[0]
    rules = (
        ((outputs == size).all(), size),
        ((outputs * ratio_to == inputs * size).all(), -(-test_input * size // ratio_to)),
        ((outputs - inputs == difference).all(), test_input + difference),
        ((outputs == inputs**2).all(), test_input**2),
    )
    inferred = [side for holds, side in rules if holds] or [2 * outputs.max() - outputs.min()]
    return int(max(inferred))


def with_end_marks(sides: Sides, canvas: int) -> Sides:
    """Add the row and the column of end marks, which are cut off at the canvas' edge."""
    return np.minimum(sides + 1, canvas)


def misfits(task: Task, canvas: int) -> tuple[int, ...]:
    """Return the numbers of the held-out test pairs whose outputs are known and do not fit into the task's window."""
    if not task.held_out:
        return ()
    room = window(task, canvas)
    return tuple(
        number
        for number, pair in enumerate(task.tests)
        if pair.output is not None and (with_end_marks(np.array(pair.output.shape), canvas) > room).any()
    )


def windows_document(groups: Sequence[Group], canvas: int) -> Windows:
    """Return what windows.json says of these groups, whose identifiers follow one another."""
    sides = np.array([window(group.task, canvas) for group in groups], dtype=np.int32)
    dihedrals = np.concatenate([group.augmentations.dihedrals for group in groups])
    unfit = ((group.task.id, misfits(group.task, canvas)) for group in groups)
    return Windows(
        canvas=canvas,
        num_puzzles=np.array([group.num_puzzles for group in groups], dtype=np.int32),
        heights=sides[:, 0],
        widths=sides[:, 1],
        transposed=np.packbits(np.isin(dihedrals, TRANSPOSING)),
        misfits=tuple(Misfit(task=task, tests=tests) for task, tests in unfit if tests),
    )


def _sizes(grids: Sequence[Grid | None]) -> NDArray[np.int64]:
    """Return (height, width) of grids; [n, 2]."""
    return np.array([grid.shape for grid in grids if grid is not None], dtype=np.int64).reshape(-1, 2)
