"""Convert weights: a checkpoint to published names, or published weights to a checkpoint.

examples:
  python -m tools.convert export runs/arc1/checkpoints/best --out my-arc-model --license apache-2.0
      a folder to give away: weights (their EMA, where the run kept one) and puzzle table, what it takes to run them
      without the dataset, and a model card for the Hub, made of the run folder and of its scores; it is used by
      hrm_dist.inference (docs/workstation.md)
  python -m tools.convert export runs/arc1/checkpoints/best --out arc1.safetensors
      weights and puzzle table alone; beside them arc1.identifiers.json, the names of the table's rows
  python -m tools.convert import checkpoint --identifiers identifiers.json --data data/arc1 \\
      --config configs/arc1.yaml --out runs/released
      a published file (torch or safetensors), or a folder of an export; rows of the table go to the puzzles of the
      same names
  python -m tools.evaluate runs/released/checkpoints/latest --data data/arc1 --out predictions
  python -m hrm_dist.train configs/arc1.yaml data_path=data/arc1 resume=runs/released/checkpoints/latest
      what an import is good for

The configuration has to describe the network: sizes that do not fit the weights are found and named, but a number of
cycles or heads leaves no trace in them. Weights are found behind the prefixes of wrappers (module., _orig_mod.) and
within what a training saved around them ({"model_state_dict": ...}); averaged ones (ema) come before others. Names of
puzzles are read in HRM's spelling (TASK_t3_0718293645) and in TRM's (TASK|||t3|||0718293645). Exit codes: 0 done, 2 bad
input.
"""

import argparse
import sys

from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import exit_code
from data_pipeline.base.paths import path_argument


def main() -> int:
    """Export or import; only a good command line costs the import of torch."""
    options = _parse()
    if options.command == "export":
        from tools.convert.export import export_weights

        ema = options.weights == "ema"
        given = {"license": options.license, "scores": options.scores}
        print(export_weights(options.checkpoint, options.out, options.data, ema=ema, **given))
        return 0
    from tools.convert.import_ import import_weights

    print(import_weights(options))
    return 0


def _parse() -> argparse.Namespace:
    parser = command_parser("tools.convert", __doc__)
    commands = parser.add_subparsers(dest="command", metavar="export|import", required=True)
    what = "Write a checkpoint to a folder that runs by itself, or its weights alone to a safetensors file."
    _add_export_arguments(commands.add_parser("export", help=what, description=what))
    what = "Make a checkpoint (step 0) of published weights; key=value are settings over those of the configuration."
    _add_import_arguments(commands.add_parser("import", help=what, description=what))
    # Settings may come between the options, which argparse allows no argument of a subcommand.
    options, rest = parser.parse_known_args()
    misplaced = [
        text for text in rest if text.startswith("-") or "=" not in text or options.command == "export"
    ]
    if misplaced:
        parser.error(f"unrecognized arguments: {' '.join(misplaced)}")
    options.overrides = rest
    return options


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "checkpoint", type=path_argument, metavar="CHECKPOINT", help="a folder such as .../checkpoints/latest"
    )
    add(
        "--out",
        type=path_argument,
        required=True,
        metavar="DIR|FILE.safetensors",
        help="the folder or file to write",
    )
    add("--license", metavar="ID", help="for the model card, such as apache-2.0 (default: it says none)")
    add(
        "--scores",
        type=path_argument,
        metavar="FILE",
        help="for the model card, a scores.json of these weights (default: those in the run folder)",
    )
    add("--weights", type=lambda text: "ema" if text == "average" else text, choices=("ema", "raw"), default="ema",
        help="the EMA where the run kept one (default), or the raw weights")  # fmt: skip
    add(
        "--data",
        type=path_argument,
        metavar="DIR",
        help="the dataset of the training (default: where it was then)",
    )


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s WEIGHTS --data DIR --config CONFIG.yaml [key=value ...] --out RUN_DIR [options]"
    add = parser.add_argument
    add(
        "weights",
        type=path_argument,
        metavar="WEIGHTS",
        help="a torch or safetensors file with the published names, or a folder of an export",
    )
    add(
        "--data",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="the dataset that the checkpoint is for",
    )
    add("--config", type=path_argument, required=True, metavar="CONFIG.yaml", help="describes the network")
    rows = parser.add_mutually_exclusive_group()
    help_of_identifiers = (
        "the identifiers.json of the data that the weights were trained on: the name of each row of their puzzle table "
        "(default: the file that an export left beside WEIGHTS)"
    )
    rows.add_argument("--identifiers", type=path_argument, metavar="FILE", help=help_of_identifiers)
    help_of_same = "row I of the table is puzzle I of --data, whatever its name"
    rows.add_argument("--same-identifiers", action="store_true", help=help_of_same)
    help_of_unmatched = (
        "row of a puzzle that the weights do not know: zero (default), or the mean of their rows"
    )
    add("--unmatched", choices=("zero", "mean"), default="zero", help=help_of_unmatched)
    add("--out", type=path_argument, required=True, metavar="RUN_DIR", help="run folder to make")


if __name__ == "__main__":
    sys.exit(exit_code(main))
