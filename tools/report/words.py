"""What the terms of the page mean, a sentence each."""

from data_pipeline.kind import Kind
from hrm_dist.evaluation.voting import WEIGHT_MEANINGS, VoteBy

_OF_ALL = {
    "close": "Not solved, but an answer of the right size has at least nine tenths of its cells right, or some of the "
    "inputs are solved, or it is another answer that obeys the rules.",
    "unsolved": "Neither solved nor close.",
    "unknown": "The true answer is hidden, so nobody here can tell whether the model's is right.",
    "no answer": "The run was not asked, or its evaluation is not complete.",
    "q": "The model's own estimate, from 0 to 1, that its answer is right: the sigmoid of q_halt.",
    "residual": "How much the model's state changed in a segment, against its size; an answer that is settled has a "
    "small one.",
    "segment": "One round of the model's thinking, after which it has a whole answer and may go on to better it.",
    "interval": "Where the score would lie in 95 of 100 such samples of puzzles; of shares Wilson's, of means over "
    "tasks a bootstrap over the tasks.",
    "subset": "A named part of the puzzles, or which puzzles a dataset holds: its name and a hash of them.",
    "split": "Where a puzzle is from: of ARC the training or the evaluation tasks of a release, of other puzzles the "
    "test split of the dataset.",
    "size": "The longer side of a puzzle's largest grid.",
    "cells right": "The share of the answer's cells that are as in the true answer; one of another size has none.",
    "seed": "The number from which all random draws of a training follow.",
    "device hours": "Hours of training, as many times as devices took part; evaluations and checkpoints do not count.",
    "operations": "Additions and multiplications of the matrix products of the training.",
}
_OF_VOTES = {
    "solved": "Every test input has a right attempt.",
    "attempt": "One of the two answers to a test input that are handed in; one of them has to be right.",
    "candidate": "A grid that at least one prediction voted for.",
    "vote": "The answer to one augmentation of a test input, mapped back to the original; a vote weighs {weight}.",
    "agreement": "The share of all votes that the first candidate got: near 1 where the augmentations agree.",
    "augmentation": "The same task turned, mirrored or recoloured.",
    "oracle": "Scored as if the right candidate were always picked, wherever it stands among them.",
    "pass@k": "Scored with the first k candidates; pass@2 is the competition's rule.",
}
_OF_ANSWERS = {
    "solved": "Every cell is as in the stored answer.",
    "attempt": "The model's answer.",
    "candidate": "An answer that at least one start came to.",
    "vote": "The answer that a start came to.",
    "start": "One of several tries at the same puzzle, with random numbers of its own.",
    "agreement": "The share of the starts that came to this answer.",
}


def words(kind: Kind, by: VoteBy) -> dict[str, str]:
    """Return the terms of a page on puzzles of a kind; by: what a vote weighs."""
    own = _OF_VOTES if kind.scorer == "votes" else _OF_ANSWERS
    return {term: text.format(weight=WEIGHT_MEANINGS[by]) for term, text in (own | _OF_ALL).items()}
