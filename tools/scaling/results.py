"""Segments and rules compared: costs beside scores, of one checkpoint or as means over several."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.progress import Progress
from data_pipeline.base.table import table
from data_pipeline.kinds import kind_named
from data_pipeline.reader import TestReader
from hrm_dist.evaluation.evaluate import score_fn
from hrm_dist.evaluation.halting import HaltingRule
from hrm_dist.evaluation.intervals import (
    Interval,
    difference_interval,
    difference_text,
    interval_text,
    mean_interval,
    share_interval,
)
from hrm_dist.evaluation.output_dir import Evaluation
from hrm_dist.evaluation.scores import SHARES_OF_EXAMPLES, count_right
from tools.scaling.outcomes import Outcomes, Point, Taken, point, predictions_at, stops


class Evaluated(NamedTuple):
    """A checkpoint's answers after every segment, and what one segment of one input takes."""

    checkpoint: Path
    folder: Path
    record: Evaluation
    trained_segments: int
    """As many as the model was trained with, at most."""
    outcomes: Outcomes
    num_starts: int
    operations: int
    """Matrix products, as multiplications and additions."""
    seconds: float

    @property
    def of_first_starts(self) -> Outcomes:
        return self.outcomes.of_first_starts(self.num_starts)


class Row(NamedTuple):
    """A number of segments, or a rule, and what it gives with each checkpoint, in order."""

    name: str
    points: list[Point]
    scores: list[dict[str, float]]
    """By name, as of an evaluation in training."""
    operations: float
    """Of an input, the mean over checkpoints."""
    seconds: float

    @property
    def segments(self) -> float:
        return float(np.mean([one.segments for one in self.points]))

    @property
    def shares(self) -> list[float]:
        """Return the score that is compared, of each checkpoint: of all inputs, or of ARC's by two attempts."""
        return [count.right / count.num for scores in self.scores if (count := count_right(scores))]

    @property
    def interval(self) -> Interval:
        """Return that score with its interval: over inputs (Wilson's), or over several checkpoints (Student's)."""
        if len(self.scores) > 1:
            return mean_interval(self.shares)
        count = count_right(self.scores[0])
        assert count is not None
        return share_interval(count.right, count.num)

    def mean(self, name: str) -> float:
        """Return the mean over checkpoints of a field of Point."""
        return float(np.mean([getattr(one, name) for one in self.points]))

    def score(self, name: str) -> float:
        """Return the mean over checkpoints of a score."""
        return float(np.mean([scores[name] for scores in self.scores]))


def by_segment(
    evaluated: Sequence[Evaluated], reader: TestReader, data: Path, progress: Progress
) -> list[Row]:
    """Return what each number of segments of start 0 gives, from the first on, with no rule."""
    most = evaluated[0].outcomes.num_segments
    numbers = {
        str(n): [np.full(one.of_first_starts.num_entries, n) for one in evaluated] for n in range(1, most + 1)
    }
    return [_alone(name, at, evaluated, reader, data, progress) for name, at in numbers.items()]


def by_rule(
    rules: Sequence[HaltingRule],
    evaluated: Sequence[Evaluated],
    reader: TestReader,
    data: Path,
    progress: Progress,
) -> list[Row]:
    """Return what each rule gives, of start 0."""
    return [
        _alone(
            str(rule),
            [stops(rule, one.of_first_starts) for one in evaluated],
            evaluated,
            reader,
            data,
            progress,
        )
        for rule in rules
    ]


def _alone(
    name: str,
    stop: Sequence[NDArray[np.int64]],
    evaluated: Sequence[Evaluated],
    reader: TestReader,
    data: Path,
    progress: Progress,
) -> Row:
    taken = [Taken.of_first_starts(at, one.num_starts) for one, at in zip(evaluated, stop, strict=True)]
    return scored_row(name, taken, evaluated, reader, data, progress)


def scored_row(
    name: str,
    taken: Sequence[Taken],
    evaluated: Sequence[Evaluated],
    reader: TestReader,
    data: Path,
    progress: Progress,
) -> Row:
    """Return what answers give that are taken of each evaluation."""
    points, scores = [], []
    for one, of_one in zip(evaluated, taken, strict=True):
        points.append(point(one.outcomes, of_one, one.num_starts))
        scores.append(_accuracies(points[-1], kind_named(reader.info.kind).checks))
        if add_scores := score_fn(reader.info.kind):
            scores[-1] |= add_scores(predictions_at(one.folder, of_one, one.num_starts), reader, data)
        progress.update()
    costs = [
        (found.segments * one.operations, found.segments * one.seconds)
        for one, found in zip(evaluated, points, strict=True)
    ]
    return Row(name, points, scores, *np.mean(costs, axis=0).tolist())


def _accuracies(found: Point, checks: Iterable[str]) -> dict[str, float]:
    """Return shares by name, as puzzle_scores names them."""
    return {
        "examples": found.num,
        "exact_accuracy": found.right / found.num,
        "cell_accuracy": found.cell_accuracy,
        **{name: num / found.num for name, num in zip(checks, found.checked, strict=True)},
    }


def as_table(rows: Sequence[Row], last: Row, what: str) -> str:
    """Return rows for people. last: that of all segments, with which several checkpoints are compared one by one."""
    several = len(last.scores) > 1
    columns: dict[str, Callable[[Row], str]] = {what: lambda row: row.name}
    if what != "segments":
        columns["segments"] = lambda row: f"{row.segments:.2f}"
    columns["Gop an input"] = fixed(lambda row: row.operations / 1e9, rows)
    columns["ms an input"] = fixed(lambda row: 1000 * row.seconds, rows)
    if "input/pass@2" in last.scores[0]:
        columns["exact"] = lambda row: f"{row.score('exact_accuracy'):.1%}"
        columns["cells"] = lambda row: f"{row.score('cell_accuracy'):.1%}"
        columns["pass@1"] = lambda row: f"{row.score('input/pass@1'):.1%}"
        columns["pass@2"] = lambda row: interval_text(row.interval)
    else:
        columns["exact"] = lambda row: interval_text(row.interval)
        columns["cells"] = lambda row: f"{row.score('cell_accuracy'):.1%}"
    for name in SHARES_OF_EXAMPLES[1:]:
        if name in last.scores[0]:
            head = name.removesuffix("_accuracy").replace("_", " ")
            columns[head] = lambda row, name=name: f"{row.score(name):.1%}"
    for head, name in (("differ", "differing"), ("gained", "gained"), ("lost", "lost")):
        columns[head] = lambda row, name=name: f"{row.mean(name):.{int(several)}f}"
    if several:
        columns["against all segments"] = lambda row: difference_text(
            difference_interval(row.shares, last.shares)
        )
    cells = [[spell(row) for spell in columns.values()] for row in rows]
    return "\n".join(table([list(columns), *cells], "<" + ">" * (len(columns) - 1)))


def fixed(value: Callable[[Row], float], rows: Sequence[Row]) -> Callable[[Row], str]:
    """Return what spells a value of each row, all with as many decimals as give the least two digits."""
    least = min(map(value, rows))
    decimals = max(0, 1 - math.floor(math.log10(least))) if least > 0 else 0
    return lambda row: f"{value(row):,.{decimals}f}"


def as_json(row: Row) -> dict[str, Any]:
    """Return all figures of a row."""
    return {
        "name": row.name,
        "segments_per_input": row.segments,
        "operations_per_input": row.operations,
        "seconds_per_input": row.seconds,
        "score": interval_json(row.interval),
        "by_checkpoint": [
            {"segments_per_input": found.segments, **scores}
            | {name: getattr(found, name) for name in ("differing", "gained", "lost")}
            for found, scores in zip(row.points, row.scores, strict=True)
        ],
    }


def interval_json(interval: Interval) -> dict[str, float | None]:
    """Return an interval by name; what is not known as None."""
    return {name: None if math.isnan(value) else value for name, value in interval._asdict().items()}
