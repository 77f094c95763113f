"""See what a model does between its input and its answer: pictures, and numbers with intervals.

    python -m tools.analyze runs/sudoku_6x6/checkpoints/latest --data data/sudoku-6x6
    python -m tools.analyze runs/demo/checkpoints/best --data data/demo --split train --puzzles 100
    python -m tools.analyze runs/hrm/checkpoints/latest runs/looped/checkpoints/latest --data data/sudoku-6x6 --out out

Puzzles of the split are drawn and run for --max-segments, four times those of training where it is not given. OUT
(default: RUN/analysis) gets analysis.json, which docs/analysis.md describes, and these pictures:

  dimensions     participation ratio of each state, of the trained and of the initial weights; over the number of
                 trajectories; over the updates (figure 8 of HRM's paper, arXiv 2506.21734)
  paths          a few puzzles' states in the plane of two principal components
  residuals      what each update changes (figure 3 of the paper); of several checkpoints side by side
  halting        when the learned rule would stop, and when an answer is first repeated
  calibration    whether q says how likely an answer is right: Brier score, AUC, expected calibration error
  staying        what becomes right and wrong with each segment, also beyond those of training
  agreement      whether symmetric images are answered alike, and whether what is answered alike is right
  difficulty     accuracy by givens of a Sudoku, length of a maze's path, side of an ARC grid

Several checkpoints, such as seeds or architectures, are of the same dataset and share each picture; of those that
differ in their seed alone, the mean is told too. The weights are the EMA where the run kept one. An architecture with
one state has no second to compare it with, and one without a state has neither dimensions, paths nor residuals.

A run whose model is small takes a minute on a CPU. Exit codes: 0 done, 2 bad input, 75 interrupted, 1 anything else.
"""

import argparse
import sys
from collections.abc import Sequence

from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.extras import require
from data_pipeline.base.paths import path_argument


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line. Raises InputError, or ends the process where it is wrong."""
    parser = command_parser("tools.analyze", __doc__)
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="+",
        type=path_argument,
        metavar="CHECKPOINT",
        help="folders such as .../checkpoints/latest",
    )
    add("--data", type=path_argument, required=True, metavar="DIR", help="the dataset of the training")
    add("--split", choices=("test", "train"), default="test", help="where puzzles are from (%(default)s)")
    add("--out", type=path_argument, metavar="DIR", help="folder for pictures and numbers (RUN/analysis)")
    add("--puzzles", type=whole_number(1), default=256, metavar="N", help="puzzles to run (%(default)s)")
    add(
        "--max-segments",
        type=whole_number(1, 1000),
        metavar="N",
        help="segments to run (four times training's)",
    )
    add("--seed", type=whole_number(0, 2**63 - 1), default=0, metavar="N", help="of all draws (%(default)s)")
    add("--batch-size", type=whole_number(1), default=64, metavar="N", help="puzzles at a time (%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    options.arguments = [*(sys.argv[1:] if arguments is None else arguments)]
    if options.out is None:
        if len(options.checkpoints) > 1:
            raise InputError("--out is missing: name a folder for the results of several checkpoints.")
        options.out = options.checkpoints[0].absolute().parent.parent / "analysis"
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out}: is no folder; choose one for pictures and numbers.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = parse_arguments(arguments)
    require("analyze", "tools.analyze")
    from tools.analyze.analysis import analyze  # torch, for options that are good

    return analyze(options)


if __name__ == "__main__":
    sys.exit(exit_code(main))
