"""Train until a stated share of held-out puzzles is solved, and write down how long that took, and with what.

    python -m tools.speedrun configs/speedrun_sudoku.yaml --target 85
    python -m tools.speedrun configs/speedrun_sudoku.yaml --target 85 --csv sudoku-extreme/
    python -m tools.speedrun configs/small/speedrun_sudoku_6x6.yaml --target 95

(`make speedrun-sudoku` is the first.) In stages, each one of our commands: the data is built if it is missing;
hrm_dist.train trains, with an evaluation every eval_interval passes, until one is at the target, the budget ends or the
last step is done; tools.evaluate evaluates those weights from one start as in training, from one start that halts by
itself, and from --starts, of which the one with the highest q answers; RUN/speedrun.md is written. RUN is
checkpoint_path. key=value are settings over those of the configuration, as in hrm_dist.train.

The clock counts training processes from their start to the evaluation that reaches the target: imports, compilation,
evaluations, checkpoints, and steps that are made again after a crash, over all starts. It does not count building the
data and the evaluations at the end, of which the record has the time too.

Where the configuration downloads its puzzles and cannot, give them by --csv: a folder with train.csv and test.csv, or
several files (--csv PATH:train --csv PATH:evaluation). Without them new puzzles are made, which are a race of its own.

RUN/  speedrun.md, curve.svg   the record, for people
      speedrun.json            the record, for programs; and how far the run is
      speedrun.log             what the commands have printed
      data/                    the dataset of --csv or --generated
      predictions/             of the evaluations at the end
      config.yaml, metrics.jsonl, checkpoints/, ...   a run folder as hrm_dist.train makes it

The same command goes on after any interruption, on the same clock; --target and --budget-min may change. Exit codes: 0
target reached, 3 not reached, 2 bad input, 75 stopped by a signal (the same command goes on), 1 anything else.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from data_pipeline.base import signals
from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import EXIT_FAILED, EXIT_INTERRUPTED, InputError, exit_code
from data_pipeline.base.paths import path_argument
from hrm_dist.config import TrainConfig
from hrm_dist.evaluation.start_options import MAX_STARTS

EXIT_NOT_REACHED = 3
_TOY = "make speedrun-sudoku CONFIG=configs/small/speedrun_sudoku_6x6.yaml TARGET=95"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what is asked for, then run; only good input costs the import of torch."""
    options = parse_arguments(arguments)
    from tools.speedrun.asked import check

    given = check(options)
    device = device_of(given.config)
    from tools.adapt.children import CommandError
    from tools.speedrun.stages import speedrun

    handlers = signals.catch(signal.default_int_handler)
    try:
        reached = speedrun(given, device)
    except CommandError as error:
        print(f"error: {error}; the same command goes on", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from what {given.run} holds", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        signals.restore(handlers)
    return 0 if reached else EXIT_NOT_REACHED


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line; end the process where it is wrong."""
    parser = command_parser("tools.speedrun", __doc__)
    parser.usage = "%(prog)s CONFIG.yaml [key=value ...] --target PERCENT [options]"
    add = parser.add_argument
    add("config", type=path_argument, metavar="CONFIG.yaml")
    add("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    add("--target", type=float, required=True, metavar="PERCENT",
        help="of the held-out puzzles that are to be solved, in every cell, from one start")  # fmt: skip
    add("--budget-min", type=float, metavar="M",
        help="minutes on the clock after which training ends in any case (default: none)")  # fmt: skip
    add("--csv", action="append", default=[], metavar="PATH[:train|:evaluation]",
        help="puzzles in place of those that the configuration names; repeatable")  # fmt: skip
    add("--generated", action="store_true", help="new puzzles in place of those that the configuration names")
    add("--starts", type=whole_number(2, MAX_STARTS), default=8, metavar="K",
        help="tries per puzzle in the last evaluation (%(default)s)")  # fmt: skip
    add("--max-segments", type=whole_number(1), metavar="N",
        help="segments at most, in evaluations that halt (default: twice halt_max_steps)")  # fmt: skip
    return parser.parse_intermixed_args(arguments)


def device_of(config: TrainConfig) -> str:
    """Return what computes, `cpu` or `cuda`; raise InputError where there is no GPU and nobody has asked for a CPU."""
    if config.device == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"device={config.device}: torch {torch.__version__} finds no GPU here, on which this run is to race. Try "
            f"the same on small puzzles, a few minutes on CPUs: `{_TOY}`; or, at your own patience, give device=cpu."
        )
    return "cuda"


if __name__ == "__main__":
    sys.exit(exit_code(main))
