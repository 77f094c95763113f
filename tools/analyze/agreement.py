"""Whether a model answers a puzzle and its symmetric images alike, and whether what it answers alike is right.

Of Sudokus and mazes the images are made here; those of ARC are the dataset's augmentations of the same test input, each
with an identifier of its own. An image agrees if its answer is the image of the original's answer: of ARC, as in a
vote, if both spell the same grid once the augmentation is undone. Answers are those after the segments of training.
Shape legend: N puzzles, I images of each, T tokens.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.arc.augment import parse_names
from data_pipeline.kind import Images
from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestReader
from data_pipeline.schema import IGNORE_LABEL_ID, verify_document
from hrm_dist.evaluation.intervals import Interval, share_interval, task_intervals
from hrm_dist.evaluation.voting import Undo
from tools.analyze.watch import Puzzles

NUM_IMAGES = 7
MOST_PUZZLES = 128

AnswerFn = Callable[[Puzzles], NDArray[np.uint8]]
"""Puzzles to their answers, [N, T]."""


class ByAgreement(NamedTuple):
    """Puzzles of which as many images agree."""

    agreeing: int
    num: int
    right: int
    """Of their originals."""
    accuracy: Interval
    """With Wilson's interval."""


class Agreement(NamedTuple):
    """Of puzzles and their images."""

    num: int
    images: int
    """Of each puzzle."""
    agreeing: Interval
    """Share of the images that agree with their original, with a bootstrap's interval over puzzles."""
    num_known: int
    """Puzzles whose truth is known."""
    num_right: int
    by_agreement: list[ByAgreement]
    """By how many images agree, those that occur; of puzzles whose truth is known."""


class NotThere(NamedTuple):
    """What cannot be told."""

    why: str


def agreement(
    data: Path,
    reader: TestReader,
    rows: NDArray[np.int64],
    puzzles: Puzzles,
    preds: NDArray[np.uint8],
    is_right: NDArray[np.bool_],
    answer: AnswerFn,
) -> Agreement | NotThere:
    """Return how images agree with the first puzzles, whose rows are given, their answers [N, T], and if right [N]."""
    kind = kind_named(reader.info.kind)
    some = slice(MOST_PUZZLES)
    puzzles, preds, rows = puzzles.of(some), preds[some], rows[some]
    if kind.images is not None:
        agrees = _of_images(kind.images, puzzles, preds, answer, reader.info.pad_id)
    elif kind.scorer == "votes":
        rows_of_images = images_of(reader, rows)
        if not rows_of_images.shape[1]:
            return NotThere("the split has no augmentations; build the dataset with --num-aug")
        is_whole = _are_different(reader, rows, rows_of_images)
        if not is_whole.any():
            return NotThere("no puzzle has as many different augmentations as the split has rows of them")
        rows_of_images, preds, is_right = rows_of_images[is_whole], preds[is_whole], is_right[some][is_whole]
        puzzles = puzzles.of(is_whole)
        agrees = _of_augmentations(data, reader, puzzles, preds, rows_of_images, answer)
    else:
        return NotThere(f"puzzles of kind {kind.name} have no symmetric images")
    is_known = (puzzles.labels != IGNORE_LABEL_ID).any(axis=1)
    return _told(agrees, is_right[: len(agrees)], is_known)


def _told(agrees: NDArray[np.bool_], is_right: NDArray[np.bool_], is_known: NDArray[np.bool_]) -> Agreement:
    [share] = task_intervals([agrees.mean(axis=1).tolist()])
    num_agreeing, right = agrees.sum(axis=1)[is_known], is_right[is_known]
    by_agreement = []
    for number in np.unique(num_agreeing).tolist():
        chosen = num_agreeing == number
        num, num_right = int(chosen.sum()), int(right[chosen].sum())
        by_agreement.append(ByAgreement(number, num, num_right, share_interval(num_right, num)))
    return Agreement(len(agrees), agrees.shape[1], share, int(is_known.sum()), int(right.sum()), by_agreement)


def _of_images(
    images: Images, puzzles: Puzzles, preds: NDArray[np.uint8], answer: AnswerFn, pad_id: int
) -> NDArray[np.bool_]:
    """Return which images agree, [N, I]."""
    numbers = np.arange(len(preds))
    labels = np.maximum(puzzles.labels, pad_id).astype(np.uint8)
    # Padding has no image. Whoever answers it in a grid without any is wrong, and agrees with nobody.
    is_whole = (preds != pad_id).all(axis=1)
    shown = np.where(is_whole[:, None], preds, puzzles.inputs)
    agrees = []
    for number in range(1, 1 + NUM_IMAGES):
        chosen = np.full(len(preds), number)
        turned = images(np.stack([puzzles.inputs, labels], axis=1), numbers, chosen)
        expected = images(np.stack([puzzles.inputs, shown], axis=1), numbers, chosen)[:, 1]
        got = answer(puzzles._replace(inputs=turned[:, 0].copy(), labels=turned[:, 1].astype(np.int32)))
        agrees.append(is_whole & (got == expected).all(axis=1))
    return np.stack(agrees, axis=1)


def images_of(reader: TestReader, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the first augmentations of each original, [N, I]; as many of each."""
    places = reader.places()
    num = min(NUM_IMAGES, int(places.rounds.max(initial=0)))
    keys = np.stack([places.rounds, places.groups, places.examples], axis=1)
    row_of = {tuple(key): row for row, key in enumerate(keys.tolist())}
    found = [
        [row_of[round_, places.groups[row], places.examples[row]] for round_ in range(1, num + 1)]
        for row in rows.tolist()
    ]
    return np.array(found, dtype=np.int64).reshape(len(rows), num)


def _are_different(
    reader: TestReader, rows: NDArray[np.int64], rows_of_images: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return of which puzzles, [N], all images are different: of symmetric tasks there are fewer, repeated."""
    all_rows = np.concatenate([rows[:, None], rows_of_images], axis=1)
    found = [np.unique(reader.take(of_puzzle)["puzzle_identifiers"].numpy()) for of_puzzle in all_rows]
    return np.array([len(identifiers) == all_rows.shape[1] for identifiers in found])


def _of_augmentations(
    data: Path,
    reader: TestReader,
    puzzles: Puzzles,
    preds: NDArray[np.uint8],
    rows: NDArray[np.int64],
    answer: AnswerFn,
) -> NDArray[np.bool_]:
    names = json.loads(verify_document(data, reader.info, "identifiers.json").read_bytes())

    def spelled(identifiers: NDArray[np.int32], answers: NDArray[np.uint8]) -> NDArray[np.object_]:
        _, augmentations = parse_names([names[identifier] for identifier in identifiers.tolist()])
        return np.array(Undo(augmentations).keys(answers), dtype=object)

    originals = spelled(puzzles.identifiers, preds)
    agrees = []
    for of_image in rows.T:
        turned = Puzzles.of_batch(reader.take(of_image))
        agrees.append(spelled(turned.identifiers, answer(turned)) == originals)
    return np.stack(agrees, axis=1)
