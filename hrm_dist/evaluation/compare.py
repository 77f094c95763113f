"""What a way of evaluating has changed against another, on the same inputs: answers, and what is right."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.reader import TestReader
from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist.evaluation.output_dir import Evaluation, read_evaluation
from hrm_dist.evaluation.predictions import read_predictions
from hrm_dist.evaluation.proof import prove

_BATCH = 4096


class Comparison(NamedTuple):
    """Counts of inputs, and segments that they took."""

    inputs: int
    """Answered in both."""
    differing: int
    """Whose answer is another: in any cell that the truth has, or where it is hidden in any."""
    known: int
    """Whose truth is known."""
    right: int
    right_there: int
    gained: int
    """Right here and wrong there."""
    lost: int
    segments: int
    segments_there: int


def refuse_other_inputs(against: Path, evaluation: Evaluation) -> None:
    """Raise InputError unless a folder can be compared with an evaluation, being of the same inputs."""
    other = read_evaluation(against)
    if other is None:
        raise InputError(
            f"--against {against}: is no folder of predictions; give one that tools.evaluate wrote."
        )
    for which, known in ((f"--against {against}", other), ("--out", evaluation)):
        if known.dataset_sha256 is None:
            raise InputError(
                f"{which}: an earlier version began it, and did not say which inputs it answers; evaluate again into a "
                "new folder to compare with it."
            )
    same = ("dataset_sha256", "num_aug", "max_groups", "num_rows")
    if any(getattr(other, name) != getattr(evaluation, name) for name in same):
        raise InputError(
            f"--against {against}: is no evaluation of the same inputs; give a folder that tools.evaluate wrote with "
            "the same --data, --num-aug and --max-groups."
        )


def compared(out: Path, against: Path, evaluation: Evaluation, reader: TestReader) -> Comparison:
    """Return what the predictions in `out` changed against others; raise InputError unless of the same inputs."""
    refuse_other_inputs(against, evaluation)
    other = read_evaluation(against)
    assert other is not None
    prove(against, other)
    num_cells = reader.info.seq_len
    answers = [_Answers.read(folder, len(reader), num_cells) for folder in (out, against)]
    totals = np.zeros(len(Comparison._fields), dtype=np.int64)
    rows = np.flatnonzero(answers[0].num_segments * answers[1].num_segments)
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        labels = reader.take(some)["labels"].numpy()
        totals += _counts(labels, *(one.preds[some] for one in answers))
    segments = [int(one.num_segments[rows].sum()) for one in answers]
    return Comparison(*totals[:-2].tolist(), *segments)


class _Answers(NamedTuple):
    preds: NDArray[np.uint8]  # [N, S]
    num_segments: NDArray[np.int64]  # [N], 0 where not answered

    @classmethod
    def read(cls, folder: Path, num_rows: int, num_cells: int) -> "_Answers":
        found = cls(np.zeros((num_rows, num_cells), dtype=np.uint8), np.zeros(num_rows, dtype=np.int64))
        for block in read_predictions([folder]):
            assert block.rows is not None
            assert block.num_segments is not None
            found.preds[block.rows] = block.preds
            found.num_segments[block.rows] = block.num_segments
        return found


def _counts(
    labels: NDArray[np.int32], preds: NDArray[np.uint8], others: NDArray[np.uint8]
) -> NDArray[np.int64]:
    counted = labels != IGNORE_LABEL_ID
    known = counted.any(axis=1)
    differs = ((preds != others) & (counted | ~known[:, None])).any(axis=1)
    right, right_there = (known & ~(counted & (of != labels)).any(axis=1) for of in (preds, others))
    flags = (
        np.ones_like(known),
        differs,
        known,
        right,
        right_there,
        right & ~right_there,
        right_there & ~right,
    )
    return np.array([*(flag.sum() for flag in flags), 0, 0], dtype=np.int64)


def comparison_text(found: Comparison, against: Path) -> str:
    """Return what a comparison says, in words."""
    if not found.inputs:
        return f"against {against}: no input is answered in both"
    per_input = (found.segments / found.inputs, found.segments_there / found.inputs)
    text = (
        f"against {against}: {found.differing:,} of {found.inputs:,} answers that both have differ, "
        f"{per_input[0]:.2f} segments per input instead of {per_input[1]:.2f}"
    )
    if found.known:
        text += (
            f"; right {found.right / found.known:.2%} instead of {found.right_there / found.known:.2%} of "
            f"{found.known:,} ({found.gained:,} gained, {found.lost:,} lost)"
        )
    return text
