"""Compare settings over several seeds: train every combination, and say what the difference is, with intervals.

    python -m tools.sweep configs/sweeps/outer_loops.yaml
    python -m tools.sweep sweep.yaml --jobs 2            # so many runs at a time; each gets its share of the cores
    python -m tools.sweep sweep.yaml --dry-run           # what there is to train, and how long it will take
    python -m tools.sweep sweep.yaml --table             # table and plot of what is there, training nothing
    python -m tools.sweep sweep.yaml --part 0/4          # every fourth run, as in jobs of an array

A sweep file names a configuration, settings over it, and seeds:

    config: configs/debug.yaml
    set: {max_steps: 50}                    # over the configuration, in all settings; keys as on the command line
    settings:                               # by name, what is over that
      baseline: {}
      no ACT: {arch.halt_max_steps: 1}
    matrix: {lr: [1e-4, 1e-3]}              # every combination of values, and each with every setting
    baseline: baseline, lr=1e-4             # what the others are compared with (the first setting)
    seeds: [0, 1, 2]
    score: eval/exact_accuracy              # (the one by which checkpoints are compared)
    at: last                                # the last step's score, or that of the `best` evaluation
    out: runs/sweeps/NAME                   # results.json, table.md, plot.png (runs/sweeps/, after the file's name)
    pool: runs/sweeps/pool                  # the run folders

Everything is checked before anything starts. Datasets that are missing are built first, where `dataset` says how.
Runs are shared by all sweeps of a pool: what has been trained, for this sweep or another, is not trained again.
Ctrl-C lets all runs save; the same command resumes. A run that fails does not stop the others.

Exit codes: 0 done, but for runs that another process trains, which are named; 2 bad input; 75 stopped by a signal (the
same command resumes); 1 a run has failed.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from functools import cache

from tqdm.contrib.logging import logging_redirect_tqdm

from data_pipeline.base import locks, signals
from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import EXIT_INTERRUPTED, InputError, exit_code
from data_pipeline.base.extras import require
from data_pipeline.base.files import make_folder
from data_pipeline.base.parallel import Part, parse_part
from data_pipeline.base.paths import path_argument
from hrm_dist.train import build_if_missing
from tools.sweep import plot, pool, results
from tools.sweep.cost import dry_run, operations_per_step
from tools.sweep.running import Slots, Training
from tools.sweep.spec import Sweep, is_built, load_sweep, unique

logger = logging.getLogger(__name__)

# Another sweep that builds a dataset of this pool.
_BUILD_WAIT_S = 24 * 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the sweep, train what is missing, and say what came out."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    sweep = load_sweep(options.sweep)
    if options.dry_run:
        print(dry_run(sweep, options.jobs))
        return 0
    if options.table:
        return _show(sweep)
    try:
        _build_data(sweep)
    except KeyboardInterrupt:
        print("interrupted while data was built; the same command resumes it", file=sys.stderr)
        return EXIT_INTERRUPTED
    return _train(sweep, options.part, options.jobs)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line; end the process where it is wrong."""
    parser = command_parser("tools.sweep", __doc__)
    add = parser.add_argument
    add("sweep", type=path_argument, metavar="SWEEP.yaml")
    jobs_help = "runs at a time (one per core, or per GPU where runs may use them)"
    add("--jobs", type=whole_number(1), metavar="N", help=jobs_help)
    add(
        "--part",
        type=parse_part,
        default=Part(),
        metavar="I/N",
        help="train one of N parts of the runs, I from 0",
    )
    add(
        "--dry-run", action="store_true", help="say what there is to train, and what it will cost; do nothing"
    )
    add("--table", action="store_true", help="only make table and plot of the runs that are done")
    return parser.parse_args(arguments)


def _build_data(sweep: Sweep) -> None:
    """Build the datasets that are missing, each once: other sweeps of the pool wait."""
    configs = {setting.config.data_path: setting.config for setting in sweep.settings}
    missing = [config for config in configs.values() if not is_built(config)]
    if not missing:
        return
    handlers = signals.catch(signal.default_int_handler)
    try:
        make_folder(sweep.pool)
        with locks.hold(sweep.pool / ".building", _BUILD_WAIT_S, _say_who_builds):
            for config in missing:
                build_if_missing(config)
    finally:
        signals.restore(handlers)


def _say_who_builds(owner: str) -> None:
    logger.info("another sweep builds data (%s); waiting for its end", owner)


def _train(sweep: Sweep, part: Part, jobs: int | None) -> int:
    """Train the runs of a part that are not done; return the exit code."""
    runs = unique(part.share(sweep.runs))
    missing = [run for run in runs if not pool.find(sweep.pool, run).is_done]
    logger.info("%d of %d runs are done%s", len(runs) - len(missing), len(runs), _of_part(part))
    slots = Slots.of_this_machine(missing, jobs)
    with logging_redirect_tqdm():  # lines go above the bar
        training = Training(
            sweep, missing, slots, lambda run: operations_per_step(run.config), lambda: _write(sweep)
        )
        outcome = training.finish()
    code = _show(sweep)
    for name, folder in outcome.elsewhere.items():
        print(f"running elsewhere: {name}, in {folder}", file=sys.stderr)
    for name, error in outcome.failed.items():
        print(f"error: {name} failed: {error.removeprefix('error: ')}", file=sys.stderr)
    if outcome.was_stopped:
        print("stopped, with all states saved; the same command resumes", file=sys.stderr)
    return outcome.exit_code or code


def _of_part(part: Part) -> str:
    return "" if part.count == 1 else f" (of part {part.number} of {part.count})"


def _show(sweep: Sweep) -> int:
    """Write and print what is known."""
    found = _write(sweep)
    print(results.as_table(found), flush=True)
    return 1 if found.problems else 0


def _write(sweep: Sweep) -> results.Results:
    """Write results.json, table.md and plot.png of what is known, and return it."""
    found = results.collect(sweep)
    results.write(found)
    if _can_plot():
        plot.draw(found)
    return found


@cache
def _can_plot() -> bool:
    try:
        require("report", "plot.png")
    except InputError as error:
        logger.warning("there is no plot: %s", error)
        return False
    return True


if __name__ == "__main__":
    sys.exit(exit_code(main))
