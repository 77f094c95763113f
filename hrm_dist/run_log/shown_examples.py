"""A few held-out puzzles, the same at every evaluation, with the model's answers: what pictures show."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.reader import TestReader
from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist.evaluation.evaluate import Answers

NUM_SHOWN = 6

Board = NDArray[np.uint8]  # [canvas, canvas] tokens


class ShownExample(NamedTuple):
    """A puzzle, and the answer after the last segment."""

    name: str
    """For a file or a tag."""
    title: str
    given: Board
    answer: Board
    truth: Board | None
    """None where it is hidden."""
    counted: NDArray[np.bool_]  # [canvas, canvas]
    """Cells that are scored."""
    q_halt: float
    """How sure the model is of its answer, from 0 to 1."""

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Return which cells of the answer are wrong."""
        return self.counted & (self.answer != self.truth) if self.truth is not None else self.counted

    @property
    def caption(self) -> str:
        """Return what there is to say of the answer."""
        num_wrong, num = int(self.wrong.sum()), int(self.counted.sum())
        how = "truth hidden"
        if self.truth is not None:
            how = f"{num_wrong:,} of {num:,} cells wrong" if num_wrong else "solved"
        return f"{self.title}: {how}, q {self.q_halt:.2f}"


def shown_examples(reader: TestReader, blocks: Sequence[Answers]) -> list[ShownExample]:
    """Return some of all answers to what a reader covers, in its order: spread over what is no augmentation."""
    places = reader.places()
    originals = np.flatnonzero(places.rounds == 0)
    rows = originals[np.linspace(0, len(originals) - 1, min(NUM_SHOWN, len(originals))).round().astype(int)]
    ends = np.cumsum([len(block.labels) for block in blocks])
    examples: list[ShownExample] = []
    for row in rows.tolist():
        number = int(ends.searchsorted(row, side="right"))
        block, place = blocks[number], row - int(ends[number - 1] if number else 0)
        group, example = int(places.groups[row]), int(block.predictions.example_index[place])
        title = f"puzzle {group}"
        if reader.group_names:
            title = f"{reader.group_names[group]}, test {example}"
        examples.append(_example(title, block, place, reader.info.canvas, reader.info.pad_id))
    return examples


def _example(title: str, block: Answers, place: int, canvas: int, pad_id: int) -> ShownExample:
    predictions, labels = block.predictions, block.labels[place].reshape(canvas, canvas)
    counted = labels != IGNORE_LABEL_ID
    truth = np.where(counted, labels, pad_id).astype(np.uint8)
    return ShownExample(
        name=re.sub(r"[^\w.-]+", "_", title),
        title=title,
        given=predictions.inputs[place].reshape(canvas, canvas).astype(np.uint8),
        answer=predictions.preds[place].reshape(canvas, canvas).astype(np.uint8),
        truth=truth if counted.any() else None,
        counted=counted,
        q_halt=1 / (1 + float(np.exp(-np.clip(predictions.q_halt_logits[place], -50, 50)))),
    )
