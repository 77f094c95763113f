"""When a model would stop, and whether its estimate q of being right can be believed.

A rule stops at its first segment; whom it never stops is counted with the last one. q is sigmoid(q_halt_logits) after a
segment, held against whether the answer after the same segment is right in every cell. Puzzles whose truth is hidden,
or whose numbers overflow, do not count.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_dist.evaluation.halting import HaltingRule
from tools.scaling.outcomes import Outcomes, stops

RULES = ("learned", "unchanged:1")
BINS = 10


class Halting(NamedTuple):
    """What a rule does."""

    counts: list[int]
    """Puzzles that stop after segment 1, 2, ..."""
    mean_segments: float
    num_right: int
    """With the answer where it stops."""
    num: int
    """Whose truth is known."""


class Calibration(NamedTuple):
    """How q after a segment fits the share that is right."""

    num: int
    num_right: int
    mean_q: float
    brier: float
    """Mean squared distance of q from 0 or 1."""
    auc: float | None
    """Chance that a right answer has a higher q than a wrong one; None where there are not both."""
    expected_error: float
    """Expected calibration error: distance of mean q and share right, mean over bins by their number of answers."""
    bin_q: list[float]
    """Mean q of each of ten equal bins from 0 to 1, those that are not empty."""
    bin_right: list[float]
    bin_num: list[int]


def halting(outcomes: Outcomes) -> dict[str, Halting]:
    """Return what each rule does, by its name."""
    found = {}
    for name in RULES:
        stop = stops(HaltingRule.parse(name), outcomes)
        right = outcomes.is_right[np.arange(len(stop)), stop - 1] & outcomes.is_known
        counts = np.bincount(stop, minlength=outcomes.num_segments + 1)[1:]
        found[name] = Halting(
            counts.tolist(), float(stop.mean()), int(right.sum()), int(outcomes.is_known.sum())
        )
    return found


def calibrations(outcomes: Outcomes) -> list[Calibration | None]:
    """Return how q fits after each segment; None where there is nothing to tell."""
    with np.errstate(over="ignore"):
        q = 1 / (1 + np.exp(-outcomes.q_halt_logits.astype(np.float64)))
    counts = outcomes.is_known[:, None] & ~np.isnan(q)
    return [
        calibration(q[counts[:, n], n], outcomes.is_right[counts[:, n], n]) if counts[:, n].any() else None
        for n in range(outcomes.num_segments)
    ]


def calibration(q: NDArray[np.float64], is_right: NDArray[np.bool_]) -> Calibration:
    """Return how estimates fit what came true, both [N], at least one."""
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss, roc_auc_score

    bin_right, bin_q = calibration_curve(is_right, q, n_bins=BINS, pos_label=True)
    # As calibration_curve takes them; it does not say how many there are.
    edges: Any = np.linspace(0, 1, BINS + 1)
    nums = np.bincount(np.searchsorted(edges[1:-1], q), minlength=BINS)
    nums = nums[nums > 0]
    has_both = is_right.any() and not is_right.all()
    return Calibration(
        num=len(q),
        num_right=int(is_right.sum()),
        mean_q=float(q.mean()),
        brier=float(brier_score_loss(is_right, q, pos_label=True)),
        auc=float(roc_auc_score(is_right, q)) if has_both else None,
        expected_error=float(np.average(np.abs(bin_right - bin_q), weights=nums)),
        bin_q=bin_q.tolist(),
        bin_right=bin_right.tolist(),
        bin_num=nums.tolist(),
    )
