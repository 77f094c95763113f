"""Run every example for halt_max_steps segments, collect the predictions, score them."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestBatch, TestReader
from data_pipeline.schema import verify_document
from hrm_dist.distributed import collectives
from hrm_dist.evaluation import puzzle_scores, voting
from hrm_dist.evaluation.predictions import Predictions
from hrm_dist.evaluation.segment import EvaluationSegment, Results
from hrm_dist.evaluation.start_keys import start_keys
from hrm_dist.model.act import ACTModel


class Answers(NamedTuple):
    """Predictions beside the truth."""

    predictions: Predictions
    labels: NDArray[np.int32]  # [N, T], -100 where ignored: everywhere, if the truth is hidden


class _Predicted(NamedTuple):
    """A batch, and what the device makes of it."""

    batch: TestBatch
    results: Results

    def answers(self, checkpoint_id: str | None) -> Answers:
        self.results.wait()
        batch, size = self.batch, len(self.batch["inputs"])
        predictions = Predictions(
            puzzle_identifiers=batch["puzzle_identifiers"].numpy(),
            inputs=batch["inputs"].numpy(),
            preds=self.results.preds[:size].numpy().copy(),  # which is in memory that others wait for
            q_halt_logits=self.results.q_halt_logits[:size].numpy().copy(),
            example_index=batch["example_index"].numpy(),
            checkpoint_id=checkpoint_id,
        )
        return Answers(predictions, batch["labels"].numpy())


def predict(segment: EvaluationSegment, batch: TestBatch) -> Results:
    """Run halt_max_steps segments on a batch; in one smaller than there are slots, examples come several times."""
    fields = {name: batch[name] for name in ("inputs", "puzzle_identifiers")}
    if segment.model.arch.is_random:
        fields["noise_keys"] = start_keys(batch)
    size = len(batch["inputs"])
    if size < segment.num_slots:
        row = torch.arange(segment.num_slots) % size
        fields = {name: tensor[row] for name, tensor in fields.items()}
    segment.refill(fields, torch.ones(segment.num_slots, dtype=torch.bool))
    for _ in range(segment.model.arch.halt_max_steps):
        segment()
    return segment.results()


def answer(
    segment: EvaluationSegment, batches: Iterable[TestBatch], checkpoint_id: str | None = None
) -> Iterator[Answers]:
    """Yield the model's answers to batches of the test split; it is in evaluation mode meanwhile.

    The device has the next batch before an answer is waited for.
    """
    model = segment.model
    was_training = model.training
    model.eval()
    try:
        previous: _Predicted | None = None
        for batch in batches:
            present = _Predicted(batch, predict(segment, batch))
            if previous is not None:
                yield previous.answers(checkpoint_id)
            previous = present
        if previous is not None:
            yield previous.answers(checkpoint_id)
    finally:
        model.train(was_training)


def num_slots(num_examples: int, batch_size: int, device: torch.device) -> int:
    """Return how many examples to predict at a time, at most batch_size.

    On a GPU as many as in training, for which compiled code is there; elsewhere so that the last batch lacks few.
    """
    if device.type == "cuda":
        return min(batch_size, num_examples)
    num_batches = -(-num_examples // batch_size)
    return -(-num_examples // num_batches)


def evaluate(
    model: ACTModel,
    reader: TestReader,
    data_path: Path,
    batch_size: int,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    records: bool = False,
    look_at: Callable[[Sequence[Answers]], None] | None = None,
) -> dict[str, float] | None:
    """Return the scores on what the reader covers, the same on every rank; the ranks share the work.

    They are those of `puzzle_scores`, over the augmented examples whose truth is known, and what `score_fn` adds for a
    kind of puzzle. Empty if there are no examples, or no truth is known. None if `should_stop` says so, which is asked
    before every batch, equally often on every rank; its answer must be the same on all. records: see
    `EvaluationSegment`. look_at: gets all answers, in the reader's order, on rank 0.
    """
    if not len(reader):
        return {}
    size, rank = collectives.world_size(), collectives.rank()
    start, stop = (len(reader) * r // size for r in (rank, rank + 1))
    largest_share = -(-len(reader) // size)
    # The same on all ranks, which look up equally many rows of a table that is split among them.
    slots = num_slots(largest_share, max(1, batch_size // size), device)
    num_batches, most = (-(-examples // slots) for examples in (stop - start, largest_share))
    # All ranks must run the same number of batches: they agree on stopping before each, and an engine that splits the
    # weights gathers them in every forward.
    padding = reader.batches(slots, 0, 1) if num_batches < most else ()
    batches = itertools.chain(reader.batches(slots, start, stop), padding)
    segment = EvaluationSegment(model, slots, device, records=records)
    answers = list(answer(segment, itertools.takewhile(lambda _: not should_stop(), batches)))
    if len(answers) < most:
        return None
    gathered = collectives.gather_to_rank0(answers[:num_batches])

    def score() -> dict[str, float]:
        blocks = [block for of_rank in gathered for block in of_rank]
        if look_at is not None:
            look_at(blocks)
        scores = puzzle_scores.scores(blocks, reader.info.kind)
        if scores and (add_scores := score_fn(reader.info.kind)):
            scores |= add_scores((block.predictions for block in blocks), reader, data_path)
        return scores

    return collectives.run_on_rank0(score)


ScoreFn = Callable[[Iterable[Predictions], TestReader, Path], dict[str, float]]
"""Of predictions, what they cover, and the dataset's folder: scores beside the accuracies."""


def score_fn(kind: str) -> ScoreFn | None:
    """Return what scores a kind of puzzle beside its accuracy, if anything does; raise InputError if unknown."""
    scorer = kind_named(kind).scorer
    return None if scorer is None else {"votes": score_votes}[scorer]


def score_votes(predictions: Iterable[Predictions], reader: TestReader, data_path: Path) -> dict[str, float]:
    """Vote over the augmentations of each task; the scores are those of `voting.scores`."""
    identifiers, puzzles = (
        json.loads(verify_document(data_path, reader.info, name).read_bytes())
        for name in ("identifiers.json", "test_puzzles.json")
    )
    covered = {task: puzzles[task] for task in reader.group_names}
    return voting.scores(voting.vote(predictions, identifiers, covered), covered, ks=(1, 2))
