"""Say how runs are doing: state, step, loss, speed, time left, restarts, last error, what to do next.

    python -m launch.status runs/arc1
    python -m launch.status --all                # every run, dataset and evaluation with jobs below runs/
    python -m launch.status --all data --json
    watch -n 30 python -m launch.status --all

From the files of the folders, and from squeue where there is Slurm. States:

    queued                   waits for Slurm, which says why
    running                  `stalled?` if the last row of metrics is much older than their usual distance
    going back to the queue  saved its state at a time limit or a preemption; Slurm starts it again
    finished
    interrupted              stopped with its state saved; nobody goes on
    failed                   ended with another exit code
    vanished                 ended without a word: killed, or its node was lost
    not started

The time left is from the last speed, without evaluations. Exit codes: 0, or 2 if a folder is not one of a run.
"""

import json
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.paths import path_argument
from data_pipeline.base.progress import duration
from data_pipeline.base.table import table
from launch.status.collect import RunSummary, is_known_folder, known_folders, summaries_of
from launch.status.run_state import summary as summary_of_parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is known of each folder."""
    parser = command_parser("launch.status", __doc__)
    add = parser.add_argument
    add("runs", type=path_argument, nargs="*", metavar="RUN", help="folder of a run, or with jobs")
    add(
        "--all",
        type=path_argument,
        nargs="?",
        const=Path("runs"),
        metavar="ROOT",
        help="all below a folder (runs)",
    )
    add("--json", action="store_true", help="for programs: a list of objects")
    options = parser.parse_args(arguments)
    if not options.runs and options.all is None:
        parser.error("give the folder of a run, or --all")
    summaries, problems = summaries_of(_folders(options.runs, options.all))
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if options.json:
        print(json.dumps([_object(summary) for summary in summaries], indent=1, default=str))
    elif len(summaries) == 1:
        [summary] = summaries
        job = f", job {summary.state.job_id}" if summary.state.job_id else ""
        print(f"{summary.folder}: {summary.state}{job}")
        print(*(f"  {name:<11}{text}" for name, text in _lines(summary) if text), sep="\n")
    elif summaries:
        print(_table(summaries))
    elif not problems:
        print(f"no runs in {options.all}")
    return 0


def _folders(runs: Sequence[Path], root: Path | None) -> list[Path]:
    for run in runs:
        if not run.is_dir():
            raise InputError(f"{run}: no such folder; `--all {run.parent}` shows which runs there are.")
        if not is_known_folder(run):
            reason = "is not the folder of a run (no config.yaml) and has no jobs (no jobs/jobs.jsonl)"
            raise InputError(f"{run}: {reason}; `--all {run}` looks below it.")
    if root is not None and not root.is_dir():
        raise InputError(f"--all {root}: no such folder; give one with runs in it.")
    return list(dict.fromkeys([*runs, *(known_folders(root) if root else [])]))


def _lines(summary: RunSummary) -> Iterator[tuple[str, str]]:
    """Yield what to say of a run, line by line; those without a text are left out."""
    saved, row = summary.progress.saved_step, summary.progress.row or {}
    yield "parts", summary_of_parts(summary.parts)
    if step := _step(summary, " of "):
        yield "step", f"{step}, {'nothing saved' if saved is None else f'saved up to {saved:,}'}"
    if row:
        accuracy = row.get("train/exact_accuracy")
        exact = "" if accuracy is None else f", exact accuracy {accuracy:.1%} in training"
        num_skipped = summary.progress.skipped_updates
        skipped = f", {num_skipped} updates skipped" if num_skipped else ""
        yield "loss", f"{_loss(summary)}{exact}{skipped}"
    if scores := summary.progress.last_evaluation:
        values = {key: scores.get(f"eval/{key}") for key in ("exact_accuracy", "task/pass@1", "task/pass@2")}
        shown = [f"{key} {value:.2%}" for key, value in values.items() if value is not None]
        yield "evaluation", f"at step {scores['step']:,}: {', '.join(shown)}"
    if summary.row_age_s is not None:
        what = f"{_speed(summary)} examples/s, last row of metrics" if row else "started"
        mark = " - stalled? (an evaluation can take long too)" if summary.is_stalled else ""
        yield "speed", f"{what} {_duration(summary.row_age_s)} ago{mark}"
    yield "left", _duration(summary.eta_s)
    yield "restarts", str(summary.restarts or "")
    yield "last error", summary.last_error or ""
    yield "log", str(summary.log or "") if summary.state.name != "finished" else ""
    yield "next", summary.next or ""
    yield from (("note", note) for note in summary.notes)


def _table(summaries: Sequence[RunSummary]) -> str:
    """Return a line for each, as long as the terminal is wide."""
    columns = ("run", "state", "step", "loss", "examples/s", "left", "restarts", "")
    lines = table([columns, *map(_cells, summaries)], align="<<<>>>><")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return "\n".join(line if len(line) <= width else f"{line[: width - 1]}…" for line in lines)


def _cells(summary: RunSummary) -> tuple[str, ...]:
    stalled = f"stalled? no row for {_duration(summary.row_age_s)}" if summary.is_stalled else ""
    remarks = [summary_of_parts(summary.parts), stalled, summary.last_error, *summary.notes]
    return (
        str(summary.folder),
        str(summary.state),
        _step(summary, "/"),
        _loss(summary),
        _speed(summary) if summary.state.name == "running" else "",
        _duration(summary.eta_s),
        str(summary.restarts or ""),
        "; ".join(remark.splitlines()[0] for remark in remarks if remark),
    )


def _step(summary: RunSummary, of: str) -> str:
    progress = summary.progress
    if summary.kind != "train":
        return ""
    step = progress.step if progress.step is not None else progress.saved_step or 0
    if progress.last_step is None:
        return f"{step:,}{of}unknown"
    return f"{step:,}{of}{progress.last_step:,} ({step / max(1, progress.last_step):.0%})"


def _loss(summary: RunSummary) -> str:
    if summary.progress.row is None:
        return ""
    loss = summary.progress.row.get("train/loss")
    return "not finite" if loss is None else f"{loss:.4f}"


def _speed(summary: RunSummary) -> str:
    speed = (summary.progress.row or {}).get("examples_per_s")
    return "" if speed is None else f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _object(summary: RunSummary) -> dict[str, Any]:
    values = {**vars(summary), **summary.progress._asdict()}
    values.update(zip(("state", "detail", "job_id", "exit_code"), summary.state, strict=True))
    values["parts"] = {part.name or "last": str(part.state) for part in summary.parts}
    for key in ("progress", "row_time", "time", "lock_file", "holder"):
        del values[key]
    return values


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has seen enough
    sys.exit(exit_code(main))
