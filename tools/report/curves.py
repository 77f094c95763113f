"""The curves of a training, out of its metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_pipeline.base import jsonl
from data_pipeline.base.errors import InputError
from hrm_dist.evaluation.scores import SHARES_OF_EXAMPLES
from tools.report.payload import Curve

MAX_POINTS = 500
_COUNTS = ("examples", "inputs", "tasks")
"""Of what was evaluated, which are no curves."""


def read_curves(metrics: Path) -> list[Curve]:
    """Return the curves of a run. Raise InputError if nothing of its metrics can be used."""
    return curves(_rows(metrics))


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, without lines that are damaged or that a training has not finished."""
    try:
        path.stat()
        values = jsonl.read(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the run's metrics.jsonl."
        ) from error
    rows = [row for row in values if isinstance(row, dict) and type(row.get("step")) is int]
    if not rows and path.stat().st_size:
        raise InputError(
            f"{path}: no line is an object with a whole number 'step', so it is damaged or no metrics.jsonl; restore "
            "it, or move it away to have a report without curves."
        )
    return rows


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return a curve for each value that rows have, those of a panel together, the most telling panels first."""
    points: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        for key, value in row.items():
            panel = _panel(key)
            if panel and isinstance(value, int | float) and not isinstance(value, bool):
                name = key.removeprefix("train/").removeprefix("eval/")
                points.setdefault((panel, name), {})[row["step"]] = float(value)
    found = [_curve(panel, name, by_step) for (panel, name), by_step in points.items()]
    return sorted(
        found, key=lambda curve: _PANELS.index(curve.panel) if curve.panel in _PANELS else len(_PANELS)
    )


_PANELS = (
    "loss",
    "accuracy, evaluation",
    "accuracy, training",
    "learning rate",
    "segments",
    "speed",
    "other scores, evaluation",
)
_TOLD = {"task/pass@2", "input/pass@2", "cell_accuracy", *SHARES_OF_EXAMPLES}
"""Scores of an evaluation that say most."""


def _panel(key: str) -> str | None:
    """Return where a value is drawn, by itself if it is like no other; None for what is no curve."""
    if key == "step":
        return None
    if key.startswith("eval/"):
        name = key.removeprefix("eval/")
        if name in _COUNTS:
            return None
        return "accuracy, evaluation" if name in _TOLD else "other scores, evaluation"
    name = key.removeprefix("train/")
    if name.endswith("loss"):
        return "loss"
    if name.endswith("accuracy"):
        return "accuracy, training"
    if name == "lr" or name.endswith("_lr"):
        return "learning rate"
    if name.endswith("per_s"):
        return "speed"
    return name


def _curve(panel: str, name: str, by_step: Mapping[int, float]) -> Curve:
    steps = sorted(by_step)
    values = [by_step[step] for step in steps]
    if len(steps) > MAX_POINTS:
        steps, values = _thinned(steps, values)
    return Curve(panel=panel, name=name, steps=steps, values=[_short(value) for value in values])


def _thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Return the means of consecutive points, each at its last step, and the last point as it is."""
    num = len(steps) - 1
    bounds = [num * n // (MAX_POINTS - 1) for n in range(MAX_POINTS)]
    means = [_mean([value for value in values[a:b] if math.isfinite(value)]) for a, b in pairwise(bounds)]
    return [*(steps[b - 1] for b in bounds[1:]), steps[-1]], [*means, values[-1]]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _short(value: float) -> float | None:
    """Return a number with as many digits as anybody can see."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
