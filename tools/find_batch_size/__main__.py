"""Find out which batch sizes fit this GPU, and which of them trains fastest.

examples:
  python -m tools.find_batch_size configs/arc1.yaml
      real training steps at growing batch sizes, on random tokens of the shape of the configuration's dataset;
      with padding=skip on its batches
  python -m tools.find_batch_size configs/trm_sudoku_mlp.yaml --seq-len 81 --vocab-size 11 arch.L_cycles=4
      any shape, any settings
  python -m tools.find_batch_size configs/debug.yaml device=cpu --max-batch-size 64
      on a CPU: up to a size that is given, as there the machine would suffer from running out of memory
  python -m tools.find_batch_size --check
      how near the estimate of `hrm_dist.train --dry-run` comes to what is measured, for published models

Each size runs in a process of its own. The first is a quarter of what fits by the estimate. From there the size is
doubled until memory runs out, then halved in between, to multiples of 8 and 3 % of the size. Every size is compiled
anew, which takes most of the time. The last line printed is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.schema import DatasetMetadata, load_dataset_info
from hrm_dist.config import TrainConfig, as_found, load_config
from hrm_dist.dry_run import metadata_of
from hrm_dist.train import require_packages
from tools.find_batch_size import check, search
from tools.find_batch_size.one_size import Job, shape


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what was asked, measure it, print it."""
    options = _parse(arguments)
    files = [text for text in options.settings if "=" not in text]
    overrides = tuple(text for text in options.settings if "=" in text)
    if options.check:
        if files:
            raise InputError(f"--check: takes published models, not {files[0]}; leave one of them out.")
        if any(word.partition("=")[::2] == ("padding", "skip") for word in overrides):
            raise InputError(
                "--check: measures random tokens, which fill the canvas; leave padding=skip out."
            )
        result = check.measure(overrides, check.CASES)
    elif len(files) != 1:
        given = " ".join(files) or "no configuration"
        raise InputError(f"{given}: give one configuration, such as configs/arc1.yaml, or --check.")
    else:
        config = load_config(files[0], overrides)
        require_packages(config, is_main=False)
        metadata = _metadata(Path(files[0]), config, options)
        job = Job(files[0], overrides, metadata)
        result = search.measure(job, options.max_batch_size)
    print(json.dumps(result))
    return 0


def _metadata(path: Path, config: TrainConfig, options: argparse.Namespace) -> DatasetMetadata:
    """Return the shape of the data: as given, or that of the configuration's dataset."""
    given = {"--seq-len": options.seq_len, "--vocab-size": options.vocab_size}
    if config.padding == "skip":
        # Random tokens fill the canvas: what is skipped, only a dataset tells.
        if any(given.values()):
            raise InputError(
                "padding=skip: takes batches of a dataset; leave --seq-len and --vocab-size out, or set padding=keep."
            )
        return load_dataset_info(Path(config.data_path)).metadata("train")
    if all(given.values()):
        return shape(options.seq_len, options.vocab_size, options.num_puzzles)
    if any(given.values()):
        missing = next(option for option, value in given.items() if value is None)
        raise InputError(
            f"{missing} is missing: --seq-len and --vocab-size belong together; give both or neither."
        )
    lines: list[str] = []
    metadata = metadata_of(path, as_found(config), lines)
    if metadata is None:
        raise InputError(f"{lines[-1]} Or give the shape of its data: --seq-len N --vocab-size N.")
    return metadata


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("tools.find_batch_size", __doc__)
    number = whole_number(1)
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG.yaml | key=value",
        help="a configuration and settings over it; docs/settings.md has them all",
    )
    parser.add_argument(
        "--seq-len", type=number, metavar="N", help="tokens of a sequence (default: the dataset's)"
    )
    parser.add_argument(
        "--vocab-size", type=number, metavar="N", help="kinds of tokens (default: the dataset's)"
    )
    parser.add_argument(
        "--num-puzzles",
        type=number,
        default=1,
        metavar="N",
        help="rows of the puzzle table (with --seq-len; default: 1)",
    )
    parser.add_argument(
        "--max-batch-size",
        type=number,
        metavar="N",
        help="largest size to try (default: until memory runs out)",
    )
    parser.add_argument("--check", action="store_true", help="compare estimate and measurement instead")
    return parser.parse_intermixed_args(arguments)  # options may come between the settings


if __name__ == "__main__":
    sys.exit(exit_code(main))
