"""Accuracy over segments, halting rules and starts, from one evaluation of every segment.

    python -m tools.scaling runs/demo/checkpoints/latest --data data/demo
    python -m tools.scaling runs/sudoku_6x6/checkpoints/latest --data data/sudoku-6x6 --max-segments 32
    python -m tools.scaling runs/seed0/checkpoints/latest runs/seed1/checkpoints/latest runs/seed2/checkpoints/latest \\
        --data data/sudoku-6x6 --max-segments 32 --out runs/scaling
    python -m tools.scaling runs/sudoku_6x6/checkpoints/latest --data data/sudoku-6x6 --starts 16 --segment-noise 0.3

All inputs run all segments, into OUT/predictions (of several checkpoints OUT/predictions_0, _1, ...), as by

    python -m tools.evaluate CHECKPOINT --data DIR --out OUT/predictions --halting none --every-segment --max-segments N

which may be run before, on several GPUs or in parts; the same command after an interruption resumes. Every rule by
which tools.evaluate halts is then applied to what the model said after each segment: learned, `q:X`, `unchanged:K`,
`residual:X`, and `none`. The limits X that are tried are quantiles (10, 25, 50, 75 and 90 %), to two digits, of all
q_halt_logits, or all residuals, that occur: of every input after each segment. For each rule, and for each number of
segments:

  segments       mean per input
  Gop an input   10^9 operations of matrix products (a multiplication and an addition are two), mean per input
  ms an input    time on this machine, mean per input: a segment of --batch-size inputs side by side is timed (median of
                 five turns, not compiled, without reading and writing), divided by their number
  exact, cells   share of inputs right in every cell, mean share of cells right; then what the kind of puzzle has
                 beside, of ARC the vote over augmentations (pass@1 and pass@2, by test input), of Sudokus valid
                 grids, of mazes valid and optimal paths
  differ         inputs that are answered otherwise than after all segments
  gained, lost   right and wrong after all segments, and the other way round

With --starts K each input runs K times, from states and with noise as the other options say (see tools.evaluate, which
may be run before with the same options and --choose q). What is above is then told of start 0 alone, which has the
noise too; another --out without --starts and noise tells of the model as it is. Beside that, the first 1, 2, 4, ... K
starts are taken, each run for all segments, half of them, a quarter, ..., or until it halts by `learned` or
`unchanged:2`; and of these one answer, by each choice of tools.evaluate:

  q, vote        highest q_halt_logits; most frequent answer
  residual       whose state changed least at last (not after one segment)
  first          the first to halt, by a rule; no start is run longer than that
  any            a right one if there is any: a ceiling for choices, which needs the truth and is none itself (of ARC,
                 of every prediction before the vote)

All starts are paid for: segments, operations and time are of all together. (By vote, tools.evaluate may take less: it
drops what can no longer be chosen.) `against 1 x M` tells what breadth changes at the cost of one start of M segments.

Inputs whose numbers overflow (q_halt_logits is NaN) are counted in a warning, and are wrong where that is so.

An interval is at 95 %: of one checkpoint Wilson's over inputs, of several (with the same setting and other seeds)
Student's over these. A rule that is chosen by its score here has to be scored on other inputs.

OUT (default: RUN/scaling) gets scaling.json, scaling.png and, of several starts, scaling_starts.png; the last line
printed is the JSON object, without what is of single checkpoints. Exit codes: 0 done, 2 bad input, 75 stopped by a
signal (the same command resumes), 1 anything else.
"""

import argparse
import sys
from collections.abc import Sequence

from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.extras import require
from data_pipeline.base.paths import path_argument


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line. Raises InputError, or ends the process where it is wrong."""
    parser = command_parser("tools.scaling", __doc__)
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="+",
        type=path_argument,
        metavar="CHECKPOINT",
        help="folders such as .../checkpoints/latest",
    )
    add("--data", type=path_argument, required=True, metavar="DIR", help="the dataset of the training")
    add("--out", type=path_argument, metavar="DIR", help="folder for predictions and results (RUN/scaling)")
    add("--max-segments", type=int, metavar="N", help="segments of every input (as in training)")
    add("--starts", type=int, default=1, metavar="K", help="starts of each input (%(default)s)")
    add("--initial-states", choices=("fixed", "random"), help="what a start begins with (as trained)")
    add("--segment-noise", type=float, metavar="X", help="noise before every segment (as trained)")
    add("--update-noise", type=float, metavar="X", help="noise of every update (as trained)")
    add("--noise-seed", type=int, metavar="N", help="other numbers give other starts (0)")
    add(
        "--num-aug",
        type=int,
        metavar="N",
        help="augmentations per task beside the original (all)",
    )
    add("--max-groups", type=int, metavar="N", help="only the first N tasks (all)")
    add("--batch-size", type=int, metavar="N", help="examples at a time (64)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    for name, least in (
        ("num_aug", 0),
        ("max_groups", 1),
        ("batch_size", 1),
        ("max_segments", 1),
        ("starts", 1),
    ):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = parse_arguments(arguments)
    require("report", "scaling.png")
    if options.out is None:
        if len(options.checkpoints) > 1:
            raise InputError("--out is missing: name a folder for the results of several checkpoints.")
        options.out = options.checkpoints[0].absolute().parent.parent / "scaling"
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out}: is no folder; choose one for predictions and results.")
    from tools.scaling.comparison import compare  # torch, for options that are good

    return compare(options)


if __name__ == "__main__":
    sys.exit(exit_code(main))
