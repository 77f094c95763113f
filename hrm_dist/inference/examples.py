"""A puzzle of a dataset to try a model on, as people write it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.arc.augment import parse_name
from data_pipeline.arc.tokens import FIRST_COLOUR_ID
from data_pipeline.kinds import kind_named
from data_pipeline.plain_grids import PlainGrids
from data_pipeline.reader import TestReader
from data_pipeline.schema import DatasetInfo
from hrm_dist.inference.exported import Example


def example_of(data_path: Path, info: DatasetInfo, names: Sequence[str]) -> Example:
    """Return the first held-out input, or the first that trains where nothing is held out.

    names: of the dataset's identifiers.
    """
    reader = TestReader(data_path, max_groups=1, num_aug=0)
    if not len(reader):
        reader = TestReader(data_path, max_groups=1, num_aug=0, split="train")
    batch = reader.take(np.zeros(1, dtype=np.int64))
    tokens = batch["inputs"][0].numpy()
    kind = kind_named(info.kind)
    if kind.scorer != "votes":
        plain = PlainGrids.of(kind, info.canvas, info.vocab_size)
        return plain.decode(tokens, like=["", ""])
    task, _ = parse_name(names[int(batch["puzzle_identifiers"][0])])
    board = tokens.reshape(info.canvas, info.canvas)
    coloured = board >= FIRST_COLOUR_ID  # in training it may lie anywhere on the canvas
    grid = board[np.ix_(coloured.any(axis=1), coloured.any(axis=0))] - FIRST_COLOUR_ID
    return {task: [grid.tolist()]}
