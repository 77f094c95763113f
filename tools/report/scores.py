"""Scores as the page shows them: of votes and of single answers, with intervals and what they mean."""

from collections.abc import Iterator, Mapping
from math import isfinite

from hrm_dist.evaluation.intervals import share_interval, task_intervals
from hrm_dist.evaluation.puzzle_scores import ALL_PUZZLES, MEANINGS
from hrm_dist.evaluation.scores import count_examples
from hrm_dist.evaluation.voting import task_shares
from tools.report.payload import Score
from tools.report.trajectories import rounded
from tools.vote import ALL_TASKS, SCORE_MEANINGS, VoteResult, pass_columns

NUM_ATTEMPTS = 2
"""At each test input of ARC."""


def vote_scores(result: VoteResult) -> list[Score]:
    """Return the scores of all tasks and of each subset; none where no truth is known."""
    return [
        score
        for subset, values in result.scores.items()
        if pass_columns(values)
        for score in _of_subset(result, subset, values)
    ]


def _of_subset(result: VoteResult, subset: str, values: Mapping[str, float]) -> Iterator[Score]:
    shares = task_shares(result.votes, result.test_puzzles, tasks=result.subsets.get(subset))
    # The mean over tasks is of no whole number that are right.
    over_tasks = dict(zip(shares, task_intervals(list(shares.values())), strict=True))
    for column in pass_columns(dict(values)):
        for kind, meaning in SCORE_MEANINGS.items():
            key = f"{kind}/{column}"
            value, num = values[key], values["inputs" if kind == "input" else "tasks"]
            interval = over_tasks.get(key) or share_interval(round(value * num), int(num))
            yield Score(
                name=f"{kind.replace('_', ' ')} {column}",
                meaning=f"{meaning}; {_counts_as_right(column)}",
                subset=subset,
                value=value,
                low=_bound(interval.low),
                high=_bound(interval.high),
                right=rounded(value * num),
                num=num,
                what="test inputs" if kind == "input" else "tasks",
                is_headline=(subset, column) == (ALL_TASKS, f"pass@{NUM_ATTEMPTS}"),
            )


def _bound(value: float) -> float | None:
    """Return a bound as it is, for the page to round once; None where there is none."""
    return float(value) if isfinite(value) else None


def _counts_as_right(column: str) -> str:
    if column == "oracle":
        return "right is what any candidate is"
    first = column.removeprefix("pass@")
    return f"right is what {'the first candidate' if first == '1' else f'one of the first {first}'} is"


def puzzle_scores(values: Mapping[str, float], intervals: Mapping[str, list[float]]) -> list[Score]:
    """Return the scores of all puzzles; none where no answer is known."""
    found: list[Score] = []
    for name, value in values.items():
        if name == "examples":
            continue
        count = count_examples(values, name) if name in intervals else None
        low, high = intervals.get(name, (None, None))
        found.append(
            Score(
                name=name.replace("_", " "),
                meaning=MEANINGS.get(name, f"share of puzzles whose answer passes the check {name}"),
                subset=ALL_PUZZLES,
                value=value,
                low=low,
                high=high,
                right=count.right if count else None,
                num=count.num if count else values["examples"],
                what="puzzles",
                is_headline=True,
            )
        )
    return found
