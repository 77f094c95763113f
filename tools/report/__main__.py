"""Show what runs did: one HTML file with scores, curves, settings, and every puzzle with its answers.

A RUN is a run folder, of whose predictions those of the last step are shown, a folder of predictions, or *.npz files,
which together are one run. Several runs of the same kind of puzzles stand side by side, puzzle by puzzle. The file
needs no network, opens from disk and prints.

Predictions that were made with --every-segment can be played, segment by segment. Where a run has a folder analysis/,
which tools.analyze makes, its pictures are shown. Of many puzzles, scores are of all of them; those to look at are
chosen evenly among what is solved, close and unsolved.

examples:
  python -m tools.report runs/demo --out runs/demo/report.html
  python -m tools.report runs/demo --out report.html --title "Small tasks" --subsets configs/demo_subsets.json
  python -m tools.report runs/sudoku_hrm runs/sudoku_trm --out compared.html --price-per-hour 2.5
  python -m tools.report runs/arc1/predictions/step_5000 runs/arc1/predictions/step_9000 --out compared.html
  python -m tools.report preds.0.npz preds.1.npz --data data/arc1 --out report.html --metrics metrics.jsonl
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.files import replace_file
from data_pipeline.base.paths import path_argument
from data_pipeline.base.revision import git_revision
from data_pipeline.base.sizes import size_text
from tools.report.answers import Answers
from tools.report.column import Column, choose, puzzles
from tools.report.curves import read_curves
from tools.report.facts import facts, figures, settings, warnings
from tools.report.grids import character, tokens_of
from tools.report.page import render
from tools.report.payload import Report, Run
from tools.report.runs import Run as FoundRun
from tools.report.runs import find_runs, refuse_output
from tools.report.votes import TaskVotes
from tools.report.words import words
from tools.results.run_folder import commit_text
from tools.vote import add_vote_options

MOST_PUZZLES = 400


def make_report(args: argparse.Namespace, runs: Sequence[FoundRun]) -> Report:
    """Return what the page shows. Raise InputError for what cannot be read, or fits no report."""
    parts = [_run(run, args) for run in runs]  # first, as it is soon read
    columns = _columns(runs, args)
    ids, num = choose(columns, args.max_puzzles)
    kind = runs[0].kind
    canvases = {run.info.canvas if run.info else 1 for run in runs}
    look = kind.look(max(canvases))
    return Report(
        title=args.title or f"{', '.join(run.name for run in runs)} ({kind.name})",
        kind=kind.name,
        made=_made(),
        tokens=tokens_of(kind, look),
        box=look.box if len(canvases) == 1 else None,
        blank=None if look.blank is None else character(look.blank),
        words=words(kind, args.by),
        runs=[
            part.model_copy(update={"scores": column.scores, "warnings": [*part.warnings, *column.warnings]})
            for part, column in zip(parts, columns, strict=True)
        ],
        puzzles=puzzles(columns, ids),
        num_puzzles=num,
        notes=_notes(runs, len(ids), num, is_scored=any(column.scores for column in columns)),
    )


def _run(run: FoundRun, args: argparse.Namespace) -> Run:
    has_metrics = run.metrics is not None and (args.metrics is not None or run.metrics.exists())
    return Run(
        name=run.name,
        facts=facts(run, args.price_per_hour),
        settings=settings(run),
        scores=[],
        curves=read_curves(run.metrics) if has_metrics and run.metrics is not None else [],
        figures=figures(run),
        warnings=warnings(run),
    )


def _columns(runs: Sequence[FoundRun], args: argparse.Namespace) -> list[Column]:
    if runs[0].kind.scorer != "votes":
        _refuse_options_of_votes(runs[0], args)
        return [Answers(run) for run in runs]
    seen: dict[str, str] = {}
    return [TaskVotes(run, args, seen) for run in runs]


def _refuse_options_of_votes(run: FoundRun, args: argparse.Namespace) -> None:
    for name in ("subsets", "identifiers", "tasks"):
        if getattr(args, name) is not None:
            raise InputError(
                f"--{name} {getattr(args, name)}: {run.given} is of {run.kind.name} puzzles, which are not voted on "
                "and have no tasks; leave it out."
            )
    if args.by != "count":
        raise InputError(
            f"--by {args.by}: {run.given} is of {run.kind.name} puzzles, which are not voted on; leave it out."
        )


def _notes(runs: Sequence[FoundRun], num_shown: int, num: int, *, is_scored: bool) -> list[str]:
    notes: list[str] = []
    if not is_scored:
        notes.append("There are no scores: the true answers of all puzzles are hidden.")
    if num_shown < num:
        notes.append(
            f"{num_shown:,} of {num:,} puzzles are shown: equally many of each status, of several runs of each "
            "combination of theirs, or all where there are fewer. So they are no sample"
            + ("; scores are of all puzzles." if is_scored else ".")
        )
    datasets = {run.info.sha256 if run.info else str(run.data) for run in runs}
    if len(datasets) > 1:
        notes.append(
            "The runs are evaluated on different datasets, so their scores are of different puzzles; a puzzle that a "
            "run does not have shows no answer of it."
        )
    return notes


def _made() -> str:
    try:
        release = version("hrm-dist")
    except PackageNotFoundError:
        release = "unknown"
    commit = git_revision()
    source = f"hrm-dist {release}" + (f", {commit_text(commit)}" if commit else "")
    return f"{time.strftime('%Y-%m-%d %H:%M')}, {source}"


def gather(args: argparse.Namespace) -> Report:
    """Return what the page shows of the runs that the command line names. Raise InputError."""
    runs = find_runs(args)
    refuse_output(args.out, runs, args)
    return make_report(args, runs)


def run(args: argparse.Namespace) -> int:
    """Gather what the runs say, and write the page."""
    report = gather(args)
    page = render(report).encode()
    replace_file(args.out, page)
    for one in report.runs:
        for text in one.warnings:
            print(f"warning: {one.name}: {text}", file=sys.stderr)
    shown = len(report.puzzles)
    of = f"{shown:,}" if shown == report.num_puzzles else f"{shown:,} of {report.num_puzzles:,}"
    print(f"report: {args.out} ({size_text(len(page))}, {of} puzzles)")
    return 0


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no price: a number from 0")
    return value


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = command_parser("tools.report", __doc__)
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=path_argument,
        metavar="RUN",
        help="a run folder, a folder of predictions, or *.npz files",
    )
    add("--out", type=path_argument, required=True, metavar="F", help="the HTML file to write")
    add("--title", help="heading of the page (the names of the runs)")
    add("--max-puzzles", type=whole_number(1), default=MOST_PUZZLES, metavar="N",
        help="show so many puzzles at most (%(default)s)")  # fmt: skip
    add("--price-per-hour", type=_price, metavar="X", help="of one device: shows what the training cost")
    add(
        "--metrics",
        type=path_argument,
        metavar="F",
        help="metrics.jsonl of predictions outside of a run folder",
    )
    add_vote_options(parser, "the dataset (that of the run's training)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return exit_code(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
