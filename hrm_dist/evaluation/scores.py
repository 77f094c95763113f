"""Scores of a run's evaluations: as metrics.jsonl has them, and spelled for people."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data_pipeline.base import jsonl
from data_pipeline.base.progress import duration
from data_pipeline.kinds import KINDS
from hrm_dist.evaluation.intervals import interval_text, share_interval

SCORES_FILE = "scores.json"
"""What tools.vote or tools.evaluate has found, beside the predictions or, where asked for, in a run folder."""

Scores = Mapping[str, float]
"""By name, without `eval/`."""

SHARES_OF_EXAMPLES = (
    "exact_accuracy",
    *dict.fromkeys(name for kind in KINDS for name in kind.checks),
)
"""Of an example all or nothing: whether its answer is the stored one, or good by what its kind checks."""

_SHARES = ("task/pass@1", "task/pass@2", *SHARES_OF_EXAMPLES, "cell_accuracy")


class Count(NamedTuple):
    """How many of the inputs that an evaluation covers the model got right."""

    right: int
    num: int
    unit: str


def headline(scores: Scores) -> float | None:
    """Return the score by which checkpoints are compared: ARC's pass@2 by task, otherwise exact accuracy."""
    return scores.get("task/pass@2", scores.get("exact_accuracy"))


def count_right(scores: Scores, attempts: int = 2) -> Count | None:
    """Return ARC's test inputs that so many attempts solve, otherwise exact examples; None if no number is known."""
    share, num = scores.get(f"input/pass@{attempts}"), scores.get("inputs")
    if share is None:
        return count_examples(scores, "exact_accuracy")
    return Count(round(share * num), int(num), "test inputs") if num else None


def count_examples(scores: Scores, name: str) -> Count | None:
    """Return of how many examples one of SHARES_OF_EXAMPLES holds; None if no number is known."""
    share, num = scores.get(name), scores.get("examples")
    return None if share is None or not num else Count(round(share * num), int(num), "examples")


def scores_by_step(metrics: Path) -> dict[int, dict[str, float]]:
    """Return what metrics.jsonl has of scores, in its order, without damaged lines. Raise OSError."""
    found: dict[int, dict[str, float]] = {}
    for line in jsonl.lines(metrics):
        with suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            scores: dict[str, float] = {
                key.removeprefix("eval/"): value
                for key, value in row.items()
                if key.startswith("eval/") and isinstance(value, int | float)
            }
            if scores:
                found[int(row["step"])] = scores
    return found


def last_scores(metrics: Path) -> dict[str, float] | None:
    """Return the last scores that can be read of metrics.jsonl, if any."""
    with suppress(OSError):
        return next(reversed(scores_by_step(metrics).values()), None)
    return None


def evaluation_text(
    step: int,
    scores: Scores,
    seconds: float,
    before: Scores | None,
    best_score: float | None,
    subset: str = "",
) -> str:
    """Return what an evaluation has found; seconds: what it took; before: the scores of the last one."""
    parts = [scores_text(scores, before), count_text(scores), _compared(headline(scores), best_score)]
    on = f" on {subset}" if subset else ""
    return f"evaluation at step {step:,}{on} in {duration(seconds)}: {'; '.join(filter(None, parts))}"


def _compared(score: float | None, best_score: float | None) -> str:
    if score is None or best_score is None:
        return ""
    if score < best_score:
        return f"the best so far is {100 * best_score:.1f} %"
    return "the best so far" if score > best_score else "as good as the best so far"


def scores_text(scores: Scores, before: Scores | None = None) -> str:
    """Return what counts most of them, by name, and how much it has changed; all are in metrics.jsonl."""
    if not scores:
        return "nothing could be scored"
    names = [name for name in _SHARES if name in scores]
    texts = [f"{name} {100 * scores[name]:.1f} %{_change(name, scores, before or {})}" for name in names]
    return ", ".join(texts or [f"{name} {score:.4f}" for name, score in scores.items()])


def _change(name: str, scores: Scores, before: Scores) -> str:
    return f" ({100 * (scores[name] - before[name]):+.1f})" if name in before else ""


def count_text(scores: Scores, *, with_interval: bool = False) -> str:
    """Return how many of how many inputs are right; empty if that is not known."""
    count = count_right(scores)
    if count is None:
        return ""
    how = " by two attempts" if count.unit == "test inputs" else ""
    interval = f", {interval_text(share_interval(count.right, count.num))}" if with_interval else ""
    return f"{count.right:,} of {count.num:,} {count.unit} right{how}{interval}"
