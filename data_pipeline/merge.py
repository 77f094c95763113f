"""Make a dataset of the parts that machines built: verify shards, write the indices.

example, with a folder on a disk that all machines see:
  python -m data_pipeline.build arc-agi-2 --out data/arc2 --part 0/2      # on one
  python -m data_pipeline.build arc-agi-2 --out data/arc2 --part 1/2      # on another
  python -m data_pipeline.merge data/arc2                                 # when both are done

The dataset has the same bytes as one that a single command has built.
"""

import sys
from pathlib import Path

from data_pipeline.base.command_line import command_parser
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.paths import path_argument
from data_pipeline.build import summary
from data_pipeline.schema import BUILDING, load_dataset_info
from data_pipeline.shards import build_dir


def main() -> int:
    """Parse the command line and merge."""
    parser = command_parser("data_pipeline.merge", __doc__)
    parser.add_argument(
        "dataset", type=path_argument, metavar="DIR", help="folder that the parts were built in"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    given = parser.parse_args()
    text = merge(given.dataset, show_progress=not given.quiet)
    if not given.quiet:
        print(text)
    return 0


def merge(dataset: Path, *, show_progress: bool) -> str:
    """Finish the build in a folder; return what to tell the user. Raise InputError."""
    if (dataset / "dataset.json").exists() or not (dataset / BUILDING).exists():
        info = load_dataset_info(dataset)
        build_dir.remove_leftovers(dataset)
        return f"{dataset}: already merged\n{summary(dataset, info)}"
    if not (dataset / BUILDING / "head.json").exists():
        raise InputError(f"{dataset}: none of its parts has begun to write shards; build them first.")
    return summary(dataset, build_dir.finish(dataset, show_progress=show_progress))


if __name__ == "__main__":
    sys.exit(exit_code(main))
