"""Run every example for halt_max_steps segments, collect the predictions, score them."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestBatch, TestReader
from data_pipeline.schema import IGNORE_LABEL_ID, verify_document
from hrm_dist.distributed import collectives
from hrm_dist.evaluation import voting
from hrm_dist.evaluation.predictions import Predictions
from hrm_dist.model.act import ACTModel, Batch


class Answers(NamedTuple):
    """Predictions beside the truth."""

    predictions: Predictions
    labels: NDArray[np.int32]  # [N, T], -100 where ignored: everywhere, if the truth is hidden


# Not inference_mode: FSDP2 trains with the buffers of a process's first forward, which may be one of these.
@torch.no_grad()
def predict(model: ACTModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run halt_max_steps segments; return predicted tokens [B, T] uint8 and q_halt_logits [B] float32."""
    carry = model.initial_carry(batch)
    outputs: dict[str, Tensor] = {}
    for _ in range(model.arch.halt_max_steps):
        carry, outputs = model(carry, batch)
    return outputs["logits"].argmax(-1).to(torch.uint8), outputs["q_halt_logits"]


def answer(
    model: ACTModel, batches: Iterable[TestBatch], device: torch.device, checkpoint_id: str | None = None
) -> Iterator[Answers]:
    """Yield the model's answers to batches of the test split; it is in evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            fields = {key: batch[key].to(device) for key in ("inputs", "puzzle_identifiers")}
            preds, q_halt_logits = predict(model, {key: tensor.int() for key, tensor in fields.items()})
            predictions = Predictions(
                puzzle_identifiers=batch["puzzle_identifiers"].numpy(),
                inputs=batch["inputs"].numpy(),
                preds=preds.cpu().numpy(),
                q_halt_logits=q_halt_logits.cpu().numpy(),
                example_index=batch["example_index"].numpy(),
                checkpoint_id=checkpoint_id,
            )
            yield Answers(predictions, batch["labels"].numpy())
    finally:
        model.train(was_training)


def hits(answers: Answers) -> NDArray[np.float64]:
    """Sum over the examples whose truth is known: [examples, exactly right, share of cells right]."""
    mask = answers.labels != IGNORE_LABEL_ID
    num_labels = mask.sum(-1)
    known = num_labels > 0
    right = (mask & (answers.predictions.preds == answers.labels)).sum(-1)
    return np.array(
        [known.sum(), (right == num_labels)[known].sum(), (right[known] / num_labels[known]).sum()]
    )


def evaluate(
    model: ACTModel,
    reader: TestReader,
    data_path: Path,
    batch_size: int,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Return the scores on what the reader covers, the same on every rank; the ranks share the work.

    `exact_accuracy` and `cell_accuracy` are per augmented example; `score_fn` adds those of a kind of puzzle. Empty
    if there are no examples, or no truth is known. None if `should_stop` says so, which is asked before every batch,
    equally often on every rank; its answer must be the same on all.
    """
    if not len(reader):
        return {}
    size, rank = collectives.world_size(), collectives.rank()
    start, stop = (len(reader) * r // size for r in (rank, rank + 1))
    local_batch_size = max(1, batch_size // size)
    largest_share = -(-len(reader) // size)
    num_batches, most = (-(-examples // local_batch_size) for examples in (stop - start, largest_share))
    # All ranks must run the same number of batches: they agree on stopping before each, and an engine that splits the
    # weights gathers them in every forward.
    padding = reader.batches(local_batch_size, 0, 1) if num_batches < most else ()
    batches = itertools.chain(reader.batches(local_batch_size, start, stop), padding)
    answers = list(answer(model, itertools.takewhile(lambda _: not should_stop(), batches), device))
    if len(answers) < most:
        return None
    gathered = collectives.gather_to_rank0(answers[:num_batches])

    def score() -> dict[str, float]:
        blocks = [block for of_rank in gathered for block in of_rank]
        examples, exact, cells = np.sum([hits(block) for block in blocks], axis=0)
        if not examples:
            return {}
        scores = {"exact_accuracy": float(exact / examples), "cell_accuracy": float(cells / examples)}
        if add_scores := score_fn(reader.info.kind):
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


def headline(scores: dict[str, float]) -> float | None:
    """Return the score by which checkpoints are compared: ARC's pass@2 by task, otherwise exact accuracy."""
    return scores.get("task/pass@2", scores.get("exact_accuracy"))
