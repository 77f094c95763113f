"""speedrun.md and curve.svg: the record for people. All is made from the record alone."""

import io
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.base.errors import InputError
from data_pipeline.base.extras import require
from data_pipeline.base.files import replace_file
from data_pipeline.base.matplotlib_settings import plain_matplotlib
from data_pipeline.base.progress import duration, speed_text
from hrm_dist.evaluation.intervals import Interval, interval_text, share_interval
from tools.results.page import table_text
from tools.speedrun.puzzles import DO_NOT_COMPARE
from tools.speedrun.record import Final, Machine, Point, Record

FILE, CURVE = "speedrun.md", "curve.svg"


def write(run: Path, record: Record) -> None:
    """Write both into the run folder; without matplotlib the page alone."""
    try:
        require("report", CURVE)
    except InputError:
        picture = None
    else:
        picture = draw(record)
        replace_file(run / CURVE, picture)
    replace_file(run / FILE, page_text(record, has_curve=picture is not None).encode())


def verdict(record: Record) -> str:
    """Return in one line whether the target was reached, and when."""
    target, reached = f"{record.target:g} %", record.reached
    if reached is not None:
        return f"{target} of {reached.examples:,} held-out puzzles reached in {clock_text(reached.seconds)}"
    best = max(record.curve, key=lambda point: point.exact_accuracy, default=None)
    found = "no evaluation" if best is None else f"at best {_point_text(best)} at step {best.step:,}"
    return f"{target} not reached in {clock_text(record.clock_s)}: {found}"


def clock_text(seconds: float) -> str:
    """Return a time on the clock, such as 1:02:03 or 4:05."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def page_text(record: Record, *, has_curve: bool) -> str:
    """Return the page as Markdown."""
    parts = [
        f"# Speedrun: {verdict(record)}",
        _provisos(record),
        _facts(record),
        "## Curve",
        f"![Share of puzzles solved over the clock]({CURVE})" if has_curve else "",
        table_text(_curve_rows(record)) if record.curve else "No evaluation.",
        "## The weights of the end",
        _finals(record.finals),
        "## Commands",
        _commands(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _provisos(record: Record) -> str:
    """Return what a reader should know before the numbers."""
    reached = record.reached
    num = len(record.starts)
    lines = [
        f"The clock has counted {num} training process{'es' * (num != 1)}, from start to end: imports, compilation, "
        "evaluations, checkpoints, and steps made again. Building the data and the last evaluations are not on it."
    ]
    if reached is not None:
        same = "the same held-out puzzles"
        if any(final.examples > reached.examples for final in record.finals):
            same = f"all held-out puzzles, the {reached.examples:,} that were watched among them"
        lines.append(
            "It stopped at the first evaluation at the target or above, from one start, in all segments. The first of "
            f"several to pass a line is a little lucky, and the evaluations below are of {same}."
        )
        if any(final.step != reached.step for final in record.finals):
            lines.append(
                f"**The weights of step {reached.step:,} are not kept any more**, as the run went on to a higher "
                "target then; the evaluations below are of the best that it has."
            )
    if record.asked.data != "configuration":
        of = "CSV files of the user" if record.asked.data == "csv" else "new puzzles"
        lines.append(f"**The puzzles are {of}, not those of {record.asked.config}**: {DO_NOT_COMPARE}.")
    revisions = [one.git_revision for one in record.machines]
    if any(revision is None or revision.endswith("-dirty") for revision in revisions):
        lines.append(
            "**The code is not that of a commit**: its working tree had changes, or is outside of git."
        )
    return "\n\n".join(lines)


def _facts(record: Record) -> str:
    rows: dict[str, str] = {
        "target": f"{record.target:g} % of the watched puzzles in every cell, from one start",
        "time to target": clock_text(record.reached.seconds) if record.reached else "not reached",
        "steps to target": f"{record.reached.step:,}" if record.reached else f"not in {record.steps:,}",
        "clock": _clock(record),
        "starts": "; ".join(
            f"{start.began}: from step {start.from_step:,}, {clock_text(start.seconds)}, "
            f"{start.end or 'killed or failed'}"
            for start in record.starts
        ),
        "not on the clock": f"building the data {duration(record.seconds.get('build', 0.0))}, evaluating at the end "
        f"{duration(record.seconds.get('evaluate', 0.0))}",
        "speed": _speed(record),
        "model": f"{record.num_parameters:,} parameters" if record.num_parameters else "",
        "puzzles": _puzzles(record),
        "hardware": "; ".join(record.hardware),
        **_machines(record.machines),
        "configuration": f"{record.asked.config}, settings {record.asked.settings_sha256()[:12]}",
        "seed": str(record.asked.settings.get("seed")),
    }
    return table_text([{"": f"**{name}**", "value": value} for name, value in rows.items() if value])


def _clock(record: Record) -> str:
    """Return what is on it, and which share is known to be what."""
    parts = [f"{clock_text(record.clock_s)} in all"]
    first = [start.until_first_row_s for start in record.starts]
    known = [seconds for seconds in first if seconds is not None]
    if known:
        parts.append(
            f"{duration(sum(known))} of it until the first row of metrics (imports, loading, compilation)"
        )
    if record.steps_s:
        parts.append(f"{duration(record.steps_s)} of training steps")
    return ", ".join(parts)


def _speed(record: Record) -> str:
    rate = record.examples_per_s
    if rate is None:
        return ""
    return (
        f"{speed_text(rate)} examples/s, {speed_text(rate * record.cells)} tokens/s (median, training alone; batch "
        f"{record.batch_size})"
    )


def _puzzles(record: Record) -> str:
    dataset = record.dataset
    if dataset is None:
        return ""
    text = f"{dataset.train_groups:,} to train on, {dataset.test_groups:,} held out"
    if dataset.subsets is not None:
        train, test = dataset.subsets.train, dataset.subsets.test
        name = train.name or dataset.kind
        text += f", {name}@{train.sha256[:12]}+{test.sha256[:12]}"
    return f"{text}, dataset {dataset.sha256[:12]}, augmentations {dataset.options.get('num_aug')}"


def _machines(machines: Sequence[Machine]) -> dict[str, str]:
    texts = {
        "machine": [one.name for one in machines],
        "driver": [one.driver or "" for one in machines],
        "commit": [one.git_revision or "unknown" for one in machines],
        "versions": [", ".join(f"{name} {of}" for name, of in one.versions.items()) for one in machines],
    }
    return {name: "; ".join(dict.fromkeys(filter(None, found))) for name, found in texts.items()}


def _curve_rows(record: Record) -> list[dict[str, str]]:
    return [
        {
            "clock": clock_text(point.seconds),
            "seconds": f"{point.seconds:.0f}",
            "step": f"{point.step:,}",
            "solved": _point_text(point),
        }
        for point in record.curve
    ]


def _point_text(point: Point) -> str:
    return interval_text(share_interval(point.num_right, point.examples))


def _finals(finals: Sequence[Final]) -> str:
    rows = [
        {
            "evaluation": final.title,
            "solved": interval_text(Interval(final.exact_accuracy, final.low, final.high)),
            "puzzles": f"{final.examples:,}",
            "cost": "; ".join(final.said),
        }
        for final in finals
    ]
    step = f"Of step {finals[0].step:,}, in brackets Wilson's interval at 95 %." if finals else ""
    return f"{step}\n\n{table_text(rows)}" if rows else "Not evaluated."


def _commands(record: Record) -> str:
    commands = [record.command, record.train_command, *(final.command for final in record.finals)]
    return "```\n" + "\n".join(filter(None, commands)) + "\n```"


@plain_matplotlib()
def draw(record: Record) -> bytes:
    """Return the curve as an SVG, the same bytes for the same record."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "speedrun", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes = figure.subplots()
        minutes = [point.seconds / 60 for point in record.curve]
        shares = [share_interval(point.num_right, point.examples) for point in record.curve]
        if shares:
            axes.fill_between(
                minutes, [100 * s.low for s in shares], [100 * s.high for s in shares],
                color="#0072b2", alpha=0.2, linewidth=0,
            )  # fmt: skip
        axes.plot(
            minutes, [100 * s.value for s in shares], "o-", color="#0072b2", markersize=4, label="one start"
        )
        axes.axhline(record.target, color="#606060", linestyle="--", linewidth=1, label="target")
        axes.set(xlabel="minutes on the clock", ylabel="puzzles solved, %", ylim=(0, 100), xlim=(0, None))
        axes.grid(color="#e0e0e0", linewidth=0.6)
        axes.legend(loc="lower right", frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
