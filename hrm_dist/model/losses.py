"""The losses of the answer and of the Q-values, and every metric of a step: all in one place.

Shapes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from data_pipeline.schema import IGNORE_LABEL_ID

if TYPE_CHECKING:
    from hrm_dist.model.act import Carry


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy [B, T] under stablemax (arXiv 2501.04697), in float64 as published; 0 where ignored.

    Stablemax replaces exp(x) by x + 1 for x >= 0 and 1 / (1 - x) below.
    """
    x = logits.to(torch.float64)
    weights = torch.where(x < 0, 1 / (1 - x + 1e-30), x + 1)
    valid = labels != IGNORE_LABEL_ID
    chosen = weights.gather(-1, torch.where(valid, labels, 0).long().unsqueeze(-1)).squeeze(-1)
    return torch.where(valid, weights.sum(-1).log() - chosen.log(), 0)


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy [B, T] under softmax, in float32; ignored labels give 0."""
    return F.cross_entropy(
        logits.to(torch.float32).transpose(1, 2),
        labels.long(),
        ignore_index=IGNORE_LABEL_ID,
        reduction="none",
    )


class Loss(NamedTuple):
    """A loss of the answer, and the bytes that it keeps for the backward pass (see memory_estimate)."""

    cross_entropy: Callable[[Tensor, Tensor], Tensor]
    """Logits [B, T, V] and labels [B, T] to the loss of each token, [B, T]."""
    bytes_per_logit: int
    bytes_per_token: int


LOSSES = {
    # Of each logit two float64 and a bool; of each token its input and label, two float64 and a bool.
    "stablemax_cross_entropy": Loss(stablemax_cross_entropy, 17, 29),
    # Of each logit a float32; of each token its input and label.
    "softmax_cross_entropy": Loss(softmax_cross_entropy, 4, 12),
}


def answer_losses(logits: Tensor, labels: Tensor, loss_type: str) -> Tensor:
    """Return the loss of each sequence's answer, [B], averaged over its labelled cells."""
    divisor = (labels != IGNORE_LABEL_ID).sum(-1).clamp_min(1)
    return LOSSES[loss_type].cross_entropy(logits, labels).sum(-1) / divisor


def act_loss(carry: "Carry", outputs: dict[str, Tensor], loss_type: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the training loss of a segment and its metrics, all sums over the batch, as published.

    Loss: see `total_loss`. The answer's is averaged over each sequence's labelled cells; halting should foretell a
    fully right answer, continuing its bootstrapped target.
    Metrics are over all sequences if they end in `_loss`: `lm_loss`, `q_halt_loss`, `q_continue_loss`. All others are
    over the sequences that halted in this segment and have labels: `count`, `accuracy` (of cells, averaged within a
    sequence), `exact_accuracy` (every cell right), `q_halt_accuracy`, `steps`. Whatever is returned here is summed up
    and logged (hrm_dist/metrics.py).
    """
    labels, q_halt_logits = carry.current_data["labels"], outputs["q_halt_logits"]
    with torch.no_grad():
        mask = labels != IGNORE_LABEL_ID
        num_labels = mask.sum(-1)
        divisor = num_labels.clamp_min(1)
        right = mask & (outputs["logits"].argmax(-1) == labels)
        all_right = right.sum(-1) == num_labels
        counted = carry.halted & (num_labels > 0)
        metrics = {
            "count": counted.sum(),
            "accuracy": torch.where(counted, (right.to(torch.float32) / divisor[:, None]).sum(-1), 0).sum(),
            "exact_accuracy": (counted & all_right).sum(),
            "q_halt_accuracy": (counted & ((q_halt_logits >= 0) == all_right)).sum(),
            "steps": torch.where(counted, carry.steps, 0).sum(),
        }
    lm_loss = (LOSSES[loss_type].cross_entropy(outputs["logits"], labels) / divisor[:, None]).sum()
    q_halt_loss = _q_loss(q_halt_logits, all_right.to(q_halt_logits.dtype))
    terms = {"lm_loss": lm_loss, "q_halt_loss": q_halt_loss}
    if "target_q_continue" in outputs:
        terms["q_continue_loss"] = _q_loss(outputs["q_continue_logits"], outputs["target_q_continue"])
    return total_loss(terms), metrics | {name: term.detach() for name, term in terms.items()}


Number = TypeVar("Number", Tensor, float)


def total_loss(terms: Mapping[str, Number]) -> Number:
    """Return what is differentiated: the loss of the answer plus half of the Q-losses, also of sums of them."""
    q_loss = terms["q_halt_loss"]
    if "q_continue_loss" in terms:
        q_loss = q_loss + terms["q_continue_loss"]
    return terms["lm_loss"] + 0.5 * q_loss


def finite_sequences(outputs: dict[str, Tensor]) -> Tensor:
    """Return whether the outputs of each sequence are finite, [B] bool."""
    # A sum is finite only if all that goes into it is.
    sums = outputs["logits"].detach().sum((1, 2), dtype=torch.float32)
    return torch.isfinite(sums + outputs["q_halt_logits"].detach() + outputs["q_continue_logits"].detach())


def _q_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
