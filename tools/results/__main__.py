"""Make a page of results from run folders and sweeps: what was trained, where, how long, and the scores with intervals.

    python -m tools.results runs/demo runs/arc1 --out docs/RESULTS.md
    python -m tools.results runs/sweeps/outer_loops runs/sweeps/cycles --out docs/RESULTS.md

All run folders make one table. Runs of one configuration that differ by their seed alone are a row of it. Each
folder of a sweep (tools.sweep) makes a table of its own, with its plot. ARC tasks are scored by what tools.vote has
written into the run folder (--scores RUN/scores.json), with each subset of tasks that it was given; without that, and
everything else, by the last evaluation of the training.

The page keeps what was written by hand: a table is put where one of its name stands, between two comments, or else at
the end of the page. What a folder does not say is `unknown` there, and is told at the end. Exit codes: 0 done, 2 bad
input.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code, unreadable
from data_pipeline.base.files import replace_file
from data_pipeline.base.paths import path_argument
from tools.results import sweep_folder
from tools.results.page import NEW_PAGE, table_text, with_blocks
from tools.results.run_folder import (
    Row,
    RunFolder,
    architecture_text,
    command_text,
    facts,
    lacking,
    lacking_scores,
    read_run,
    score_cell,
)
from tools.results.sweep_folder import SweepFolder, notes_of, read_sweep, sweep_text

RUNS = "runs"
"""Name of the table of run folders."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = command_parser("tools.results", __doc__)
    add = parser.add_argument
    add("folders", nargs="+", type=path_argument, metavar="RUN_OR_SWEEP", help="folders of runs and sweeps")
    add("--out", type=path_argument, required=True, metavar="PAGE.md", help="the page, made or changed")
    return exit_code(lambda: run(parser.parse_args(arguments)))


def run(options: argparse.Namespace) -> int:
    """Read everything, then write the plots and the page."""
    out: Path = options.out
    runs: list[RunFolder] = []
    sweeps: dict[str, SweepFolder] = {}
    for folder in dict.fromkeys(options.folders):
        if not (folder / sweep_folder.FILE).exists():
            runs.append(read_run(folder))
            continue
        sweep = read_sweep(folder)
        if sweep.name in (RUNS, *sweeps):
            raise InputError(
                f"{folder}: there is another table of the name {sweep.name}; rename the sweep's file."
            )
        sweeps[sweep.name] = sweep
    images = {plot: _image(out, sweep, plot) for sweep in sweeps.values() for plot in sweep.plots}
    blocks = {RUNS: table_text(run_rows(runs))} if runs else {}
    for name, sweep in sweeps.items():
        links = [f"![{name}]({os.path.relpath(images[plot], out.parent)})" for plot in sweep.plots]
        blocks[name] = "\n\n".join([sweep_text(sweep), *links])
    page = with_blocks(_read_page(out), blocks, str(out))
    for plot, image in images.items():
        replace_file(image, plot.read_bytes())
    replace_file(out, page.encode())
    notes = [note for run in runs for note in [*lacking(run), *lacking_scores(run)]]
    notes += [note for sweep in sweeps.values() for note in notes_of(sweep)]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{out}: {', '.join(blocks)}")
    return 0


def run_rows(runs: Sequence[RunFolder]) -> list[Row]:
    """Return a row for all runs that differ by their seed alone, in the order in which they are given."""
    groups: dict[tuple[str, int], list[RunFolder]] = {}
    before: Counter[tuple[str, int]] = Counter()
    for run in runs:
        same = run.key, run.config.seed
        groups.setdefault((run.key, before[same]), []).append(
            run
        )  # a seed that comes again tells nothing of others
        before[same] += 1
    rows: list[Row] = []
    for group in groups.values():
        known = facts(group, {"architecture": architecture_text(group[0].config.arch)})
        commit = known.pop("commit")
        rows.append({**known, "score": score_cell(group), "command": command_text(group), "commit": commit})
    return rows


def _image(out: Path, sweep: SweepFolder, plot: Path) -> Path:
    """Return where a plot goes that the page shows."""
    return out.parent / "images" / "results" / f"{sweep.name}{plot.suffix}"


def _read_page(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return NEW_PAGE
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8 ({error}); give a Markdown page.") from error
    except OSError as error:
        raise unreadable(path, error) from error


if __name__ == "__main__":
    sys.exit(main())
