"""Adapt a model to ARC tasks that it has never seen, within a budget of time: from their file to a submission.

    python -m tools.adapt runs/trm_arc1/checkpoints/best --tasks arc-agi_test_challenges.json --out runs/test \\
        --budget-min 600
    python -m tools.adapt --config configs/adapt/arc.yaml --tasks arc-agi_test_challenges.json --out runs/test \\
        --budget-min 600

The demonstrations of the tasks, with augmentations, are trained on; the test inputs are predicted in all augmentations,
which vote. With a CHECKPOINT training begins with its weights, and the rows of puzzles that it does not know with the
mean of its rows: at first the puzzle table alone is trained, then everything. Without one a model is trained from
scratch with the settings of --config. key=value are settings over those, as in hrm_dist.train; what the network is, and
how it treats padding, comes from the checkpoint.

All GPUs of the machine are used, or else the CPU (device=cpu). The speed of training and predicting is measured first;
then the number of steps is fixed, for good, so that training takes three quarters of what is left of the budget, or
more where all predictions take less than the rest. RUN/submission.json is valid from the first seconds on (it answers
with the test inputs at first) and is replaced after every chunk of the training and time and again while the last
weights predict. RUN/adapt.json has the budget, what was measured and planned, and how far it is.

The same command goes on after any interruption, on the same schedule, with the budget that is left; --budget-min may
change. Exit codes: 0 done, 2 bad input, 75 stopped by a signal (the same command goes on), 1 anything else.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from data_pipeline.base import signals
from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import EXIT_FAILED, EXIT_INTERRUPTED, exit_code
from data_pipeline.base.paths import path_argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what is asked for, then adapt; only good input costs the import of torch."""
    options = parse_arguments(arguments)
    from tools.adapt.asked import check

    given = check(options)
    handlers = signals.catch(signal.default_int_handler)
    try:
        import torch

        from data_pipeline.sampler import check_divisible
        from tools.adapt.children import CommandError
        from tools.adapt.stages import adapt

        num_gpus = 0 if given.config.device == "cpu" else torch.cuda.device_count()
        check_divisible(given.config.global_batch_size, max(1, num_gpus))
        try:
            adapt(given, max(1, num_gpus), "cuda" if num_gpus else "cpu")
        except CommandError as error:
            print(f"error: {error}; the submission is of the weights there were", file=sys.stderr)
            return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from what {given.run} holds", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        signals.restore(handlers)
    return 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line; end the process where it is wrong."""
    parser = command_parser("tools.adapt", __doc__)
    parser.usage = "%(prog)s [CHECKPOINT] --tasks FILE --out RUN [key=value ...] [options]"
    add = parser.add_argument
    add("words", nargs="*", metavar="CHECKPOINT | key=value",
        help="what to begin with, a folder such as runs/arc1/checkpoints/best; and settings")  # fmt: skip
    add("--tasks", type=path_argument, required=True, metavar="FILE",
        help="the tasks: a competition's challenges, or what else data_pipeline.build reads")  # fmt: skip
    add(
        "--out",
        type=path_argument,
        required=True,
        metavar="RUN",
        help="the run folder to make, or to go on with",
    )
    add("--budget-min", type=float, default=60.0, metavar="M", help="minutes for everything (%(default)g)")
    add(
        "--num-aug",
        type=whole_number(0),
        default=300,
        metavar="N",
        help="augmentations per task (%(default)s)",
    )
    add("--table-share", type=float, metavar="X",
        help="share of the steps, the first ones, that train the puzzle table alone (0.2; from scratch 0)")  # fmt: skip
    add(
        "--config",
        type=path_argument,
        metavar="CONFIG.yaml",
        help="without CHECKPOINT: what to train from scratch",
    )
    add("--identifiers", type=path_argument, metavar="FILE",
        help="identifiers.json of the data of CHECKPOINT, if that data is not where it was")  # fmt: skip
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(exit_code(main))
