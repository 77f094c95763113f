"""What a sweep is: settings and seeds over a configuration, as a YAML file says, all of it checked before any run.

    config: configs/trm_sudoku_mlp.yaml
    set: {max_steps: 2000}                  # over the configuration, in all settings
    settings:                               # by name, what is over that
      baseline: {}
      no ACT: {arch.halt_max_steps: 1}
    matrix: {lr: [1e-4, 1e-3]}              # every combination of values, with every setting if there are both
    seeds: [0, 1, 2]

No torch.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from data_pipeline.base.errors import InputError
from data_pipeline.base.models import Strict, problems
from data_pipeline.base.paths import PathText
from data_pipeline.schema import NOTHING_HELD_OUT, load_dataset_info
from hrm_dist.checkpoint.config_changes import NOT_IN_THE_RESULT
from hrm_dist.config import ConfigError, TrainConfig, as_found, flat_settings, load_config, total_steps
from hrm_dist.config.data_command import refuse_missing_data
from hrm_dist.config.hints import unknown_key
from hrm_dist.config.loader import Entries, Value, overrides_of, read_entries

_OF_THE_SWEEP = ("seed", "checkpoint_path", "resume", "run_name")
"""Keys that the sweep itself sets."""

# Besides what changes nothing of the weights, but for what counts in their scores: how far a run goes, what it is
# evaluated on, and when. What the data is, counts by content.
_NOT_IN_THE_SCORES = NOT_IN_THE_RESULT - {
    "max_steps", "log_interval", "eval_interval", "eval_max_groups", "eval_num_aug",
}  # fmt: skip


def _empty_if_null(value: object) -> object:
    return {} if value is None else value


Overrides = Annotated[dict[str, Any], BeforeValidator(_empty_if_null)]


class SweepFile(Strict):
    """The content of a sweep's file."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    config: PathText
    """The configuration that all settings start from."""
    set: Overrides = Field(default_factory=dict)
    """Over the configuration, in all settings; keys as on the command line of hrm_dist.train."""
    settings: dict[str, Overrides] = Field(default_factory=dict)
    """By name, what is over that."""
    matrix: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Keys and their values, of which every combination is a setting."""
    baseline: str | None = None
    """The setting that others are compared with; null: the first."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)] = Field(
        default=[0, 1, 2]
    )
    """Of each setting."""
    score: str | None = Field(default=None, pattern="^eval/.")
    """As in metrics.jsonl; null: the one by which checkpoints are compared."""
    at: Literal["last", "best"] = "last"
    """The step whose score counts."""
    out: PathText | None = None
    """Folder of the results; null: runs/sweeps/NAME, after the file."""
    pool: PathText = "runs/sweeps/pool"
    """Folder of the run folders, which sweeps share: what two have in common is trained once."""

    @model_validator(mode="after")
    def _check_together(self) -> "SweepFile":
        lines: list[str] = []
        if not self.settings and not self.matrix:
            lines.append("there is nothing to compare; give `settings`, `matrix` or both")
        if len(set(self.seeds)) < len(self.seeds):
            lines.append(f"seeds: {self.seeds} has one of them twice; leave it out")
        places: dict[str, Any] = {"set": self.set, "matrix": self.matrix, **self.settings}
        lines += [
            f"{place}: {key} is set by the sweep; leave it out"
            for place, entries in places.items()
            for key in entries
            if key in _OF_THE_SWEEP
        ]
        lines += [
            f"{name}: {key} is in matrix too, which would count; leave one of them out"
            for name, entries in self.settings.items()
            for key in entries
            if key in self.matrix
        ]
        if lines:
            raise ValueError("\n".join(lines))
        return self


class Setting(NamedTuple):
    """A named configuration."""

    name: str
    own: list[str]
    """What it has over the others, as `key=value`."""
    overrides: list[str]
    """All of what it has over the file."""
    config: TrainConfig
    """Of the first seed, in no particular run folder."""


class Run(NamedTuple):
    """A setting with a seed."""

    setting: Setting
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        return f"{self.setting.name}, seed {self.seed}"


class Sweep(NamedTuple):
    """A sweep that has been checked."""

    path: Path
    config: Path
    settings: list[Setting]
    baseline: str
    seeds: list[int]
    score: str | None
    at: Literal["last", "best"]
    out: Path
    pool: Path

    @property
    def runs(self) -> list[Run]:
        """Return all runs, seed by seed: so comparisons begin with the first seed, and only become sharper."""
        return [
            Run(setting, seed, setting.config.model_copy(update={"seed": seed}))
            for seed in self.seeds
            for setting in self.settings
        ]


def load_sweep(path: Path) -> Sweep:
    """Read a sweep's file and resolve all of its settings. Raise ConfigError with every problem."""
    errors: list[str] = []
    entries = read_entries(path, errors)
    if entries is None or errors:
        raise ConfigError("\n".join(errors))
    try:
        file = SweepFile.model_validate(entries)
    except ValidationError as invalid:
        raise ConfigError("\n".join(_refusals(path, invalid))) from None
    settings: list[Setting] = []
    for name, own in _named(file).items():
        overrides = [*_overrides(file.set), *_overrides(own)]
        try:
            config = load_config(
                file.config, [*overrides, f"seed={file.seeds[0]}"], f"setting {name!r} of {path}"
            )
        except ConfigError as error:
            errors += str(error).splitlines()
        else:
            settings.append(Setting(name, _overrides(own), overrides, config))
    if not errors:
        errors += _problems_of_training(path, Path(file.config), settings)
    names = list(_named(file))
    if len(names) < _num_settings(file):
        errors.append(f"{path}: two settings have one name; give each value of the matrix once")
    if file.baseline not in (None, *names):
        errors.append(f"{path}: baseline: {file.baseline!r} is none of the settings: {', '.join(names)}")
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    out = Path(file.out or Path("runs/sweeps") / path.stem)
    baseline = file.baseline or names[0]
    return Sweep(
        path, Path(file.config), settings, baseline, file.seeds, file.score, file.at, out, Path(file.pool)
    )


def _refusals(path: Path, invalid: ValidationError) -> Iterator[str]:
    for kind, key, why in problems(invalid):
        if kind == "extra_forbidden":
            yield f"{path}: {unknown_key(key, SweepFile.model_fields, {}, {})}"
        elif kind == "missing":
            yield f"{path}: {key}: {why}; add `{key}: ...`"
        else:
            yield f"{path}: {f'{key}: ' if key else ''}{why}"


def _num_settings(file: SweepFile) -> int:
    num = max(1, len(file.settings))
    for values in file.matrix.values():
        num *= len(values)
    return num


def _named(file: SweepFile) -> dict[str, Entries]:
    """Return what each setting has over the others: those that are named, times those of the matrix."""
    named: dict[str, Entries] = {}
    for name, own in (file.settings or {"": {}}).items():
        for values in itertools.product(*file.matrix.values()):
            chosen: dict[str, Value] = dict(zip(file.matrix, values, strict=True))
            words = [name] if name else []
            # A value that is the same everywhere distinguishes nothing.
            words += [f"{key}={_word(value)}" for key, value in chosen.items() if len(file.matrix[key]) > 1]
            named[", ".join(words) or ", ".join(overrides_of(chosen))] = {**own, **chosen}
    return named


def _overrides(entries: Entries) -> list[str]:
    """Return entries as `key=value`. A whole `dataset` section takes the place of the one before, which may be of
    another kind with other options.
    """
    return ["dataset=null", *overrides_of(entries)] if entries.get("dataset") else overrides_of(entries)


def _word(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _problems_of_training(path: Path, config_path: Path, settings: list[Setting]) -> Iterator[str]:
    """Yield what keeps settings from being trained and scored as they say."""
    first_of: dict[str, Setting] = {}
    for setting in settings:
        config, where = setting.config, f"setting {setting.name!r} of {path}"
        other = first_of.setdefault(config.data_path, setting)
        if other.config.dataset != config.dataset:
            yield (
                f"{where}: data_path={config.data_path} is that of {other.name} too, whose `dataset` says something "
                "else; give each dataset a data_path"
            )
        if config.resume not in ("auto", "never"):
            yield (
                f"{config_path}: resume={config.resume}: runs of a sweep start from their own first step; take it out"
            )
        if config.eval_interval is None:
            yield f"{where}: eval_interval=null: there would be no scores to compare; set it, however large"
        try:
            refuse_missing_data(config_path, config)
            if config.dataset is None or is_built(config):
                yield from (f"{where}: {problem}" for problem in _problems_of_dataset(config))
        except InputError as error:
            yield f"{where}: {error}"


def _problems_of_dataset(config: TrainConfig) -> Iterator[str]:
    """Yield what is wrong with a dataset that is there. Raise InputError for one that cannot be read."""
    info = load_dataset_info(Path(config.data_path))
    if as_found(config) is not config:
        yield (
            f"data_path={config.data_path} is not what `dataset` says, and would be used all the same; give another "
            "data_path, or delete it"
        )
    if not info.splits.test.total_groups:
        yield f"data_path={config.data_path}: {NOTHING_HELD_OUT}, so there are no scores to compare"
    if total_steps(config, info.metadata("train")) < 1:
        yield f"epochs={config.epochs}: fills no batch of global_batch_size={config.global_batch_size}; raise epochs"


def is_built(config: TrainConfig) -> bool:
    """Return whether the dataset of a configuration is there."""
    return (Path(config.data_path) / "dataset.json").exists()


def digest(config: TrainConfig) -> str:
    """Return what tells runs apart, for those of the same scores the same. It changes when the dataset is built.

    It covers the settings that differ from the defaults, so that a new one which changes nothing by default leaves
    the runs of earlier versions in use, and the content of the dataset.
    """
    defaults = flat_settings(TrainConfig(data_path="-").model_dump(mode="json"))
    settings = flat_settings(config.model_dump(mode="json"))
    counting = {
        key: value
        for key, value in settings.items()
        if key.partition(".")[0] not in _NOT_IN_THE_SCORES and value != defaults.get(key)
    }
    if is_built(config):
        content: object = hashlib.sha256(load_dataset_info(Path(config.data_path)).content()).hexdigest()
    else:
        content = [config.data_path, config.dataset.model_dump(mode="json") if config.dataset else None]
    text = json.dumps([sorted(counting.items()), content])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def unique(runs: Sequence[Run]) -> list[Run]:
    """Return the runs without those that are the same as one before them."""
    keys = [digest(run.config) for run in runs]
    return [run for i, run in enumerate(runs) if keys[i] not in keys[:i]]


def folder_name(run: Run) -> str:
    """Return the name of a run's folder, if no other sweep has trained the same under another."""
    words = re.sub(r"[^A-Za-z0-9.=_+-]+", "-", run.setting.name).strip("-.")[:80]
    return f"{words or 'setting'}-seed{run.seed}-{digest(run.config)}"
