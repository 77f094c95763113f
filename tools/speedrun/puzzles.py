"""The puzzles of a speedrun: built if they are missing, and new ones where the published ones cannot be had."""

import sys

from data_pipeline.base.errors import InputError
from data_pipeline.base.extras import require
from data_pipeline.build import build
from data_pipeline.grid_puzzles.csv_files import HUB_PREFIX, find_files
from data_pipeline.schema import NOTHING_HELD_OUT, load_dataset_info
from tools.speedrun.asked import Speedrun

DO_NOT_COMPARE = "scores on them compare with no published ones"


def settle(given: Speedrun) -> Speedrun:
    """Return the same, with new puzzles where those that the configuration downloads are neither here nor to be had.

    Raise InputError where the package that downloads them is all that is missing.
    """
    if given.asked.data != "configuration" or (given.data / "dataset.json").exists():
        return given
    downloads = [source for source in given.spec.source if source.startswith(HUB_PREFIX)]
    if downloads:
        require("hub", f"{downloads[0]} (or give --csv or --generated)")
    try:
        for source in downloads:
            find_files(source)
    except InputError as error:
        print(
            f"note: {error}\nNEW PUZZLES are made instead; {DO_NOT_COMPARE}. To run on Sudoku-Extreme, give the folder "
            f"of its train.csv and test.csv by --csv, and a new run folder.",
            file=sys.stderr,
        )
        return given.from_new_puzzles()
    return given


def build_if_missing(given: Speedrun) -> None:
    """Build the dataset, or what is missing of it. Raise InputError for puzzles that cannot be used."""
    if given.asked.data != "configuration" or not (given.data / "dataset.json").exists():
        build(given.request())
    if not load_dataset_info(given.data).splits.test.num_examples:
        raise InputError(
            f"{given.data}: {NOTHING_HELD_OUT}, so there is nothing to be scored; build it with some."
        )
