"""Settings that changed while a run trained, and their record.

Which they are, and whether they matter to what is trained.

config_changes.jsonl in the run folder has a line for each start that changed settings:
  {"step": 400, "changes": {"lr": [0.0001, 5e-05]}}    steps after 400 were trained with the second value
config.yaml holds the last values, so the two tell the settings of every step. What may change, every setting has
declared here.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.base import jsonl
from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from hrm_dist.config import TrainConfig, flat_settings

FILE = "config_changes.jsonl"

FIXED = frozenset({"arch", "precision", "global_batch_size", "seed"})
"""Settings (or sections) that may not change: a resumed run goes through the same batches with the same carry."""

OF_THE_RESULT = frozenset(
    {
        "epochs", "lr", "lr_min_ratio", "lr_warmup_steps", "beta1", "beta2", "weight_decay", "puzzle_emb_lr",
        "puzzle_emb_weight_decay", "table_only_steps", "ema", "ema_rate", "padding",
    }
)  # fmt: skip
"""Settings that may change as long as steps remain, which are then trained with the new values. A finished run would
have been another with these."""

NOT_IN_THE_RESULT = frozenset(
    {
        # where data and outputs are; what the data is, is compared by content
        "data_path", "dataset", "checkpoint_path", "project_name", "run_name", "wandb_mode", "tensorboard",
        "resume",
        # how far the run goes, when it saves and when it gives up
        "max_steps", "checkpoint_interval", "keep_checkpoints", "async_checkpoint", "save_carry", "max_skipped_updates",
        "timeout_s",
        # what is computed where: the same up to rounding
        "engine", "gather_unit", "gradient_accumulation_steps", "activation_checkpointing", "puzzle_emb_shard",
        "puzzle_emb_device", "device", "compile", "cuda_graph", "attention", "fused_swiglu", "num_threads",
        # what is measured along the way
        "log_interval", "eval_interval", "eval_max_groups", "eval_num_aug", "eval_batch_size",
    }
)  # fmt: skip
"""Settings (or sections) that change nothing of the trained weights, and may have any value at any time."""

Changes = Mapping[str, tuple[Any, Any]]
"""Dotted key -> old and new value, as in JSON."""


class Change(NamedTuple):
    """A line of the record."""

    step: int
    """The last step that was trained with the old values."""
    changes: Changes


def changed_settings(then: Mapping[str, Any], now: TrainConfig) -> Changes:
    """Return what is not as in the configuration `then` of a checkpoint.

    A setting that the checkpoint does not know, since it is older, had its default value.
    """
    defaults = flat_settings(TrainConfig(data_path="-").model_dump(mode="json"))
    old, new = defaults | flat_settings(then), flat_settings(now.model_dump(mode="json"))
    keys = [*new, *(key for key in old if key.startswith("dataset.") and key not in new)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def of_the_result(changes: Changes) -> Changes:
    """Return those that matter to the trained weights."""
    return {key: values for key, values in changes.items() if _section(key) not in NOT_IN_THE_RESULT}


def fixed(changes: Changes) -> Changes:
    """Return those that no run can make."""
    return {key: values for key, values in changes.items() if _section(key) in FIXED}


def _section(key: str) -> str:
    return key.partition(".")[0]


def described(changes: Changes) -> str:
    """Return `key: old -> new` of each, in one line."""
    return "; ".join(f"{key}: {json.dumps(old)} -> {json.dumps(new)}" for key, (old, new) in changes.items())


def record(run_dir: Path, step: int, then: Mapping[str, Any], changes: Changes) -> None:
    """Note what changes at a step, at which a run begins, or resumes from a checkpoint with the configuration `then`.

    Drop lines about steps that the run has been rewound from, or that no checkpoint ever had.
    """
    path = run_dir / FILE
    settings = flat_settings(then)
    lines = [
        line
        for line in read(path)
        if line.step < step
        or (line.step == step and all(settings.get(key) == new for key, (_, new) in line.changes.items()))
    ]
    if changes and step > 0:  # no step was trained with what was there before the first
        lines.append(Change(step, changes))
    if lines or path.exists():
        replace_file(path, "".join(f"{json.dumps(line._asdict())}\n" for line in lines).encode())


def read(path: Path) -> list[Change]:
    """Read a record, empty where there is no file; lines that are damaged are left out."""
    try:
        values = jsonl.read(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); look at its rights.") from error
    lines: list[Change] = []
    for value in values:
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            changes = {key: (old, new) for key, (old, new) in value["changes"].items()}
            lines.append(Change(int(value["step"]), changes))
    return lines
