"""The symmetries of ARC: eight rotations and reflections times permuted colours 1..9.

An augmentation is written into the name of its puzzle, so that a prediction can be mapped back from the name
alone: `TASK|||t3|||0718293645`, or `TASK_t3_0718293645` in data built by the first HRM release.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.task import Pair, Task
from data_pipeline.arc.tokens import MAX_GRID_SIDE, NUM_COLOURS, Grid
from data_pipeline.base.errors import InputError
from data_pipeline.base.random import random_bits, scramble

NUM_DIHEDRAL = 8
TRANSPOSING = (1, 3, 6, 7)
"""The images in which height and width change places."""

TRIALS_PER_AUGMENTATION = 5  # as published; tasks with few distinct augmentations end with fewer than asked

_Cell = TypeVar("_Cell", bound=np.generic)
_STEPS = ((1, 1), (-1, 1), (-1, -1), (1, -1), (1, -1), (-1, 1), (1, 1), (-1, -1))
"""Down and right through the grid, or the transposed one, by dihedral id."""
_INVERSE_DIHEDRAL = (0, 3, 2, 1, 4, 5, 6, 7)
_TRM_SUFFIX, _HRM_SUFFIX = "|||t?|||##########", "_t?_##########"
"""The spelling of an augmentation after the task: ? is its dihedral id, # a digit of its palette."""


@dataclass(frozen=True, eq=False)
class Augmentation:
    """A dihedral id (see `dihedral`) and the image of each colour, palette [10]."""

    dihedral: int
    palette: NDArray[np.uint8]


class AugmentationTable(NamedTuple):
    """The augmentations of one group, the original first."""

    dihedrals: NDArray[np.uint8]  # [n]
    palettes: NDArray[np.uint8]  # [n, 10]

    def names(self, task_id: str) -> list[str]:
        """Return the puzzle names, in order."""
        digits = (self.palettes + ord("0")).tobytes().decode("ascii")
        augmented = (
            f"{task_id}|||t{t}|||{digits[i * NUM_COLOURS : (i + 1) * NUM_COLOURS]}"
            for i, t in enumerate(self.dihedrals.tolist())
            if i > 0
        )
        return [task_id, *augmented]


IDENTITY = Augmentation(0, np.arange(NUM_COLOURS, dtype=np.uint8))


def dihedral(grid: NDArray[_Cell], t: int) -> NDArray[_Cell]:
    """Turn a grid by t quarter turns (0..3), mirror it left-right (4), up-down (5), or transpose it along
    the main (6) or the other diagonal (7). Grids of one size [..., height, width] may come together."""
    if t not in range(NUM_DIHEDRAL):
        raise ValueError(f"dihedral id {t} is not in 0..7")
    down, right = _STEPS[t]
    upright = np.swapaxes(grid, -1, -2) if t in TRANSPOSING else grid
    return upright[..., ::down, ::right]


def inverse_dihedral(grid: NDArray[_Cell], t: int) -> NDArray[_Cell]:
    """Undo `dihedral(grid, t)`."""
    return dihedral(grid, _INVERSE_DIHEDRAL[t])


def apply(grid: Grid, augmentation: Augmentation) -> Grid:
    """Return the augmented grid."""
    return augmentation.palette[dihedral(grid, augmentation.dihedral)]


def augmentation_name(task_id: str, augmentation: Augmentation) -> str:
    """Return the name of the puzzle that an augmentation makes of a task; of the original, the task's own id."""
    if augmentation.dihedral == 0 and np.array_equal(augmentation.palette, IDENTITY.palette):
        return task_id
    return f"{task_id}|||t{augmentation.dihedral}|||{''.join(map(str, augmentation.palette.tolist()))}"


def parse_name(name: str) -> tuple[str, Augmentation]:
    """Return the task id and augmentation that a puzzle name means, in the spelling of HRM or of TRM.

    Raise InputError when the name says an augmentation that is none.
    """
    [task], table = parse_names([name])
    if task == name:
        return name, IDENTITY
    return task, Augmentation(int(table.dihedrals[0]), table.palettes[0])


def parse_names(names: Sequence[str]) -> tuple[list[str], AugmentationTable]:
    """Return the task id and the augmentation of each name, as `parse_name` does: a million of them in a second."""
    size = len(_TRM_SUFFIX)
    ends = "".join([name[-size:].rjust(size) for name in names]).encode("ascii", "replace")
    letters = np.frombuffer(ends, dtype=np.uint8).reshape(-1, size)
    lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
    is_trm, is_hrm = (_are_spelled(letters, lengths, suffix) for suffix in (_TRM_SUFFIX, _HRM_SUFFIX))
    numbers = letters - ord("0")
    dihedrals = np.select(
        [is_trm, is_hrm],
        [numbers[:, -len(suffix) + suffix.index("?")] for suffix in (_TRM_SUFFIX, _HRM_SUFFIX)],
    )
    is_augmented = is_trm | is_hrm
    palettes = np.where(is_augmented[:, None], numbers[:, -NUM_COLOURS:], IDENTITY.palette)
    is_wrong = (np.sort(palettes, axis=1) != IDENTITY.palette).any(axis=1)
    if is_wrong.any():
        name = names[int(is_wrong.argmax())]
        raise InputError(
            f"puzzle name {name!r}: {name[-NUM_COLOURS:]} is no relabelling of the ten colours, since one is "
            "missing and another comes twice; take the identifiers file from the dataset's own build."
        )
    ends_at = lengths - len(_TRM_SUFFIX) * is_trm - len(_HRM_SUFFIX) * is_hrm
    tasks = [name[:end] for name, end in zip(names, ends_at.tolist(), strict=True)]
    return tasks, AugmentationTable(dihedrals.astype(np.uint8), palettes)


def _are_spelled(letters: NDArray[np.uint8], lengths: NDArray[np.int64], suffix: str) -> NDArray[np.bool_]:
    """Return which names, of which `letters` are the last, end in a suffix and have a task before it."""
    found = lengths > len(suffix)
    most = {"?": NUM_DIHEDRAL - 1, "#": NUM_COLOURS - 1}
    for letter, expected in zip(letters[:, -len(suffix) :].T, suffix, strict=True):
        found &= letter - ord("0") <= most[expected] if expected in most else letter == ord(expected)
    return found


def plan_augmentations(task: Task, num_aug: int, seed: int) -> AugmentationTable:
    """Draw, as published, at most `num_aug` distinct augmentations of a task, after the original.

    Two augmentations are the same when they make the same pairs, in whatever order. The draws depend on the
    seed and the task's id alone, and a smaller `num_aug` gives a prefix.
    """
    weights = _weights_of_colours(task.pairs)
    # Most tasks have so many augmentations that hardly any trial is in vain, but a few need all of the trials.
    most = TRIALS_PER_AUGMENTATION * num_aug
    for trials in (min(most, num_aug + num_aug // 64 + 8), min(most, 3 * num_aug // 2), most):
        table = _draw(trials, seed, task.id)
        _, first = np.unique(_content_keys(weights, table), return_index=True)
        if len(first) > num_aug:
            break
    kept = np.sort(first)[: 1 + num_aug]
    return AugmentationTable(table.dihedrals[kept], table.palettes[kept])


def _draw(trials: int, seed: int, task_id: str) -> AugmentationTable:
    """Return the original and then that many augmentations as they are drawn, doubles among them."""
    bits = random_bits(trials * NUM_COLOURS, seed, "augmentations", task_id).reshape(trials, NUM_COLOURS)
    dihedrals = np.zeros(1 + trials, dtype=np.uint8)
    dihedrals[1:] = bits[:, 0] >> np.uint64(61)
    palettes = np.tile(np.arange(NUM_COLOURS, dtype=np.uint8), (1 + trials, 1))
    palettes[1:, 1:] = np.argsort(bits[:, 1:], axis=1, kind="stable") + 1
    return AugmentationTable(dihedrals, palettes)


def _content_keys(weights: NDArray[np.float64], table: AugmentationTable) -> NDArray[np.uint64]:
    """Return for each of n augmentations a 64-bit key of the puzzle that it makes; [n].

    Every cell of a pair has a random weight, and the key of a pair is the sum of (colour + 1) * weight. That
    is linear in the palette, so it takes one small product with the `weights` of the colours instead of
    making and hashing the grids. Keys of pairs are scrambled before they are added up, for else two puzzles
    that have swapped grids between their pairs would look the same. Different puzzles share a key with a
    chance below 2**-58.
    """
    values = table.palettes + 1.0
    keys = np.empty(len(table.dihedrals), dtype=np.uint64)
    for t in range(NUM_DIHEDRAL):
        chosen = table.dihedrals == t
        low, high = (values[chosen] @ weights[:, t]).astype(np.uint64)
        keys[chosen] = scramble(low + (high << np.uint64(32))).sum(axis=1, dtype=np.uint64)
    return keys


def _weights_of_colours(pairs: tuple[Pair, ...]) -> NDArray[np.float64]:
    """Sum the weights of the positions that a colour has in each dihedral image of each pair, their lower
    and their upper halves; [2, 8, 10, P].

    Halves add up exactly in float64, which numpy multiplies many times faster than integers.
    """
    sums = np.zeros((len(pairs), NUM_COLOURS, 2 * NUM_DIHEDRAL))
    colours = np.arange(NUM_COLOURS, dtype=np.uint8)[:, None]
    for p, pair in enumerate(pairs):
        for side, grid in enumerate(pair):
            if grid is not None:
                has_colour = (colours == grid.reshape(-1)).astype(np.float64)
                sums[p] += has_colour @ _weights_of_cells(side, *grid.shape)
    sums = sums.reshape(len(pairs), NUM_COLOURS, 2, NUM_DIHEDRAL)
    return np.ascontiguousarray(sums.transpose(2, 3, 1, 0))


@functools.cache
def _weights_of_cells(side: int, height: int, width: int) -> NDArray[np.float64]:
    """Return for each cell of an input (0) or output (1) the weight of its position in each dihedral image,
    lower halves and upper halves; [height * width, 2 * 8]."""
    weights = np.empty((height * width, 2, NUM_DIHEDRAL))
    for t in range(NUM_DIHEDRAL):
        corner = (width, height) if t in TRANSPOSING else (height, width)
        of_cells = inverse_dihedral(_WEIGHTS[side, : corner[0], : corner[1]], t).reshape(-1)
        weights[:, 0, t] = of_cells & np.uint64(2**32 - 1)
        weights[:, 1, t] = of_cells >> np.uint64(32)
    return weights.reshape(height * width, 2 * NUM_DIHEDRAL)


_WEIGHTS = random_bits(2 * MAX_GRID_SIDE**2, "content weights").reshape(2, MAX_GRID_SIDE, MAX_GRID_SIDE)
