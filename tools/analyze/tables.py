"""What analysis.json says, in few lines for people."""

from collections.abc import Mapping
from typing import Any

from data_pipeline.base.table import table
from hrm_dist.evaluation.intervals import Interval, interval_text

FIRST_POPULATION = "cells, trajectory"
Report = Mapping[str, Any]


def interval_of(found: Report) -> Interval:
    """Return an interval that JSON has."""
    return Interval(*(float("nan") if found[name] is None else found[name] for name in Interval._fields))


def told(found: Report | None, digits: int = 1) -> str:
    """Spell an interval; a dash where there is none."""
    if found is None:
        return "-"
    value, low, high = interval_of(found)
    if value != value:
        return "-"
    return f"{value:.{digits}f}" + ("" if low != low else f" [{low:.{digits}f}, {high:.{digits}f}]")


def summary(report: Report) -> list[str]:
    """Return the lines that the command prints."""
    what = report["subset"] or report["data"]
    lines = [f"{report['num_puzzles']:,} puzzles of the {report['split']} split of {what}", ""]
    lines += [
        "participation ratio of states at cells, over the segments of training",
        *_dimensions(report),
        "",
    ]
    for name, group in report["seeds"].items():
        both = ", ".join(
            f"{weights} {told(group[weights][FIRST_POPULATION], 2)}"
            for weights in ("trained", "initial", "change")
        )
        lines += [f"first / second over {group['num']} seeds ({name}): {both}", ""]
    lines += ["answers", *_answers(report)]
    return [*lines, *_not_told(report)]


def _dimensions(report: Report) -> list[str]:
    rows: list[tuple[str, ...]] = [("checkpoint", "weights", "first state", "second state", "first / second")]
    for one in report["checkpoints"]:
        for weights in ("trained", "initial"):
            found = one["dimensions"].get(weights)
            if found is None:
                continue
            cells = [f"{name} {told(found[name]['populations'][FIRST_POPULATION])}" for name in one["states"]]
            quotient = told(found["quotient"][FIRST_POPULATION], 2) if "quotient" in found else "-"
            rows.append((one["name"], weights, *[*cells, "-"][:2], quotient))
    return table(rows) if len(rows) > 1 else ["no checkpoint carries a state"]


def _answers(report: Report) -> list[str]:
    head = ("checkpoint", "segments", "right", "stops (learned)", "q: AUC", "q: error", "left a right answer")
    rows: list[tuple[str, ...]] = [(*head, "images agree")]
    for one in report["checkpoints"]:
        last = min(one["trained_segments"], one["segments"]) - 1
        share, left = one["accuracy"].get("share"), one["staying"].get("left_share")
        of_q = None if "why" in one["calibration"] else one["calibration"][last]
        agrees = one["agreement"].get("agreeing")
        rows.append(
            (
                one["name"],
                str(last + 1),
                interval_text(interval_of(share)) if share else "-",
                f"after {one['halting']['learned']['mean_segments']:.1f}",
                "-" if of_q is None or of_q["auc"] is None else f"{of_q['auc']:.3f}",
                "-" if of_q is None else f"{of_q['expected_error']:.3f}",
                interval_text(interval_of(left)) if left else "-",
                interval_text(interval_of(agrees)) if agrees else "-",
            )
        )
    return table(rows)


def _not_told(report: Report) -> list[str]:
    """Return what does not apply, and why."""
    return [
        f"{one['name']}: no {section}: {found['why']}"
        for one in report["checkpoints"]
        for section, found in one.items()
        if isinstance(found, Mapping) and "why" in found
    ]
