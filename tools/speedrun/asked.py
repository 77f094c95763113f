"""What the command line asks for, checked before anything is written. No torch."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from data_pipeline.base.errors import InputError
from data_pipeline.build_spec import BuildSpec
from data_pipeline.grid_puzzles.csv_files import find_files
from data_pipeline.grid_puzzles.puzzle_type import PuzzleOptions
from data_pipeline.shards.plan import Request
from hrm_dist.checkpoint.config_changes import NOT_IN_THE_RESULT
from hrm_dist.config import TrainConfig, flat_settings, load_config
from tools.speedrun.record import FILE, Asked, DataName, Record, read_record, refuse_other

_WATCHED = ("eval_interval", "eval_max_groups")
"""Settings that leave the weights alone, and decide what the clock sees."""
_MOST_MIN = 1_000_000
_NEW_TRAIN_PUZZLES, _NEW_TEST_PUZZLES = 1_000, 10_000
_NEW_MIN_DIFFICULTY = 20
"""Backtracks that a solver needs for a new Sudoku: ones that it solves without guessing are too easy for a race."""


class Speedrun(NamedTuple):
    """A speedrun, all of whose input is good."""

    run: Path
    config_path: Path
    overrides: tuple[str, ...]
    config: TrainConfig
    spec: BuildSpec
    """How the configuration builds its data."""
    asked: Asked
    csv: tuple[str, ...]
    known: Record | None
    """What an earlier start has left."""
    target: float
    budget_s: float | None
    starts: int
    max_segments: int

    @property
    def data(self) -> Path:
        """Return the folder of the dataset: the configuration's, or for other puzzles one in the run folder."""
        return Path(self.config.data_path) if self.asked.data == "configuration" else self.run / "data"

    def request(self) -> Request:
        """Return how the puzzles are built: as many, and as often augmented, as the configuration says."""
        if self.asked.data == "configuration":
            return self.spec.request(self.data, workers=_workers(), quiet=False)
        make = new_puzzles if self.asked.data == "generated" else puzzles_of_files
        options = make(self.spec)
        return Request(
            self.spec.kind.name, list(self.csv), self.data, options, self.spec.seed, _workers(), quiet=False
        )

    def from_new_puzzles(self) -> "Speedrun":
        """Return the same with new puzzles in place of those that the configuration names."""
        return self._replace(asked=self.asked.model_copy(update={"data": "generated"}))


def puzzles_of_files(spec: BuildSpec) -> PuzzleOptions:
    """Return the options of puzzles of files in place of those of a configuration.

    What training would see of the held-out ones is dropped from it.
    """
    options = _of_puzzles(spec)
    if options.generator is None:
        return options.model_copy(update={"leaks": "drop"})
    return _from_given(spec, {"num_aug": options.num_aug, "leaks": "drop"}, has_source=True)


def new_puzzles(spec: BuildSpec) -> PuzzleOptions:
    """Return the options of new puzzles in place of those of a configuration, as many of them."""
    options = _of_puzzles(spec)
    if options.generator is not None:
        return options
    num = {
        "num_train": options.subsample or _NEW_TRAIN_PUZZLES,
        "num_test": options.subsample_test or _NEW_TEST_PUZZLES,
    }
    hard = {} if spec.kind.name != "sudoku" else {"min_difficulty": _NEW_MIN_DIFFICULTY}
    return _from_given(spec, {"num_aug": options.num_aug, **num, **hard}, has_source=False)


def _of_puzzles(spec: BuildSpec) -> PuzzleOptions:
    assert isinstance(spec.options, PuzzleOptions)
    return spec.options


def _from_given(spec: BuildSpec, given: Mapping[str, object], *, has_source: bool) -> PuzzleOptions:
    found = spec.kind.options.from_given(given, "--csv", has_source=has_source)
    assert isinstance(found, PuzzleOptions)
    return found


def check(options: argparse.Namespace) -> Speedrun:
    """Return what a command line asks for; raise InputError for what cannot be done."""
    if not 1 <= options.target <= 100:
        raise InputError(
            f"--target {options.target:g}: is in per cent, from 1 to 100 (87.4, not 0.874); give such a number."
        )
    if options.budget_min is not None and not 0 < options.budget_min <= _MOST_MIN:
        raise InputError(
            f"--budget-min {options.budget_min:g}: must be more than 0, and at most {_MOST_MIN:,}."
        )
    config = load_config(options.config, options.overrides)
    spec = _checked_spec(options.config, config)
    run = Path(config.checkpoint_path)
    _refuse_foreign(run)
    known = read_record(run)
    for source in options.csv:
        _refuse_without_test(source, options.csv)
    data = _data_name(options, known)
    settings = flat_settings(config.model_dump(mode="json"))
    asked = Asked(
        config=str(options.config),
        data=data,
        settings={
            key: value
            for key, value in settings.items()
            if key in _WATCHED or key.partition(".")[0] not in NOT_IN_THE_RESULT
        },
    )
    if known is not None:
        refuse_other(run, known.asked, asked)
    return Speedrun(
        run, options.config, tuple(options.overrides), config, spec, asked, tuple(options.csv), known,
        options.target, None if options.budget_min is None else 60 * options.budget_min,
        options.starts, options.max_segments or 2 * config.arch.halt_max_steps,
    )  # fmt: skip


def _workers() -> int:
    from tools.sweep.running import num_cores

    return num_cores()


def _checked_spec(path: Path, config: TrainConfig) -> BuildSpec:
    if config.dataset is None or not isinstance(config.dataset.options, PuzzleOptions):
        raise InputError(
            f"{path}: a speedrun needs a `dataset:` section of Sudokus or mazes, whose answers are scored without a "
            "vote; take configs/speedrun_sudoku.yaml."
        )
    if config.eval_interval is None:
        raise InputError(
            f"{path}: eval_interval=null: without evaluations nothing can stop the clock; give one, in passes."
        )
    return config.dataset


def _refuse_foreign(run: Path) -> None:
    if run.exists() and not run.is_dir():
        raise InputError(f"checkpoint_path={run}: is no folder; choose one for the run.")
    if (run / "metrics.jsonl").exists() and not (run / FILE).exists():
        raise InputError(
            f"checkpoint_path={run}: holds a run that no clock has watched; choose another folder."
        )


def _refuse_without_test(source: str, all_sources: list[str]) -> None:
    """Raise InputError where no file of the sources is held out, or none trains."""
    found = [find_files(one) for one in all_sources]
    missing = [
        split
        for split, files in (("train", [one.train for one in found]), ("test", [one.test for one in found]))
        if not any(files)
    ]
    if missing:
        raise InputError(
            f"--csv {source}: has no {missing[0]} puzzles; give a folder with train.csv and test.csv, or two files: "
            "--csv PATH:train --csv PATH:evaluation."
        )


def _data_name(options: argparse.Namespace, known: Record | None) -> DataName:
    if options.csv and options.generated:
        raise InputError("--generated: --csv gives the puzzles already; leave one of them out.")
    if options.csv:
        return "csv"
    if options.generated:
        return "generated"
    # What an earlier start has settled holds, such as new puzzles where nothing could be downloaded.
    return known.asked.data if known is not None and known.asked.data != "csv" else "configuration"
