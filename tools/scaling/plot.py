"""Draw accuracy over segments, and what halting rules make of it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.base.files import replace_file
from data_pipeline.base.matplotlib_settings import plain_matplotlib
from tools.scaling.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people who are colour-blind tell apart, with a shape for each.
_BLACK, _GREY = "#000000", "#8c8c8c"
_LOOKS = {
    "none": (_BLACK, "s"),
    "learned": ("#d55e00", "D"),
    "q": ("#0072b2", "o"),
    "unchanged": ("#009e73", "^"),
    "residual": ("#cc79a7", "v"),
}


@plain_matplotlib()
def draw(
    path: Path,
    segments: Sequence[Row],
    rules: Sequence[Row],
    *,
    trained_segments: Sequence[int],
    score: str,
    title: str,
) -> None:
    """Write the picture. trained_segments: how many the models were trained with; score: what is compared."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_segments(left, segments, trained_segments, score)
    _draw_rules(right, segments, rules, trained_segments, score)
    figure.suptitle(title, fontsize=10)
    over = "inputs (Wilson)" if len(rules[0].scores) == 1 else "checkpoints (Student)"
    figure.text(
        0.5, -0.01, f"Intervals at 95 %, over {over}.", ha="center", va="top", fontsize=8, color="#606060"
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", bbox_inches="tight")
    replace_file(path, picture.getvalue())


def _draw_segments(axes: "Axes", rows: Sequence[Row], trained_segments: Sequence[int], score: str) -> None:
    numbers = np.arange(1, len(rows) + 1)
    value, low, high = np.array([row.interval for row in rows]).T
    axes.fill_between(numbers, low, high, color="#0072b2", alpha=0.2, lw=0)
    axes.plot(numbers, value, "o-", color="#0072b2", ms=3, lw=1.5, label=score)
    if len(rows[0].shares) > 1:
        axes.plot(numbers, [row.shares for row in rows], color="#0072b2", lw=0.6, alpha=0.6)
    cells = [row.score("cell_accuracy") for row in rows]
    axes.plot(numbers, cells, "--", color="#d55e00", lw=1.2, label="cells right")
    for i, number in enumerate(sorted(set(trained_segments))):
        axes.axvline(number, color=_GREY, lw=1, ls=":", label="" if i else "most in training")
    axes.set_xlabel("segments")
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.02, 1.02)
    _in_percent(axes)
    axes.grid(color="#e0e0e0", lw=0.6)
    axes.legend(fontsize=8, loc="best", framealpha=0.8)


def _draw_rules(
    axes: "Axes", segments: Sequence[Row], rules: Sequence[Row], trained_segments: Sequence[int], score: str
) -> None:
    axes.plot(
        [row.segments for row in segments],
        [row.interval.value for row in segments],
        color=_GREY,
        lw=1,
        label="all inputs after n",
    )
    as_trained = [row for row in segments if row.segments in trained_segments]
    x, y = [row.segments for row in as_trained], [row.interval.value for row in as_trained]
    axes.plot(x, y, "s", mfc="none", mec=_GREY, ms=9, label="as many as in training")
    kinds = dict.fromkeys(row.name.partition(":")[0] for row in rules)
    for kind in kinds:
        own = sorted(
            (row for row in rules if row.name.partition(":")[0] == kind), key=lambda row: row.segments
        )
        colour, shape = _LOOKS[kind]
        x = [row.segments for row in own]
        y, low, high = np.array([row.interval for row in own]).T
        # Of a single checkpoint's inputs; of checkpoints, whose scores differ as a whole, they would hide the rules.
        if len(rules[0].shares) == 1:
            axes.errorbar(
                x, y, yerr=(y - low, high - y), fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.6
            )
        axes.plot(x, y, shape, ls="-", lw=0.8, color=colour, ms=6, mec="white", mew=0.5, label=kind)
        for row, at, height in zip(own, x, y, strict=True):
            limit = row.name.partition(":")[2]
            axes.annotate(limit, (at, height), (3, -9), textcoords="offset points", fontsize=7, color=colour)
    shares = [row.interval.value for row in (*rules, *as_trained)]
    margin = 0.08 * (max(shares) - min(shares)) + 0.005
    axes.set_ylim(min(shares) - margin, max(shares) + margin)
    axes.set_xlabel("segments per input, mean")
    per_segment = segments[0].operations
    above = axes.secondary_xaxis(
        "top", functions=(lambda x: np.asarray(x) * per_segment, lambda x: np.asarray(x) / per_segment)
    )
    above.set_xlabel("operations per input")
    axes.set_ylabel(score)
    _in_percent(axes)
    axes.grid(color="#e0e0e0", lw=0.6)
    axes.legend(fontsize=8, loc="best", framealpha=0.8)


def _in_percent(axes: "Axes") -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
