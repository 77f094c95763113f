"""Published weights as a checkpoint of step 0, to evaluate or to start training from."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.arc.augment import augmentation_name, parse_name
from data_pipeline.base.errors import InputError
from data_pipeline.base.files import replace_file
from data_pipeline.schema import load_dataset_info, verify_document
from hrm_dist.checkpoint import reader
from hrm_dist.checkpoint.writer import CheckpointWriter
from hrm_dist.config import TrainConfig, load_config, to_yaml
from hrm_dist.inference.exported import WEIGHTS, read_exported
from hrm_dist.metrics import MetricSums
from hrm_dist.model.act import ACTModel
from hrm_dist.model.released import published_name
from hrm_dist.tensor_shards import is_finite, replicated
from tools.convert.fit import TABLE, problems
from tools.convert.weights_file import identifiers_beside, read_weights
from tools.vote import read_identifiers

UNMATCHED = -1
_BLOCK_ROWS = 2**14


def import_weights(given: argparse.Namespace) -> str:
    """Write the run folder that the command line asks for; return a summary. Nothing is written if anything misfits."""
    if os.path.lexists(given.out / "checkpoints" / "latest"):
        raise InputError(
            f"--out {given.out}: already holds a run; choose another folder, or delete this one."
        )
    info = load_dataset_info(given.data)
    metadata = info.metadata("train")
    folders = [f"data_path={given.data}", f"checkpoint_path={given.out}"]
    config = load_config(given.config, [*given.overrides, *folders])
    if given.weights.is_dir():
        read_exported(given.weights)  # which verifies its files
        given.weights = given.weights / WEIGHTS
    tensors, found_in = read_weights(given.weights)
    with torch.device("meta"):
        expected = ACTModel(config.arch, metadata).state_dict()
    misfits = problems(_shapes(tensors), _shapes(expected), metadata.seq_len)
    if misfits:
        raise InputError("\n".join(f"{given.weights}: {misfit}" for misfit in misfits))
    _refuse_lost_numbers(given.weights, tensors)
    lines = [f"{len(tensors)} tensors of {given.weights}{f' ({found_in})' if found_in else ''}"]
    if TABLE in tensors:
        ours = read_identifiers(verify_document(given.data, info, "identifiers.json"))
        published = _row_names(given, len(tensors[TABLE]), ours)
        source = match_rows(published, ours)
        tensors[TABLE] = take_rows(tensors[TABLE], source, use_mean=given.unmatched == "mean")
        lines.append(_match_summary(source, len(published), given.unmatched))
        if not (source[1:] != UNMATCHED).any():  # the first is the blank one
            print(
                f"warning: the weights know no puzzle of {given.data}: good to train from, but not to evaluate",
                file=sys.stderr,
            )
    write_step_0(given.out, config, reader.dataset_identity(given.data, metadata), tensors)
    lines.append(f"{given.out / 'checkpoints' / 'latest'}: step 0, to evaluate or to train from")
    return "\n".join(lines)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _refuse_lost_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError unless every value is a finite number: others spoil all that is computed with them."""
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        count = sum(int((~block.isfinite()).sum()) for block in tensors[bad[0]].split(_BLOCK_ROWS))
        more = f" (and {len(bad) - 1} more tensors)" if bad[1:] else ""
        raise InputError(
            f"{path}: {published_name(bad[0])} has {count:,} values that are no finite numbers (NaN or infinite)"
            f"{more}, so the model can neither predict nor train; give weights from before they were lost."
        )


# The puzzle table


def _row_names(given: argparse.Namespace, num_rows: int, ours: Sequence[str]) -> Sequence[str]:
    """Return the puzzle that each row of the published table belongs to."""
    if given.same_identifiers:
        if num_rows != len(ours):
            raise InputError(
                f"--same-identifiers: {given.weights} has {num_rows:,} rows of puzzles, {given.data} has {len(ours):,} "
                "identifiers, so they are not the same; give --identifiers."
            )
        return ours
    beside = identifiers_beside(given.weights)
    path = given.identifiers or (beside if beside.exists() else None)
    if path is None:
        raise InputError(
            f"{given.weights}: has {num_rows:,} rows of puzzles, and nothing says of which; give --identifiers, the "
            "identifiers.json of the data it was trained on, or --same-identifiers if that data is --data."
        )
    names = read_identifiers(path)
    if len(names) != num_rows:
        raise InputError(
            f"{path}: names {len(names):,} puzzles, {given.weights} has {num_rows:,} rows of puzzles; give the "
            "identifiers.json of the data that the weights were trained on."
        )
    return names


def match_rows(published: Sequence[str], ours: Sequence[str]) -> NDArray[np.int64]:
    """Return for each of our puzzles the published row of the same name, or UNMATCHED; [ours]."""
    row_of = {_spelled_as_ours(name): row for row, name in reversed(list(enumerate(published)))}
    return np.array([row_of.get(_spelled_as_ours(name), UNMATCHED) for name in ours], dtype=np.int64)


def _spelled_as_ours(name: str) -> str:
    return augmentation_name(*parse_name(name))


def take_rows(table: Tensor, source: NDArray[np.int64], *, use_mean: bool) -> Tensor:
    """Return the rows that `source` names; where it is UNMATCHED zeros, or the mean of all rows but the blank one's."""
    index = torch.from_numpy(source)
    rows = table[index.clamp_min(0)]
    filler = torch.zeros(())
    if use_mean:
        trained = table[1:] if len(table) > 1 else table
        # Summed up in float64, of which there is never more than a block of the table.
        sums = [block.sum(0, dtype=torch.float64) for block in trained.split(_BLOCK_ROWS)]
        filler = torch.stack(sums).sum(0) / len(trained)
    rows[index == UNMATCHED] = filler.to(rows.dtype)
    return rows


def _match_summary(source: NDArray[np.int64], num_published: int, unmatched: str) -> str:
    num_matched = np.count_nonzero(source != UNMATCHED)
    num_used = len(np.unique(source[source != UNMATCHED]))
    fate = "are zero" if unmatched == "zero" else "have the mean of the published rows"
    return (
        f"puzzle table: {num_matched:,} of {len(source):,} rows matched by name, {len(source) - num_matched:,} {fate}; "
        f"{num_published - num_used:,} of {num_published:,} published rows are unused"
    )


# The checkpoint


def write_step_0(
    out: Path, config: TrainConfig, dataset: dict[str, object], tensors: Mapping[str, Tensor]
) -> None:
    """Write a run folder: the weights, by our names, and no optimizer state, which begins with zeros."""
    state = reader.CheckpointState(
        format=reader.FORMAT,
        step=0,
        num_updates=0,
        world_size=1,
        config=config.model_dump(mode="json"),
        dataset=dataset,
        environment={},
        metric_sums=MetricSums(torch.device("cpu")).values.tolist(),
        best_score=None,
    )
    try:
        writer = CheckpointWriter(out / "checkpoints", keep=1, in_background=False)
        writer.write(state, [replicated(f"model.{name}", tensor) for name, tensor in tensors.items()])
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot be written ({error.strerror or error}); choose another folder."
        ) from error
    replace_file(out / "config.yaml", to_yaml(config).encode())
