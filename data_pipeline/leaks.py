"""Held-out pairs that also train: how dataset.json lists them, what becomes of them."""

import sys
from collections.abc import Sequence

from data_pipeline.base.errors import InputError
from data_pipeline.options import LeakPolicy
from data_pipeline.schema import Leak, Leaks

MAX_RECORDED = 1000
"""Leaks listed in dataset.json; their number is always told."""

MAX_OCCURRENCES = 10
"""Occurrences in the training data that are listed for each."""

_SHOWN = 3


def leak(held_out: str, in_training: Sequence[str]) -> Leak:
    """Return a leak with as many of its occurrences in training as are recorded."""
    return Leak(
        held_out=held_out, num_in_training=len(in_training), in_training=tuple(in_training[:MAX_OCCURRENCES])
    )


def settle(
    pairs: Sequence[Leak], policy: LeakPolicy, *, is_published: bool, num_pairs: int | None = None
) -> Leaks:
    """Return what dataset.json says of the leaks; warn if they stay because the dataset is published with them.

    Raise InputError where nobody has decided what becomes of them.
    """
    num_pairs = len(pairs) if num_pairs is None else num_pairs
    if num_pairs and policy == "refuse":
        shown = "; ".join(f"{leak.held_out} = {_first(leak)}" for leak in pairs[:_SHOWN])
        pairs_stand = "held-out pair also stands" if num_pairs == 1 else "held-out pairs also stand"
        what = (
            f"{num_pairs} {pairs_stand} in the training data, as they are or augmented: {shown}"
            f"{'; ...' if num_pairs > _SHOWN else ''}"
        )
        if not is_published:
            raise InputError(
                f"{what}. Build with --leaks drop to remove them from training, or with --leaks keep to train on them."
            )
        print(
            f"warning: {what}. They do so in the published data; --leaks drop removes them from training.",
            file=sys.stderr,
        )
    return Leaks(dropped=policy == "drop", num_pairs=num_pairs, pairs=tuple(pairs[:MAX_RECORDED]))


def _first(leak: Leak) -> str:
    more = leak.num_in_training - _SHOWN
    return ", ".join(leak.in_training[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
