"""The symmetries of ARC: eight rotations and reflections times relabelling of the colours 1..9.

An augmentation is written into the name of its puzzle, so that a prediction can be mapped back from the name
alone: `TASK|||t3|||0718293645`, or `TASK_t3_0718293645` in data built by the first HRM release.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import InputError
from data_pipeline.randomness import random_bits
from data_pipeline.task import Pair, Task
from data_pipeline.tokens import MAX_GRID_SIDE, NUM_COLOURS, Grid

NUM_DIHEDRAL = 8
TRIALS_PER_AUGMENTATION = 5  # as published; tasks with few distinct augmentations end with fewer than asked

_INVERSE_DIHEDRAL = (0, 3, 2, 1, 4, 5, 6, 7)
_TRM_NAME = re.compile(r"(?P<task>.+)\|\|\|t(?P<t>[0-7])\|\|\|(?P<palette>[0-9]{10})", re.DOTALL)
_HRM_NAME = re.compile(r"(?P<task>.+)_t(?P<t>[0-7])_(?P<palette>[0-9]{10})", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Augmentation:
    """A dihedral id (see `dihedral`) and the image of each colour, palette [10]."""

    dihedral: int
    palette: NDArray[np.uint8]

    @property
    def is_identity(self) -> bool:
        return self.dihedral == 0 and bool(np.array_equal(self.palette, np.arange(NUM_COLOURS)))


class AugmentationTable(NamedTuple):
    """The augmentations of one group, the original first."""

    dihedrals: NDArray[np.uint8]  # [n]
    palettes: NDArray[np.uint8]  # [n, 10]

    def names(self, task_id: str) -> list[str]:
        """The puzzle names, in order."""
        digits = (self.palettes + ord("0")).tobytes().decode("ascii")
        augmented = (
            f"{task_id}|||t{t}|||{digits[i * NUM_COLOURS : (i + 1) * NUM_COLOURS]}"
            for i, t in enumerate(self.dihedrals.tolist())
            if i > 0
        )
        return [task_id, *augmented]


IDENTITY = Augmentation(0, np.arange(NUM_COLOURS, dtype=np.uint8))


def dihedral(grid: Grid, t: int) -> Grid:
    """The grid turned by t quarter turns (0..3), mirrored left-right (4), up-down (5), or transposed along
    the main (6) or the other diagonal (7)."""
    if t < 4:
        return np.rot90(grid, k=t)
    match t:
        case 4:
            return np.fliplr(grid)
        case 5:
            return np.flipud(grid)
        case 6:
            return grid.T
        case 7:
            return np.fliplr(np.rot90(grid, k=1))
        case _:
            raise ValueError(f"dihedral id {t} is not in 0..7")


def inverse_dihedral(grid: Grid, t: int) -> Grid:
    """Undo `dihedral(grid, t)`."""
    return dihedral(grid, _INVERSE_DIHEDRAL[t])


def apply(grid: Grid, augmentation: Augmentation) -> Grid:
    """The augmented grid."""
    return augmentation.palette[dihedral(grid, augmentation.dihedral)]


def invert(grid: Grid, augmentation: Augmentation) -> Grid:
    """The grid that `apply` made this one of."""
    inverse_palette = np.argsort(augmentation.palette, kind="stable").astype(np.uint8)
    return inverse_dihedral(inverse_palette[grid], augmentation.dihedral)


def augmentation_name(task_id: str, augmentation: Augmentation) -> str:
    """The name of the puzzle that an augmentation makes of a task; of the original, the task's own id."""
    if augmentation.is_identity:
        return task_id
    return f"{task_id}|||t{augmentation.dihedral}|||{''.join(map(str, augmentation.palette.tolist()))}"


def parse_name(name: str) -> tuple[str, Augmentation]:
    """The task id and augmentation that a puzzle name stands for, in the spelling of HRM or of TRM.

    Raises InputError when the name says an augmentation that is none.
    """
    match = _TRM_NAME.fullmatch(name) or _HRM_NAME.fullmatch(name)
    if match is None:
        return name, IDENTITY
    palette = np.frombuffer(match["palette"].encode("ascii"), dtype=np.uint8) - ord("0")
    if len(set(match["palette"])) != NUM_COLOURS:
        raise InputError(
            f"puzzle name {name!r}: {match['palette']} is no relabelling of the ten colours, since one is "
            "missing and another comes twice; take the identifiers file from the dataset's own build."
        )
    return match["task"], Augmentation(int(match["t"]), palette)


def plan_augmentations(task: Task, num_aug: int, seed: int) -> AugmentationTable:
    """The original and at most `num_aug` distinct augmentations of a task, drawn as published.

    Two augmentations are the same when they make the same pairs, in whatever order. The draws depend on the
    seed and the task's id alone, and a smaller `num_aug` gives a prefix.
    """
    trials = TRIALS_PER_AUGMENTATION * num_aug
    bits = random_bits(trials * NUM_COLOURS, seed, "augmentations", task.id).reshape(trials, NUM_COLOURS)
    dihedrals = np.zeros(1 + trials, dtype=np.uint8)
    dihedrals[1:] = bits[:, 0] >> np.uint64(61)
    palettes = np.tile(np.arange(NUM_COLOURS, dtype=np.uint8), (1 + trials, 1))
    palettes[1:, 1:] = np.argsort(bits[:, 1:], axis=1, kind="stable") + 1
    keys = _content_keys(task.pairs, dihedrals, palettes)
    _, first = np.unique(keys, return_index=True)
    kept = np.sort(first)[: 1 + num_aug]
    return AugmentationTable(dihedrals[kept], palettes[kept])


def _content_keys(
    pairs: tuple[Pair, ...], dihedrals: NDArray[np.uint8], palettes: NDArray[np.uint8]
) -> NDArray[np.uint64]:
    """For each of n augmentations a 64-bit key of the puzzle that it makes; [n].

    Every place of a pair has a random weight, and the key of a pair is the sum of (colour + 1) * weight. That
    is linear in the palette, so it takes one small integer product instead of making and hashing the grids.
    Keys of pairs are scrambled before they are added up, for else two puzzles that have swapped grids between
    their pairs would look the same. Different puzzles share a key with a chance below 2**-58.
    """
    weight_sums = np.stack([_weight_of_colours(pairs, t) for t in range(NUM_DIHEDRAL)])  # [8, 10, P]
    values = palettes.astype(np.uint64) + np.uint64(1)
    keys = np.empty(len(dihedrals), dtype=np.uint64)
    for t in range(NUM_DIHEDRAL):
        chosen = dihedrals == t
        keys[chosen] = _scramble(values[chosen] @ weight_sums[t]).sum(axis=1, dtype=np.uint64)
    return keys


def _weight_of_colours(pairs: tuple[Pair, ...], t: int) -> NDArray[np.uint64]:
    """Sum of the weights of the places where a colour stands in dihedral image t of each pair; [10, P]."""
    sums = np.zeros((NUM_COLOURS, len(pairs)), dtype=np.uint64)
    for p, pair in enumerate(pairs):
        for grid, weights in zip(pair, _WEIGHTS, strict=True):
            if grid is not None:
                image = dihedral(grid, t)
                height, width = image.shape
                np.add.at(sums[:, p], image, weights[:height, :width])
    return sums


def _scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, a bijection."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_WEIGHTS = random_bits(2 * MAX_GRID_SIDE**2, "content weights").reshape(2, MAX_GRID_SIDE, MAX_GRID_SIDE)
