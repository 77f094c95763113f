"""Draw what a sweep has found: settings with mean, interval and seeds, and their learning curves."""

import io
import math
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.base.files import replace_file
from data_pipeline.base.matplotlib_settings import plain_matplotlib
from tools.sweep.results import NOTE, Result, Results, is_share, score_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT, _PER_SETTING, _MOST_HEIGHT = 12.0, 2.6, 0.32, 30.0  # inches


@plain_matplotlib()
def draw(results: Results) -> None:
    """Write plot.png into the folder of the results, if a run is done."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    shown = [result for result in results.settings if result.mean is not None]
    if not shown:
        return
    height = min(_HEIGHT + _PER_SETTING * len(results.settings), _MOST_HEIGHT)
    figure = Figure(figsize=(_WIDTH, height), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    names = "tab10" if len(results.settings) <= 10 else "viridis"
    colours = [
        colormaps[names](i / 10 if names == "tab10" else i / (len(results.settings) - 1))
        for i in range(len(results.settings))
    ]
    _draw_settings(left, results, colours)
    _draw_curves(right, results, colours)
    figure.suptitle(
        f"{results.sweep.path.stem}: {results.num_done} of {len(results.sweep.runs)} runs", fontsize=11
    )
    figure.text(0.5, -0.01, NOTE, ha="center", va="top", fontsize=8, color="#606060")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", bbox_inches="tight")
    replace_file(results.sweep.out / "plot.png", picture.getvalue())


def _draw_settings(axes: "Axes", results: Results, colours: list[tuple[float, ...]]) -> None:
    """Draw a line per setting, from above: its interval, its mean, and its seeds as dots."""
    for y, (result, colour) in enumerate(zip(results.settings, colours, strict=True)):
        if result.mean is None:
            continue
        value, low, high = result.mean
        if not math.isnan(low):
            axes.plot([low, high], [y, y], color=colour, lw=2, solid_capstyle="butt")
        axes.plot([value], [y], "D", color=colour, ms=6)
        values = list(result.values.values())
        axes.plot(values, [y] * len(values), "o", mfc="none", mec=colour, ms=9, mew=1)
        if result.setting.name == results.sweep.baseline:
            axes.axvline(value, color="#b0b0b0", lw=1, ls="--", zorder=0)
    axes.set_yticks(range(len(results.settings)), [result.setting.name for result in results.settings])
    axes.set_ylim(len(results.settings) - 0.5, -0.5)
    if is_share(results):  # of few seeds, an interval may be far wider than what is possible
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -0.03), min(high, 1.03))
    where = "at the best step of each run" if results.sweep.at == "best" else "at the last step"
    axes.set_xlabel(f"{score_name(results)} {where}")
    axes.grid(axis="x", color="#e0e0e0", lw=0.6)


def _draw_curves(axes: "Axes", results: Results, colours: list[tuple[float, ...]]) -> None:
    for result, colour in zip(results.settings, colours, strict=True):
        steps, means = mean_curve(result, results.score)
        if steps:
            axes.plot(steps, means, "o-", color=colour, ms=2.5, lw=1.5, label=result.setting.name)
    axes.set_xlabel("step")
    axes.set_ylabel(f"{score_name(results)}, mean over seeds")
    axes.grid(color="#e0e0e0", lw=0.6)
    if axes.lines:
        axes.legend(fontsize=8, loc="best", framealpha=0.7)


def mean_curve(result: Result, score: str) -> tuple[list[int], list[float]]:
    """Return the steps at which all runs of a setting that are done were evaluated, and their mean scores."""
    curves = [
        {step: row[score] for step, row in found.scores.items() if score in row} for found in result.done
    ]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return steps, [float(np.mean([curve[step] for curve in curves])) for step in steps]
