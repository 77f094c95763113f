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

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import InputError, exit_code
from launch.status.collect import Facts, facts_of, is_known_folder, known_folders


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.status",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="folder of a run, or with jobs")
    parser.add_argument("--all", type=Path, nargs="?", const=Path("runs"), metavar="ROOT",
                        help="all below a folder (runs)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for programs: a list of objects")
    options = parser.parse_args(arguments)
    if not options.runs and options.all is None:
        parser.error("give the folder of a run, or --all")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is known of each folder."""
    options = _parse(arguments)
    facts, problems = facts_of(_folders(options.runs, options.all))
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if options.json:
        print(json.dumps([_object(one) for one in facts], indent=1))
    elif len(facts) == 1:
        print(_block(facts[0]))
    elif facts:
        print(_table(facts))
    else:
        print(f"no runs in {options.all}")
    return 0


def _folders(runs: Sequence[Path], root: Path | None) -> list[Path]:
    for run in runs:
        if not run.is_dir():
            raise InputError(
                f"{run}: no such folder; give that of a run, or --all {run.parent} to see which there are."
            )
        if not is_known_folder(run):
            raise InputError(
                f"{run}: is not the folder of a run (no config.yaml in it) and has no jobs (no jobs/jobs.jsonl); "
                f"`--all {run}` looks below it."
            )
    if root is None:
        return list(runs)
    if not root.is_dir():
        raise InputError(f"--all {root}: no such folder; give one with runs in it.")
    return list(dict.fromkeys([*runs, *known_folders(root)]))


# For people


def _block(facts: Facts) -> str:
    """One run in some lines."""
    progress, row = facts.progress, facts.row
    job = f", job {facts.state.job_id}" if facts.state.job_id else ""
    lines: list[tuple[str, str]] = []
    if facts.parts:
        lines.append(("parts", facts.summary))
    if facts.kind == "train":
        saved = (
            f", saved up to {progress.saved_step:,}" if progress.saved_step is not None else ", nothing saved"
        )
        lines.append(("step", _step(facts, " of ") + saved))
    if row:
        accuracy = row.get("train/exact_accuracy")
        exact = "" if accuracy is None else f", exact accuracy {accuracy:.1%} in training"
        skipped = f", {facts.skipped_updates} updates skipped" if facts.skipped_updates else ""
        lines.append(("loss", _loss(facts) + exact + skipped))
    if facts.scores:
        scores = [
            f"{key} {facts.scores[f'eval/{key}']:.2%}"
            for key in ("exact_accuracy", "task/pass@1", "task/pass@2")
            if isinstance(facts.scores.get(f"eval/{key}"), int | float)
        ]
        lines.append(("evaluation", f"at step {facts.scores['step']:,}: {', '.join(scores)}"))
    if facts.row_age_s is not None:
        speed = f"{_speed(facts)} examples/s, " if row else ""
        what = "last row of metrics" if row else "started"
        mark = " - stalled? (an evaluation can take long too)" if facts.is_stalled else ""
        lines.append(("speed", f"{speed}{what} {_duration(facts.row_age_s)} ago{mark}"))
    if facts.eta_s is not None:
        lines.append(("left", _duration(facts.eta_s)))
    if facts.restarts:
        lines.append(("restarts", str(facts.restarts)))
    if facts.last_error:
        lines.append(("last error", facts.last_error))
    if facts.log and facts.state.name != "finished":
        lines.append(("log", str(facts.log)))
    if facts.next:
        lines.append(("next", facts.next))
    lines += [("note", note) for note in facts.notes]
    return "\n".join(
        [f"{facts.folder}: {facts.state}{job}", *(f"  {name:<11}{text}" for name, text in lines)]
    )


_COLUMNS = ("run", "state", "step", "loss", "examples/s", "left", "restarts", "")
_ALIGNED_RIGHT = {"loss", "examples/s", "left", "restarts"}


def _table(facts: Sequence[Facts]) -> str:
    """A line for each, as long as the terminal is wide."""
    rows = [_COLUMNS, *(_cells(one) for one in facts)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(width) if name in _ALIGNED_RIGHT else cell.ljust(width)
            for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    if not sys.stdout.isatty():
        return "\n".join(lines)
    width = shutil.get_terminal_size().columns
    return "\n".join(line if len(line) <= width else f"{line[: width - 1]}…" for line in lines)


def _cells(facts: Facts) -> tuple[str, ...]:
    remarks = [
        facts.summary,
        f"stalled? no row for {_duration(facts.row_age_s)}" if facts.is_stalled and facts.row_age_s else "",
        facts.last_error or "",
        *facts.notes,
    ]
    is_running = facts.state.name == "running"
    return (
        str(facts.folder),
        str(facts.state),
        _step(facts, "/") if facts.kind == "train" else "",
        _loss(facts),
        _speed(facts) if is_running else "",
        "" if facts.eta_s is None else _duration(facts.eta_s),
        str(facts.restarts or ""),
        "; ".join(remark.splitlines()[0] for remark in remarks if remark),
    )


def _step(facts: Facts, of: str) -> str:
    progress = facts.progress
    step = progress.step if progress.step is not None else progress.saved_step or 0
    if progress.last_step is None:
        return f"{step:,}{of}unknown"
    return f"{step:,}{of}{progress.last_step:,} ({step / max(1, progress.last_step):.0%})"


def _loss(facts: Facts) -> str:
    if not facts.row:
        return ""
    loss = facts.row.get("train/loss")
    return "not finite" if loss is None else f"{loss:.4f}"


def _speed(facts: Facts) -> str:
    speed = facts.row.get("examples_per_s")
    return "" if speed is None else f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _duration(seconds: float) -> str:
    """In two units at most, such as `3 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


# For programs


def _object(facts: Facts) -> dict[str, Any]:
    progress = facts.progress
    return {
        "folder": str(facts.folder),
        "kind": facts.kind,
        "state": facts.state.name,
        "detail": facts.state.detail,
        "job_id": facts.state.job_id,
        "exit_code": facts.state.exit_code,
        "step": progress.step,
        "saved_step": progress.saved_step,
        "last_step": progress.last_step,
        "row": dict(facts.row) or None,
        "last_evaluation": dict(facts.scores) or None,
        "skipped_updates": facts.skipped_updates,
        "row_age_s": facts.row_age_s,
        "is_stalled": facts.is_stalled,
        "eta_s": facts.eta_s,
        "restarts": facts.restarts,
        "parts": {part.name or "last": str(part.state) for part in facts.parts},
        "last_error": facts.last_error,
        "log": None if facts.log is None else str(facts.log),
        "next": facts.next,
        "notes": facts.notes,
    }


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has seen enough
    sys.exit(exit_code(main))
