"""Draw what analysis.json says, one picture for each question, a panel for each checkpoint."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.base.files import replace_file
from data_pipeline.base.matplotlib_settings import plain_matplotlib
from tools.analyze.tables import FIRST_POPULATION, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people who are colour-blind tell apart.
_BLUE, _ORANGE, _GREEN, _BLACK, _GREY = "#0072b2", "#d55e00", "#009e73", "#000000", "#8c8c8c"
_OF_STATE = ((_BLUE, "o"), (_ORANGE, "s"))
_COLUMNS = 3
_DPI = 90
DrawFn = Callable[["Axes", Mapping[str, Any]], None]


@plain_matplotlib()
def draw_all(out: Path, report: Report) -> list[dict[str, str]]:
    """Write the pictures of all that is told; return file, title and caption of each."""
    drawn = []
    for file, (section, title, caption, draw) in _PICTURES.items():
        shown = [one for one in report["checkpoints"] if _is_drawable(one[section])]
        if shown:
            _save(out / file, draw(shown), title)
            drawn.append({"file": file, "title": title, "caption": caption})
    return drawn


def _is_drawable(section: Mapping[str, Any] | Sequence[Any]) -> bool:
    """Agreement is told of puzzles with hidden truth too, but drawn are shares of those that are known."""
    has_none_known = isinstance(section, Mapping) and section.get("by_agreement") == []
    return "why" not in section and not has_none_known


def _save(path: Path, figure: "Figure", title: str) -> None:
    from PIL import Image  # matplotlib needs it too

    figure.suptitle(title, fontsize=11)
    drawn, picture = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight")
    # A palette takes a third of the bytes, and reports hold many pictures.
    Image.open(drawn).convert("RGB").quantize(128).save(picture, format="png", optimize=True)
    replace_file(path, picture.getvalue())


def _panels(checkpoints: Sequence[Mapping[str, Any]], draw: DrawFn, *, from_zero: bool = False) -> "Figure":
    """Draw a panel for each checkpoint, and one legend for all."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(checkpoints))
    rows = -(-len(checkpoints) // columns)
    figure = Figure(figsize=(max(5.5, 4.2 * columns), 3.4 * rows + 0.4), dpi=_DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten().tolist()
    for axes, one in zip(panels, checkpoints, strict=False):
        draw(axes, one)
        axes.set_title(f"{one['name']} ({one['arch']['name']})", fontsize=9)
        _grid(axes)
    if from_zero:  # now that the shared axis knows all
        panels[0].set_ylim(bottom=0)
    for axes in panels[len(checkpoints) :]:
        axes.remove()
    _legend(figure, panels[: len(checkpoints)])
    return figure


def _grid(axes: "Axes") -> None:
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _legend(figure: "Figure", panels: Sequence["Axes"]) -> None:
    found = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            [*found.values()], [*found], loc="outside lower center", ncols=min(4, len(found)), fontsize=8,
            frameon=False,
        )  # fmt: skip


def _trained(axes: "Axes", one: Mapping[str, Any]) -> None:
    axes.axvline(one["trained_segments"], color=_GREY, lw=1, ls=":", label="segments of training")


def _percent(axes: "Axes") -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _whole(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


# Dimensions


def _draw_ratios(checkpoints: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw trained beside initial, of all checkpoints on one axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.5, 1.5 + 1.3 * len(checkpoints)), 4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(checkpoints):
        for half, weights in enumerate(("initial", "trained")):
            for number, name in enumerate(one["states"]):
                found = one["dimensions"][weights][name]["populations"][FIRST_POPULATION]
                if found["value"] is None:
                    continue
                colour, marker = _OF_STATE[number]
                at = place - 0.24 + 0.34 * half + 0.1 * number
                low, high = (found["value"] if found[key] is None else found[key] for key in ("low", "high"))
                axes.errorbar(
                    at, found["value"], [[max(0, found["value"] - low)], [max(0, high - found["value"])]],
                    color=colour, marker=marker, ms=7, capsize=3, ls="none",
                    mfc=colour if weights == "trained" else "white", label=f"{name}, {weights}",
                )  # fmt: skip
    axes.set_xticks(range(len(checkpoints)), [one["name"] for one in checkpoints], rotation=20, ha="right")
    axes.set_xlim(-0.6, len(checkpoints) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("participation ratio")
    _grid(axes)
    _legend(figure, [axes])
    return figure


def _by_number(axes: "Axes", one: Mapping[str, Any]) -> None:
    for weights, style in (("trained", "-"), ("initial", "--")):
        for number, name in enumerate(one["states"]):
            found = one["dimensions"][weights][name]["by_number"][FIRST_POPULATION]
            at, mean, low, high = (
                np.array([of[key] for of in found], dtype=float)  # None is NaN
                for key in ("trajectories", "mean", "low", "high")
            )
            colour, marker = _OF_STATE[number]
            face = colour if weights == "trained" else "white"
            axes.plot(
                at,
                mean,
                style,
                color=colour,
                marker=marker,
                mfc=face,
                ms=4,
                lw=1.3,
                label=f"{name}, {weights}",
            )
            axes.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_xscale("log")
    most = one["dimensions"]["num_puzzles"]
    marks = [number for number in (10, 30, 100, 300, 1000) if number <= most]
    axes.set_xticks(marks, [str(mark) for mark in marks])
    axes.minorticks_off()
    axes.set_xlabel("trajectories", fontsize=8)
    axes.set_ylabel("participation ratio", fontsize=8)


def _by_update(axes: "Axes", one: Mapping[str, Any]) -> None:
    for weights, style in (("trained", "-"), ("initial", "--")):
        for number, name in enumerate(one["states"]):
            found = one["dimensions"][weights][name]
            colour, marker = _OF_STATE[number]
            values = np.array(found["by_update"], dtype=float)
            at = (1 + np.arange(len(values))) / found["updates_per_segment"]
            axes.plot(at, values, style, color=colour, lw=1, marker=".", ms=4)
            ends = found["by_segment"]
            value, low, high = (
                np.array([of[key] for of in ends], dtype=float) for key in ("value", "low", "high")
            )
            bars = np.maximum(0, np.nan_to_num([value - low, high - value]))
            face = colour if weights == "trained" else "white"
            axes.errorbar(
                1 + np.arange(len(ends)), value, bars, color=colour, marker=marker, mfc=face, ms=5, ls="none",
                capsize=2, label=f"{name}, {weights}",
            )  # fmt: skip
    axes.set_xlabel("segments", fontsize=8)
    axes.set_ylabel("participation ratio", fontsize=8)
    _whole(axes)


# Paths and residuals


def _draw_paths(checkpoints: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw a row for each checkpoint, a column for each state."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows = len(checkpoints)
    figure = Figure(figsize=(8, 3.1 * rows + 0.4), dpi=_DPI, layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False)
    for row, one in zip(panels, checkpoints, strict=True):
        shades = ScalarMappable(Normalize(0, one["trained_segments"]), colormaps["viridis"])
        for axes, (name, found) in zip(row, one["paths"].items(), strict=False):
            points = np.array(found["points"], dtype=float)
            at = (1 + np.arange(points.shape[1])) / found["updates_per_segment"]
            for path in points:
                axes.plot(*path.T, color=_GREY, lw=0.6, zorder=1)
                axes.scatter(*path.T, c=at, cmap="viridis", norm=shades.norm, s=12, zorder=2)
            axes.plot(
                *points[:, 0].T, marker="x", color=_BLACK, ms=7, mew=1.5, ls="none", label="first update"
            )
            first, second = found["explained"]
            axes.set_title(f"{one['name']}, {name}", fontsize=9)
            axes.set_xlabel(f"component 1 ({first:.0%} of the variance)", fontsize=8)
            axes.set_ylabel(f"component 2 ({second:.0%})", fontsize=8)
            _grid(axes)
        for axes in row[len(one["paths"]) :]:
            axes.remove()
        bar = figure.colorbar(shades, ax=row[: len(one["paths"])].tolist(), label="segments")
        bar.ax.tick_params(labelsize=8)
    _legend(figure, [panels[0, 0]])
    return figure


def _residuals(axes: "Axes", one: Mapping[str, Any]) -> None:
    for number, (name, found) in enumerate(one["residuals"].items()):
        colour, marker = _OF_STATE[number]
        median, low, high = (np.array(found[key], dtype=float) for key in ("median", "low", "high"))
        axes.plot(found["segments"], median, color=colour, marker=marker, ms=3, lw=1, label=name)
        axes.fill_between(found["segments"], low, high, color=colour, alpha=0.18, lw=0)
    _trained(axes, one)
    # None: what overflows after the segments of training
    if all(value is None or value > 0 for found in one["residuals"].values() for value in found["low"]):
        axes.set_yscale("log")
    axes.set_xlabel("segments", fontsize=8)
    axes.set_ylabel("residual of an update", fontsize=8)
    _whole(axes)


# Answers


def _halting(axes: "Axes", one: Mapping[str, Any]) -> None:
    at = 1 + np.arange(one["segments"])
    for place, ((name, found), colour) in enumerate(
        zip(one["halting"].items(), (_BLUE, _ORANGE), strict=True)
    ):
        shares = np.array(found["counts"]) / sum(found["counts"])
        label = "learned (q)" if name == "learned" else "answer unchanged once"
        axes.bar(
            at - 0.2 + 0.4 * place, shares, 0.4, color=colour, label=label, hatch="//" * place, ec="white"
        )
    _trained(axes, one)
    _percent(axes)
    _whole(axes)
    axes.set_xlabel("stops after segment (the last: or never)", fontsize=8)
    axes.set_ylabel("share of puzzles", fontsize=8)


def _calibration(axes: "Axes", one: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, lw=1, ls=":", label="as it should be")
    last = min(one["trained_segments"], one["segments"])
    chosen = {"first segment": 1, "last of training": last, "last of all": one["segments"]}
    looks = ((_BLUE, "o"), (_ORANGE, "s"), (_GREEN, "^"))
    seen, lines = set[int](), []
    for (label, number), (colour, marker) in zip(chosen.items(), looks, strict=True):
        found = one["calibration"][number - 1]
        if number in seen or found is None:
            continue
        seen.add(number)
        sizes = 12 + 120 * np.sqrt(np.array(found["bin_num"]) / found["num"])
        axes.plot(found["bin_q"], found["bin_right"], color=colour, lw=0.8)
        axes.scatter(
            found["bin_q"], found["bin_right"], s=sizes, color=colour, marker=marker, alpha=0.8, label=label
        )
        auc = "-" if found["auc"] is None else f"{found['auc']:.2f}"
        lines.append(f"{number}: Brier {found['brier']:.3f}, AUC {auc}, error {found['expected_error']:.3f}")
    axes.text(
        0.03, 0.97, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=7,
        bbox={"fc": "white", "ec": "none", "alpha": 0.8},
    )  # fmt: skip
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.25)
    axes.set_xlabel("q", fontsize=8)
    axes.set_ylabel("share right", fontsize=8)


def _staying(axes: "Axes", one: Mapping[str, Any]) -> None:
    found = one["staying"]
    at = 1 + np.arange(one["segments"])
    num = max(1, found["num"])
    axes.bar(at, np.array(found["gained"]) / num, 0.7, color=_BLUE, label="becomes right")
    axes.bar(
        at, -np.array(found["lost"]) / num, 0.7, color=_ORANGE, hatch="//", ec="white", label="becomes wrong"
    )
    axes.plot(at, np.array(found["num_right"]) / num, color=_BLACK, marker="o", ms=3, lw=1, label="right")
    axes.axhline(0, color=_BLACK, lw=0.6)
    _trained(axes, one)
    _percent(axes)
    _whole(axes)
    axes.set_xlabel("segment", fontsize=8)
    axes.set_ylabel("share of puzzles", fontsize=8)


def _agreement(axes: "Axes", one: Mapping[str, Any]) -> None:
    found = one["agreement"]
    by = found["by_agreement"]
    _draw_shares(axes, [of["agreeing"] for of in by], by)
    axes.set_xticks(range(found["images"] + 1))
    axes.set_xlim(-0.6, found["images"] + 0.6)
    axes.set_xlabel(f"images of {found['images']} that are answered alike", fontsize=8)


def _difficulty(axes: "Axes", one: Mapping[str, Any]) -> None:
    several = len(one["difficulty"]) > 1
    for (name, by), (colour, marker) in zip(one["difficulty"].items(), _OF_STATE, strict=False):
        label = name.partition(", ")[2] if several else ""
        _draw_shares(axes, [(of["low"] + of["high"]) / 2 for of in by], by, colour, marker, label)
    _whole(axes)
    axes.set_xlabel(next(iter(one["difficulty"]), "").partition(",")[0], fontsize=8)


def _draw_shares(
    axes: "Axes",
    at: Sequence[float],
    by: Sequence[Mapping[str, Any]],
    colour: str = _BLUE,
    marker: str = "o",
    label: str = "",
) -> None:
    """Draw shares that are right with their intervals, and of how many puzzles each is."""
    value, low, high = (np.array([of["accuracy"][key] for of in by]) for key in ("value", "low", "high"))
    axes.errorbar(at, value, np.maximum(0, [value - low, high - value]), color=colour, marker=marker, capsize=3,
                  lw=1, ms=5, label=label or None)  # fmt: skip
    for place, share, of in zip(at, value, by, strict=True):
        axes.annotate(
            f"{of['num']}",
            (place, share),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            color=colour,
        )
    axes.set_ylim(-0.04, 1.1)
    _percent(axes)
    axes.set_ylabel("share right", fontsize=8)


def _in_panels(draw: DrawFn, **options: Any) -> Callable[[Sequence[Mapping[str, Any]]], "Figure"]:
    return lambda checkpoints: _panels(checkpoints, draw, **options)


_PICTURES: dict[str, tuple[str, str, str, Callable[[Sequence[Mapping[str, Any]]], "Figure"]]] = {
    "dimensions.png": (
        "dimensions",
        "Dimensions of the states",
        "Participation ratio of the states at cells of the puzzles, after all updates in the segments of training: of "
        "the initial weights (hollow) and of the trained ones (filled). Bars: bootstrap over puzzles, 95 %. The paper "
        "(figure 8) has z_H far above z_L after training, and not before.",
        _draw_ratios,
    ),
    "dimensions_by_number.png": (
        "dimensions",
        "Dimensions over the number of trajectories",
        "The same, of subsets of the puzzles: means, and 95 % of 30 subsets. The paper has z_H grow with the number of "
        "tasks, and z_L not.",
        _in_panels(_by_number, from_zero=True),
    ),
    "dimensions_by_update.png": (
        "dimensions",
        "Dimensions over the updates",
        "Participation ratio of the states at cells after each update; marks with bars are the ends of segments.",
        _in_panels(_by_update, from_zero=True),
    ),
    "paths.png": (
        "paths",
        "Paths of the states",
        "Six puzzles' states, as means over their cells, in the plane of the first two principal components of all "
        "puzzles' states. A point is an update; its colour says in which segment.",
        _draw_paths,
    ),
    "residuals.png": (
        "residuals",
        "Forward residuals",
        "Root mean square of what each update changes: median over puzzles, with the band from 10 to 90 %. The paper "
        "(figure 3) has H settle slowly, and L start again with each cycle.",
        _in_panels(_residuals),
    ),
    "halting.png": (
        "halting",
        "When a model would stop",
        "Puzzles by the segment after which they stop, by the learned rule and by an answer that is given twice.",
        _in_panels(_halting),
    ),
    "calibration.png": (
        "calibration",
        "What q is worth",
        "Share of right answers against the model's own estimate q, in ten bins; larger marks are of more puzzles.",
        _in_panels(_calibration),
    ),
    "staying.png": (
        "staying",
        "Do solved puzzles stay solved",
        "Puzzles that become right or wrong with each segment, and the share that is right.",
        _in_panels(_staying),
    ),
    "agreement.png": (
        "agreement",
        "Symmetric images answered alike",
        "Share of puzzles that are right, by how many symmetric images are answered as the puzzle itself is. Numbers: "
        "puzzles. Bars: Wilson, 95 %.",
        _in_panels(_agreement),
    ),
    "difficulty.png": (
        "difficulty",
        "Accuracy by difficulty",
        "Share of puzzles that are right after the segments of training. Numbers: puzzles. Bars: Wilson, 95 %.",
        _in_panels(_difficulty),
    ),
}
