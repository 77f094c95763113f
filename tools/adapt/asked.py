"""What the command line asks for, checked before anything is written. Loads torch only to look at a checkpoint."""

import argparse
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from data_pipeline.arc.dataset import ArcOptions
from data_pipeline.arc.sources import content_sha256, from_path
from data_pipeline.arc.task import Task
from data_pipeline.arc.tokens import MAX_GRID_SIDE, VOCAB_SIZE
from data_pipeline.base.errors import InputError
from data_pipeline.build import read
from data_pipeline.shards.plan import Request
from hrm_dist.config import ConfigError, TrainConfig, flat_settings, load_config
from tools.adapt.plan import MOST_SEQUENCES, least_s
from tools.adapt.record import FILE, Asked, read_record, refuse_other

if TYPE_CHECKING:
    from hrm_dist.checkpoint.reader import CheckpointState

TABLE_SHARE = 0.2
"""Of the steps from a checkpoint, as long as --table-share does not say otherwise."""
_MOST_MIN = 1_000_000
_SEED = 42
_OF_MODEL = ("arch", "precision", "padding")
_OF_TRAINING = (
    "global_batch_size", "lr", "lr_warmup_steps", "beta1", "beta2", "weight_decay", "puzzle_emb_lr",
    "puzzle_emb_weight_decay", "ema", "ema_rate",
)  # fmt: skip
"""What is taken from the configuration of a checkpoint; what concerns machines is not."""
_LR_MIN_RATIO = 0.05
_SET_HERE = frozenset(
    {
        "data_path", "checkpoint_path", "resume", "epochs", "max_steps", "table_only_steps", "dataset",
        "eval_interval", "checkpoint_interval", "keep_checkpoints",
    }
)  # fmt: skip


class Adaptation(NamedTuple):
    """An adaptation to some tasks, all of whose input is good."""

    run: Path
    tasks: list[Task]
    request: Request
    """Their dataset."""
    config: TrainConfig
    """Of the training, but for what the plan sets."""
    given: frozenset[str]
    """Settings that the command line gives, which the plan leaves alone."""
    checkpoint: Path | None
    identifiers: Path | None
    asked: Asked
    budget_s: float


def check(options: argparse.Namespace) -> Adaptation:
    """Return what a command line asks for; raise InputError for what cannot be done."""
    checkpoint, overrides = _sorted_words(options.words)
    run: Path = options.out
    if not 0 < options.budget_min <= _MOST_MIN:
        raise InputError(
            f"--budget-min {options.budget_min:g}: must be more than 0, and at most {_MOST_MIN:,}."
        )
    if options.table_share is not None and not 0 <= options.table_share <= 1:
        raise InputError(f"--table-share {options.table_share}: must be from 0 to 1.")
    _refuse_foreign(run)
    if options.tasks.name.endswith((":train", ":evaluation")) and not options.tasks.exists():
        raise InputError(
            f"--tasks {options.tasks}: all tasks of a file are adapted to; leave out what follows its name."
        )
    tasks = list({task.id: task for task in from_path(options.tasks, "evaluation").tasks}.values())
    _refuse_too_large(options.tasks, tasks)
    budget_s = 60 * options.budget_min
    least = least_s(len(tasks) * (1 + options.num_aug))
    if budget_s < least:
        raise InputError(
            f"--budget-min {options.budget_min:g}: too short for anything: to build data of {len(tasks)} tasks with "
            f"{options.num_aug} augmentations and to vote once takes {least / 60:.1f} min or more."
        )
    config, state = _config(options, checkpoint, overrides)
    if config.global_batch_size > MOST_SEQUENCES:
        raise InputError(
            f"global_batch_size={config.global_batch_size:,}: must be at most {MOST_SEQUENCES:,} here."
        )
    _refuse_identifiers(options.identifiers, checkpoint)
    canvas = _canvas(checkpoint, state, config)
    _refuse_all_too_large(options, tasks, canvas)
    arc_options = ArcOptions(num_aug=options.num_aug, holdout="all", canvas=canvas, leaks="keep")
    source = f"{options.tasks}:evaluation"
    request = Request("arc", [source], run / "data", arc_options, _SEED, os.cpu_count() or 1, quiet=True)
    read(request)
    share = options.table_share
    if share is None:
        share = TABLE_SHARE if checkpoint is not None and config.arch.puzzle_emb_width else 0.0
    if share and not config.arch.puzzle_emb_width:
        raise InputError(f"--table-share {share:g}: the model has no puzzle table; leave it out.")
    asked = Asked(
        checkpoint_sha256=None if state is None else state.own_sha256,
        tasks_sha256=content_sha256(tasks),
        num_aug=options.num_aug,
        table_share=share,
        settings=_of_the_result(config),
    )
    known = read_record(run)
    if known is not None:
        refuse_other(run, known.asked, asked)
    return Adaptation(
        run, tasks, request, config, frozenset(word.partition("=")[0].lstrip("+") for word in overrides),
        checkpoint, options.identifiers, asked, budget_s,
    )  # fmt: skip


def _sorted_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the checkpoint, which may be left out, and the settings among the words of a command line."""
    plain = [word for word in words if "=" not in word]
    if len(plain) > 1:
        raise InputError(f"{plain[1]}: one checkpoint is adapted at a time; settings are key=value.")
    return (Path(plain[0]) if plain else None), [word for word in words if "=" in word]


def _refuse_foreign(run: Path) -> None:
    if run.exists() and not run.is_dir():
        raise InputError(f"--out {run}: is no folder; choose one for the run.")
    if run.is_dir() and not (run / FILE).exists() and any(not p.name.startswith(".") for p in run.iterdir()):
        raise InputError(f"--out {run}: holds something else; choose another folder, or an empty one.")


def _refuse_too_large(path: Path, tasks: Sequence[Task]) -> None:
    for task in tasks:
        for number, pair in enumerate(task.tests):
            if max(pair.input.shape) > MAX_GRID_SIDE:
                height, width = pair.input.shape
                raise InputError(
                    f"{path}: task {task.id}: test input {number} is {height} x {width}, but a submission has grids of "
                    f"at most {MAX_GRID_SIDE} x {MAX_GRID_SIDE}; leave the task out."
                )


def _refuse_all_too_large(options: argparse.Namespace, tasks: Sequence[Task], canvas: int) -> None:
    smallest = min(task.largest_side for task in tasks)
    if smallest > canvas:
        whose = "the checkpoint" if options.config is None else f"--config {options.config}"
        raise InputError(
            f"{options.tasks}: no task fits the canvas of {whose}, {canvas} x {canvas}, since the smallest needs "
            f"{smallest}; give a checkpoint of larger ones, or train from scratch: --config configs/adapt/arc.yaml."
        )


def _config(
    options: argparse.Namespace, checkpoint: Path | None, overrides: Sequence[str]
) -> tuple[TrainConfig, "CheckpointState | None"]:
    """Return the settings of the training, and the state of the checkpoint, if one is adapted."""
    if checkpoint is None:
        if options.config is None:
            raise InputError(
                "neither a CHECKPOINT to adapt nor a --config to train from scratch with; give one of them, such as "
                "--config configs/adapt/arc.yaml."
            )
        return _loaded(options.config, overrides, ()), None
    if options.config is not None:
        raise InputError(
            f"--config {options.config}: {checkpoint} has its own settings; leave one of them out (key=value goes over "
            "the checkpoint's)."
        )
    from hrm_dist.checkpoint.reader import read_state

    state = read_state(checkpoint)
    kept = {key: state.config[key] for key in (*_OF_MODEL, *_OF_TRAINING) if key in state.config}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump({**kept, "lr_min_ratio": _LR_MIN_RATIO}), encoding="utf-8")
        try:
            config = _loaded(path, overrides, _OF_MODEL)
        except ConfigError as error:
            raise InputError(str(error).replace(str(path), f"the settings of {checkpoint}")) from None
    if config.dataset is not None:
        raise InputError(
            "dataset: tools.adapt makes the dataset, with the canvas of the checkpoint; leave it out."
        )
    return config, state


def _loaded(path: Path, overrides: Sequence[str], kept: Sequence[str]) -> TrainConfig:
    """Return the configuration of a file with settings over it; raise InputError for those that are not free here."""
    ours = ["data_path=-", "checkpoint_path=-"]
    config = load_config(path, [*ours, *overrides])
    before, now = (flat_settings(one.model_dump(mode="json")) for one in (load_config(path, ours), config))
    for key in before:
        if before[key] == now.get(key):
            continue
        section = key.partition(".")[0]
        if section in _SET_HERE:
            raise InputError(f"{key}={now.get(key)}: is set by tools.adapt itself; leave it out.")
        if section in kept:
            raise InputError(f"{key}={now.get(key)}: the checkpoint is of {before[key]}; leave it out.")
    return config


def _refuse_identifiers(path: Path | None, checkpoint: Path | None) -> None:
    """Raise InputError for names that are not those of a checkpoint's rows."""
    if path is None:
        return
    if checkpoint is None:
        raise InputError(
            f"--identifiers {path}: names rows of a CHECKPOINT, and there is none; leave it out."
        )
    from tools.adapt.start import names_of_rows

    names_of_rows(checkpoint, path)


def _canvas(checkpoint: Path | None, state: "CheckpointState | None", config: TrainConfig) -> int:
    """Return the side of the canvas; raise InputError for a checkpoint of other puzzles."""
    if state is None:
        if config.dataset is None:
            return MAX_GRID_SIDE
        options = config.dataset.options
        if not isinstance(options, ArcOptions):
            raise InputError(
                f"dataset.preset={config.dataset.preset}: --config is of other puzzles than ARC; give one such as "
                "configs/adapt/arc.yaml."
            )
        return options.canvas
    metadata: Mapping[str, Any] = state.dataset["metadata"]
    side = math.isqrt(metadata["seq_len"])
    of_arc = metadata["vocab_size"] == VOCAB_SIZE and metadata["num_puzzle_identifiers"] > 1
    if not of_arc or side**2 != metadata["seq_len"]:
        raise InputError(
            f"{checkpoint}: is of puzzles of {metadata['seq_len']} cells with {metadata['vocab_size']} tokens and "
            f"{metadata['num_puzzle_identifiers']} identifiers, not of ARC; give a checkpoint that was trained on ARC."
        )
    return side


def _of_the_result(config: TrainConfig) -> dict[str, Any]:
    from hrm_dist.checkpoint.config_changes import NOT_IN_THE_RESULT

    settings = flat_settings(config.model_dump(mode="json"))
    return {
        key: value
        for key, value in settings.items()
        if key.partition(".")[0] not in NOT_IN_THE_RESULT | _SET_HERE
    }
