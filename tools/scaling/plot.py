"""Draw accuracy over segments, and what halting rules make of it."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.base.files import replace_file
from data_pipeline.base.matplotlib_settings import plain_matplotlib
from hrm_dist.evaluation.halting import ALL_SEGMENTS
from hrm_dist.evaluation.intervals import interval_text
from tools.scaling import starts
from tools.scaling.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people who are colour-blind tell apart, with a shape for each.
_BLACK, _GREY = "#000000", "#8c8c8c"
_LOOKS_OF_CHOICES: Mapping[starts.Way, Mapping[str, Any]] = {
    "q": {"color": "#0072b2", "marker": "o"},
    "vote": {"color": "#009e73", "marker": "^"},
    "first": {"color": "#d55e00", "marker": "D"},
    "residual": {"color": "#cc79a7", "marker": "v"},
    starts.ANY: {"color": _BLACK, "marker": "", "ls": ":", "elinewidth": 0},
}
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

    figure = Figure(figsize=(10, 5.4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_segments(left, segments, trained_segments, score)
    _draw_rules(right, segments, rules, trained_segments, score)
    over = _over(rules[0])
    note = f"Intervals at 95 %, over {over}. Large: the best of each kind of rule; small: its other limits."
    _save(figure, path, title, note)


@plain_matplotlib()
def draw_starts(
    path: Path, chosen: starts.Chosen, segments: Sequence[Row], *, score: str, title: str
) -> None:
    """Write the picture of several starts. segments: of one, after each segment; score: what is compared."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    most, num_starts = len(segments), max(run.num_starts for run in chosen)
    figure = Figure(figsize=(15, 5.4), dpi=100, layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for axes, rule in ((left, ALL_SEGMENTS), (middle, starts.HALTED)):
        own = [of for run, of in chosen.items() if run[:2] == (rule, most)]
        for choice, look in _LOOKS_OF_CHOICES.items():
            _draw_starts(axes, own, choice, choice, **look)
        axes.set_title(
            f"{most} segments of each start, {f'or until {rule}' if rule.value else 'no rule'}", fontsize=9
        )
    limits = left.get_ylim()
    depths = [run.max_segments for run in chosen if run.rule == ALL_SEGMENTS and run.num_starts == 1]
    for depth, shade in zip(depths, np.linspace(0.9, 0, len(depths)), strict=True):
        own = [of for run, of in chosen.items() if run[:2] == (ALL_SEGMENTS, depth)]
        look = {"color": colormaps["viridis"](shade), "marker": "o"}
        # With few segments all may lie too low to be seen beside the others.
        if max(of["q" if "q" in of else starts.ONE].interval.value for of in own) > limits[0]:
            _draw_starts(right, own, "q", f"q, starts of {depth} segments", **look)
    right.set_title("more starts of fewer segments", fontsize=9)
    for axes in (left, middle, right):
        axes.plot(
            [row.segments for row in segments],
            [row.interval.value for row in segments],
            color=_GREY,
            lw=1.5,
            label="one start, more segments",
        )
        _mark_costs(axes, segments, most * num_starts)
        _finish(axes)
    left.set_ylim(max(limits[0], -0.02), min(limits[1], 1.02))
    left.set_ylabel(score)
    note = (
        f"Intervals at 95 %, over {_over(segments[0])}. Points of a line: 1, 2, 4, ... {num_starts} starts, whose "
        "segments count together. any: whether one of them is right, which no choice can know."
    )
    _save(figure, path, title, note)


def _draw_starts(
    axes: "Axes", of_runs: Sequence[Mapping[starts.Way, Row]], choice: starts.Way, label: str, **look: Any
) -> None:
    """Draw what a choice gives of 1, 2, 4, ... starts, where it can be made."""
    if of_runs[-1].keys().isdisjoint((choice, starts.ONE)):
        return
    rows = [of[choice if choice in of else starts.ONE] for of in of_runs]
    value, low, high = np.array([row.interval for row in rows]).T
    axes.errorbar(
        [row.segments for row in rows],
        value,
        np.array([value - low, high - value]),
        label=label,
        **{"lw": 1.2, "ms": 4, "elinewidth": 0.6, **look},
    )


def _draw_segments(axes: "Axes", rows: Sequence[Row], trained_segments: Sequence[int], score: str) -> None:
    numbers = np.arange(1, len(rows) + 1)
    value, low, high = np.array([row.interval for row in rows]).T
    axes.plot(numbers, value, "o-", color="#0072b2", ms=3, lw=1.5, label=score)
    axes.fill_between(numbers, low, high, color="#0072b2", alpha=0.2, lw=0, label="its interval")
    if len(rows[0].shares) > 1:
        each = axes.plot(numbers, [row.shares for row in rows], color="#0072b2", lw=0.6, alpha=0.6)
        each[0].set_label("of each checkpoint")
    cells = [row.score("cell_accuracy") for row in rows]
    axes.plot(numbers, cells, "--", color="#d55e00", lw=1.2, label="cells right")
    for i, number in enumerate(sorted(set(trained_segments))):
        axes.axvline(number, color=_GREY, lw=1, ls=":", label="" if i else "most in training")
    axes.set_xlabel("segments")
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.02, 1.02)
    _finish(axes)


def _draw_rules(
    axes: "Axes", segments: Sequence[Row], rules: Sequence[Row], trained_segments: Sequence[int], score: str
) -> None:
    axes.plot(
        [row.segments for row in segments],
        [row.interval.value for row in segments],
        color=_GREY,
        lw=1,
        label="all inputs after n segments",
    )
    as_trained = [row for row in segments if row.segments in trained_segments]
    for row in as_trained:
        label = f"as many as in training, {_told(row)}"
        axes.plot(row.segments, row.interval.value, "s", mfc="none", mec=_GREY, ms=10, label=label)
    for kind, (colour, shape) in _LOOKS.items():
        own = sorted(
            (row for row in rules if row.name.partition(":")[0] == kind), key=lambda row: row.segments
        )
        if not own:
            continue
        x, y = [row.segments for row in own], [row.interval.value for row in own]
        axes.plot(x, y, shape, ls="-", lw=0.8, color=colour, ms=4)
        # The table has all rules; labels of all would hide each other where rules are good.
        best = max(own, key=lambda row: row.interval.value)
        label = f"{'best ' * (len(own) > 1)}{best.name}, {_told(best)}"
        axes.plot(
            best.segments, best.interval.value, shape, color=colour, ms=9, mec="black", mew=0.8, label=label
        )
    shares = [row.interval.value for row in (*rules, *as_trained)]
    margin = 0.08 * (max(shares) - min(shares)) + 0.005
    axes.set_ylim(min(shares) - margin, max(shares) + margin)
    axes.set_ylabel(score)
    _mark_costs(axes, segments, len(segments))
    _finish(axes)


def _over(row: Row) -> str:
    return "inputs (Wilson)" if len(row.scores) == 1 else "checkpoints (Student)"


def _save(figure: "Figure", path: Path, title: str, note: str) -> None:
    figure.suptitle(title, fontsize=10)
    figure.text(0.5, -0.01, note, ha="center", va="top", fontsize=8, color="#606060")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", bbox_inches="tight")
    replace_file(path, picture.getvalue())


def _told(row: Row) -> str:
    return f"at {row.segments:.1f}: {interval_text(row.interval)}"


def _mark_costs(axes: "Axes", segments: Sequence[Row], most: int) -> None:
    """Let an axis double with each mark, since rules that are good lie close together at few segments."""
    marks = [2**i for i in range(most.bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.9, 1.12 * most)
    axes.set_xticks(marks, [str(mark) for mark in marks])
    axes.minorticks_off()
    axes.set_xlabel("segments an input, mean")
    above = axes.secondary_xaxis("top")
    above.set_xticks(marks, [f"{segments[0].operations * mark / 1e9:.2g}" for mark in marks])
    above.minorticks_off()
    above.set_xlabel("Gop an input, mean")


def _finish(axes: "Axes") -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color="#e0e0e0", lw=0.6)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
