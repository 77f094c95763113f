"""Inputs that are in no dataset, as the reader of a test split would give them. Shapes: N inputs, T tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.arc.augment import AugmentationTable, dihedral
from data_pipeline.arc.tokens import Grid, encode
from data_pipeline.base.errors import InputError
from data_pipeline.reader import TestBatch
from data_pipeline.schema import IGNORE_LABEL_ID


class Questions(NamedTuple):
    """What the model is asked, in order."""

    inputs: NDArray[np.uint8]  # [N, T]
    puzzle_identifiers: NDArray[np.int32]  # [N]
    example_index: NDArray[np.int32]  # [N] which of the puzzle's test inputs

    def take(self, rows: NDArray[np.int64]) -> TestBatch:
        """Return some of them; that the answers are unknown is in their labels."""
        inputs = torch.from_numpy(self.inputs[rows])
        return TestBatch(
            inputs=inputs,
            labels=torch.full(inputs.shape, IGNORE_LABEL_ID, dtype=torch.int32),
            puzzle_identifiers=torch.from_numpy(self.puzzle_identifiers[rows]),
            example_index=torch.from_numpy(self.example_index[rows]),
        )

    @classmethod
    def of_puzzles(cls, tokens: Sequence[NDArray[np.uint8]]) -> "Questions":
        """Return puzzles that have no names, at least one: of each its tokens [T]."""
        zeros = np.zeros(len(tokens), dtype=np.int32)
        return cls(np.stack(tokens), zeros, zeros)

    @classmethod
    def of_tasks(
        cls, tasks: Sequence[tuple[NDArray[np.int64], AugmentationTable, Sequence[Grid]]], canvas: int
    ) -> "Questions":
        """Return the test inputs of ARC tasks as each of their augmentations has them, in the order of a test split.

        tasks: of each the identifiers of its puzzles [n], their augmentations [n], and its test inputs.
        """
        rows: list[tuple[NDArray[np.uint8], int, int]] = []
        for number in range(max(len(identifiers) for identifiers, _, _ in tasks)):
            for identifiers, augmentations, grids in tasks:
                if number < len(identifiers):
                    turn, palette = int(augmentations.dihedrals[number]), augmentations.palettes[number]
                    rows += [
                        (encode(palette[dihedral(grid, turn)], canvas), int(identifiers[number]), example)
                        for example, grid in enumerate(grids)
                    ]
        tokens, identifiers, examples = zip(*rows, strict=True)
        return cls(
            np.stack(tokens), np.array(identifiers, dtype=np.int32), np.array(examples, dtype=np.int32)
        )


def refuse_larger(grid: Grid, canvas: int, name: str) -> None:
    """Raise InputError for an ARC grid that does not fit the canvas."""
    if max(grid.shape) > canvas:
        raise InputError(
            f"{name}: is {grid.shape[0]} x {grid.shape[1]}, but the model is of grids up to {canvas} x {canvas}."
        )
