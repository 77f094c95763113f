"""How far one training run is from another: losses, the first gradient, the weights.

Both optimizers follow the sign of a gradient (AdamATan2 in its first step, the table's sign-SGD in each). Where a
gradient vanishes but for rounding, its sign depends on the order in which its parts were added up, and two runs that
are both right differ there by up to 2 x lr. After step 1 such a turned element is off by lr or more and all others by
rounding alone, so the two are told apart; only those are excused whose gradient is as small as the rounding of it.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.base import jsonl
from hrm_dist.checkpoint import reader
from hrm_dist.model.puzzle_embedding import STATE_KEY as TABLE

FIRST_STEPS = 20
MOST_STEPS = 200
_GRADIENT, _WEIGHT = "exp_avg.", "model."


class Limits(NamedTuple):
    """The largest differences of runs that count as equal; all relative."""

    first_losses: float
    """Of the loss in the first 20 steps."""
    losses: float
    """Of the loss in the first 200 steps, at lr 1e-4."""
    gradient: float
    """Of a tensor's gradient in step 1, to its norm."""
    first_weights: float
    """Of a tensor after step 1, to its norm, turned elements left out."""
    turned_in_table: float
    """Turned elements of the puzzle table, to those that step 1 moved."""
    of_mean_losses: bool = False
    """Whether the answer's loss is compared as a mean over the steps, in place of the whole loss of each."""


class Differences(NamedTuple):
    """What was measured; for the first five there are limits."""

    first_losses: float
    losses: float
    gradient: float
    first_weights: float
    turned_in_table: float
    worst_gradient: str
    """The tensor whose gradient differs most."""
    turned: int
    """Elements of weights that the first step moved the other way."""
    unexplained: int
    """Those of them whose gradient does not vanish next to the limit of its difference."""
    last_weights: float
    """Of a tensor after the last step, to its norm."""


def exceeded(differences: Differences, limits: Limits) -> list[str]:
    """Return what is beyond its limit, in words; nothing if the runs are equal."""
    names = {
        "first_losses": f"loss of the first {FIRST_STEPS} steps",
        "losses": "loss",
        "gradient": f"gradient of step 1 ({differences.worst_gradient})",
        "first_weights": "weights after step 1",
        "turned_in_table": "share of turned elements in the puzzle table",
    }
    found = [
        f"{words}: {getattr(differences, name):.1e}, the limit is {getattr(limits, name):.1e}"
        for name, words in names.items()
        if not getattr(differences, name) <= getattr(limits, name)  # also where it is not a number
    ]
    if differences.unexplained:
        found.append(f"{differences.unexplained} weights were moved otherwise in step 1 by no small gradient")
    return found


def compare(run: Path, reference: Path, lr: float, table_lr: float, limits: Limits) -> Differences:
    """Return the differences of one run folder to another; both have checkpoints of step 1 and the last step."""
    losses, other_losses = _losses(run, limits), _losses(reference, limits)
    difference = _of_means if limits.of_mean_losses else _largest
    ours, theirs = (_tensors(folder / "checkpoints" / "step_1") for folder in (run, reference))
    ours_last, theirs_last = (_tensors(folder / "checkpoints" / "latest") for folder in (run, reference))
    last = [_relative(ours_last[key], theirs_last[key]) for key in theirs_last if key.startswith(_WEIGHT)]
    gradients = {key: _relative(ours[key], theirs[key]) for key in theirs if key.startswith(_GRADIENT)}
    worst = max(gradients, key=lambda key: _size(gradients[key]))
    turned: dict[str, Tensor] = {}
    others: list[float] = []
    for key in (key for key in theirs if key.startswith(_WEIGHT)):
        # An update by the sign of a gradient moves each element by lr, or not at all where the gradient is zero.
        mask = (ours[key] - theirs[key]).abs() > (table_lr if key == TABLE else lr) / 2
        turned[key] = mask
        others.append(_relative(ours[key][~mask], theirs[key][~mask]))
    num_turned = num_unexplained = 0
    for key in gradients:
        mask, gradient = turned[f"{_WEIGHT}{key.removeprefix(_GRADIENT)}"], theirs[key].abs()
        num_turned += int(mask.sum())
        num_unexplained += int((mask & (gradient > limits.gradient * gradient.norm())).sum())
    return Differences(
        first_losses=difference(losses[:FIRST_STEPS], other_losses[:FIRST_STEPS]),
        losses=difference(losses[:MOST_STEPS], other_losses[:MOST_STEPS]),
        gradient=gradients[worst],
        first_weights=max(others, key=_size),
        turned_in_table=turned[TABLE].sum().item() / max(1, theirs[TABLE].count_nonzero().item()),
        worst_gradient=worst.removeprefix(_GRADIENT),
        turned=num_turned,
        unexplained=num_unexplained,
        last_weights=max(last, key=_size),
    )


def vanishing(reference: Path, limit: float) -> tuple[int, int]:
    """Count the elements of the first gradient, and those of them that rounding up to the limit could turn.

    These are within the limit of zero, relative to the root mean square of their tensor. They come first.
    """
    tensors = _tensors(reference / "checkpoints" / "step_1")
    gradients = [tensor for key, tensor in tensors.items() if key.startswith(_GRADIENT)]
    small = sum(int(((g != 0) & (g.abs() <= limit * g.square().mean().sqrt())).sum()) for g in gradients)
    return small, sum(g.numel() for g in gradients)


def _losses(run: Path, limits: Limits) -> list[float]:
    key = "train/lm_loss" if limits.of_mean_losses else "train/loss"
    return [row[key] for row in jsonl.read(run / "metrics.jsonl") if key in row]


def _largest(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return max((abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)), key=_size)


def _of_means(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return abs(sum(ours) - sum(theirs)) / abs(sum(theirs))


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's weights and first moments, which in step 1 are scaled gradients, in float64, by KIND.NAME."""
    opened = reader.open_checkpoint(path)
    keys = [key for key in opened.shapes if key.startswith((_GRADIENT, _WEIGHT))]
    return {key: opened.tensor(key).to(torch.float64) for key in keys}


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the norm of the difference, relative to the norm; 0 for equal tensors, those of zeros included."""
    difference, norm = (ours - theirs).norm().item(), theirs.norm().item()
    return difference / norm if norm else (math.inf if difference else 0.0)


def _size(value: float) -> float:
    """Return what `max` compares by: NaN is larger than all numbers."""
    return math.inf if math.isnan(value) else value
