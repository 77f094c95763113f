"""When an answer is taken: the rules by which a sequence leaves its slot before all segments are over. No torch.

Shape legend: B slots.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.base.errors import InputError

HALTING_HELP = (
    "when to stop thinking before all segments are over: none (published); learned (as the model learned to); "
    "q:X (q_halt above X); unchanged:K (the answer equal K times in a row); residual:X (the state changed by less than "
    "X, root mean square)"
)

_TEXTS = "none, learned, q:X, unchanged:K, residual:X"


class Said(NamedTuple):
    """What rules look at: what the model says of each slot's sequence after a segment."""

    q_halt_logits: npt.NDArray[np.float32]  # [B]
    q_continue_logits: npt.NDArray[np.float32]  # [B]; 0 where the architecture has no such head
    num_unchanged: npt.NDArray[
        np.int32
    ]  # [B]; how many of the last segments in a row gave the same answer again
    residuals: npt.NDArray[np.float32]  # [B]; see EvaluationSegment


class HaltingRule(NamedTuple):
    """A rule; with none, and at the latest, a sequence halts when all its segments are over."""

    kind: str = "none"
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "HaltingRule":
        """Return the rule that a command line names. Raises InputError."""
        kind, colon, number = text.partition(":")
        if kind in ("none", "learned") and not colon:
            return cls(kind)
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        least = {"q": -math.inf, "unchanged": 1, "residual": 0}.get(kind, math.nan)
        is_whole = kind != "unchanged" or value == int(value) if math.isfinite(value) else False
        if not (is_whole and value >= least and (kind != "residual" or value > 0)):
            raise InputError(
                f"--halting {text}: is no rule; give one of {_TEXTS}, where K is a whole number from 1 and X a "
                "number (above 0 for a residual)."
            )
        return cls(kind, value)

    def __str__(self) -> str:
        return self.kind if self.kind in ("none", "learned") else f"{self.kind}:{self.value:g}"

    def halts(self, said: Said) -> npt.NDArray[np.bool_]:
        """Return which slots have thought enough, [B]; one whose numbers are lost (NaN) never has."""
        rules: dict[str, Any] = {
            "none": lambda: np.zeros(len(said.q_halt_logits), dtype=bool),
            "learned": lambda: said.q_halt_logits > said.q_continue_logits,
            "q": lambda: said.q_halt_logits > self.value,
            "unchanged": lambda: (said.num_unchanged >= self.value) & ~np.isnan(said.q_halt_logits),
            "residual": lambda: said.residuals < self.value,
        }
        return rules[self.kind]()


ALL_SEGMENTS = HaltingRule()
LEARNED = HaltingRule("learned")
