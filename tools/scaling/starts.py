"""What several starts of each input give: numbers of starts x segments x choices, at what cost.

Of several numbers of segments without a rule, and of rules that stop earlier, the first 1, 2, 4, ... starts are taken,
and of these the answer that a choice prefers. All starts are paid for; by `first`, none longer than until one halts.

Shape legend: N inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from data_pipeline.base.progress import Progress
from data_pipeline.base.table import table
from data_pipeline.reader import TestReader
from hrm_dist.evaluation.halting import ALL_SEGMENTS, LEARNED, HaltingRule
from hrm_dist.evaluation.intervals import difference_interval, difference_text, interval_text
from hrm_dist.evaluation.starts import CHOICES, Choice, choose
from tools.scaling.outcomes import Taken, stops
from tools.scaling.results import Evaluated, Row, as_json, fixed, interval_json, scored_row

Way = Choice | Literal["one", "any"]
"""How an answer is taken."""
ONE: Literal["one"] = "one"
ANY: Literal["any"] = "any"
"""Of a single start there is nothing to choose. Any: a right start if there is one, which no choice can know."""
HALTED = HaltingRule("unchanged", 2)
RULES = (LEARNED, HALTED)
"""Tried beside numbers of segments: what a model has learned, and what needs no limit that fits the model."""


class Run(NamedTuple):
    """Some starts of each input."""

    rule: HaltingRule
    max_segments: int
    num_starts: int


Chosen = Mapping[Run, Mapping[Way, Row]]
"""What each choice gives of each run."""


def runs(num_starts: int, max_segments: int) -> list[Run]:
    """Return what is tried of an evaluation with so many starts and segments."""
    halvings = [max_segments >> n for n in reversed(range(max_segments.bit_length()))]
    doublings = [*(2**n for n in range((num_starts - 1).bit_length())), num_starts]
    ways = [(ALL_SEGMENTS, depth) for depth in halvings] + [(rule, max_segments) for rule in RULES]
    return [Run(rule, depth, num) for rule, depth in ways for num in doublings]


def choices(run: Run, *, has_residuals: bool) -> list[Way]:
    """Return how an answer of a run may be chosen."""
    if run.num_starts == 1:
        return [ONE]
    # Without a rule nobody halts first, and after one segment nothing has changed yet.
    tells_nothing = {
        "first": run.rule == ALL_SEGMENTS,
        "residual": run.max_segments == 1 or not has_residuals,
    }
    return [choice for choice in (*CHOICES, ANY) if not tells_nothing.get(choice)]


def by_starts(
    asked: Mapping[Run, Sequence[Way]],
    evaluated: Sequence[Evaluated],
    reader: TestReader,
    data: Path,
    progress: Progress,
) -> Chosen:
    """Return what these choices give."""

    def of(run: Run, choice: Way) -> Row:
        taken = [take(run, choice, one) for one in evaluated]
        return scored_row(choice, taken, evaluated, reader, data, progress)

    return {run: {choice: of(run, choice) for choice in of_run} for run, of_run in asked.items()}


def take(run: Run, choice: Way, one: Evaluated) -> Taken:
    """Return which answers are taken."""
    outcomes = one.outcomes
    stop = np.minimum(stops(run.rule, outcomes), run.max_segments)
    entries = np.arange(outcomes.num_entries).reshape(-1, one.num_starts)[:, : run.num_starts]
    num_segments = stop[entries]
    at = entries, num_segments - 1
    segments = num_segments.sum(axis=1)
    if choice == "first":
        segments = run.num_starts * num_segments.min(axis=1)
    if choice == ONE:
        chosen = np.zeros(len(entries), dtype=np.int64)
    elif choice == ANY:
        chosen = outcomes.is_right[at].argmax(axis=1)
    else:
        said = outcomes.q_halt_logits[at], outcomes.residuals[at], outcomes.answers[at]
        chosen = choose(choice, run.max_segments, num_segments, *said)
    taken = entries[np.arange(len(entries)), chosen]
    return Taken(taken, stop[taken], segments)


def tables(found: Chosen) -> list[str]:
    """Return tables for people: starts x segments, differences at equal cost, and rules."""
    plain = {run: of for run, of in found.items() if run.rule == ALL_SEGMENTS}
    most = max(run.max_segments for run in plain)
    in_order = sorted(plain, key=lambda run: (run.num_starts * run.max_segments, run.num_starts))
    alike = [run for run in in_order if run.num_starts * run.max_segments == most]
    halted = [run for run in found if run.rule != ALL_SEGMENTS]
    of_halted = {"halting": lambda run: str(run.rule), "starts": lambda run: str(run.num_starts)}
    alone = found[alike[0]][ONE]

    def spelled(row: Row) -> str:
        return interval_text(row.interval)

    def difference(row: Row) -> str:
        text = difference_text(difference_interval(row.shares, alone.shares))
        [only, *others] = row.points
        # Of ARC these are single predictions, not test inputs.
        is_counted = not others and "input/pass@2" not in row.scores[0]
        return f"{text} ({only.gained} gained, {only.lost} lost)" if is_counted else text

    return [
        _table(in_order, found, {"starts x segments": _name}, spelled),
        _table(alike, found, {f"against 1 x {most}": _name}, difference),
        _table(halted, found, of_halted, spelled),
    ]


def _name(run: Run) -> str:
    return f"{run.num_starts} x {run.max_segments}"


def _table(
    of: Sequence[Run],
    found: Chosen,
    heads: Mapping[str, Callable[[Run], str]],
    spelled: Callable[[Row], str],
) -> str:
    """Return a line for each run, with what it costs and a column for each choice."""
    rows = [_row(found[run], "q") for run in of]
    row_of = dict(zip(of, rows, strict=True))
    columns = dict(heads)
    columns["segments"] = lambda run: f"{row_of[run].segments:.2f}"
    operations, seconds = (
        fixed(lambda row: row.operations / 1e9, rows),
        fixed(lambda row: 1000 * row.seconds, rows),
    )
    columns["Gop an input"] = lambda run: operations(row_of[run])
    columns["ms an input"] = lambda run: seconds(row_of[run])
    for choice in (*CHOICES, ANY):
        if not any(choice in found[run] for run in of):
            continue
        head = "any (ceiling)" if choice == ANY else choice
        columns[head] = lambda run, choice=choice: _cell(found[run], choice, spelled)
        if choice == "first":
            columns["its segments"] = lambda run: f"{_row(found[run], 'first').segments:.2f}"
    cells = [[spell(run) for spell in columns.values()] for run in of]
    return "\n".join(table([list(columns), *cells], "<" + ">" * (len(columns) - 1)))


def _row(of_run: Mapping[Way, Row], choice: Way) -> Row:
    """Return what a choice gives, which of a single start is what this gives."""
    return of_run[choice if choice in of_run else ONE]


def _cell(of_run: Mapping[Way, Row], choice: Way, spelled: Callable[[Row], str]) -> str:
    return spelled(_row(of_run, choice)) if choice in of_run or ONE in of_run else ""


def records(found: Chosen) -> list[dict[str, Any]]:
    """Return all figures; several checkpoints are compared one by one with a single start of all segments."""
    most = max(run.max_segments for run in found)
    alone = found[Run(ALL_SEGMENTS, most, 1)][ONE]
    return [
        {
            "halting": str(run.rule),
            "max_segments": run.max_segments,
            "starts": run.num_starts,
            "choice": choice,
            "can_be_chosen": choice != ANY,
            **{name: value for name, value in as_json(row).items() if name != "name"},
            "against_one_start": interval_json(difference_interval(row.shares, alone.shares)),
        }
        for run, of_run in found.items()
        for choice, row in of_run.items()
    ]
