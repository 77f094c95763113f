"""Whether a solved puzzle stays solved with more segments, those beyond training's included.

Shape legend: N puzzles whose truth is known, M segments.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_dist.evaluation.intervals import Interval, share_interval


class Staying(NamedTuple):
    """What becomes of right answers."""

    num: int
    num_right: list[int]
    """After each segment."""
    gained: list[int]
    """Right after a segment, and wrong before it."""
    lost: list[int]
    """Wrong after a segment, and right before it."""
    ever_right: int
    ever_left: int
    """Of these, how many are wrong again after some later segment."""
    left_share: Interval | None
    """ever_left of ever_right, with Wilson's interval."""
    right_in_training: int
    """After the segments of training."""
    lost_since: int
    """Of these, how many are wrong after the last segment."""
    gained_since: int
    """Wrong after the segments of training, and right after the last."""


def staying(is_right: NDArray[np.bool_], trained_segments: int) -> Staying:
    """Return what becomes of right answers, [N, M]."""
    num, num_segments = is_right.shape
    before = np.concatenate([np.zeros((num, 1), dtype=bool), is_right[:, :-1]], axis=1)
    ever = is_right.any(axis=1)
    lost = before & ~is_right
    left = int(lost.any(axis=1).sum())
    trained = is_right[:, min(trained_segments, num_segments) - 1]
    return Staying(
        num=num,
        num_right=is_right.sum(axis=0).tolist(),
        gained=(is_right & ~before).sum(axis=0).tolist(),
        lost=lost.sum(axis=0).tolist(),
        ever_right=int(ever.sum()),
        ever_left=left,
        left_share=share_interval(left, int(ever.sum())) if ever.any() else None,
        right_in_training=int(trained.sum()),
        lost_since=int((trained & ~is_right[:, -1]).sum()),
        gained_since=int((~trained & is_right[:, -1]).sum()),
    )
