"""The run folder at its beginning: with a checkpoint its weights, the puzzle table's rows taken over by name."""

import json
from pathlib import Path

import torch

from data_pipeline.arc.json_format import read_json
from data_pipeline.base.errors import InputError
from data_pipeline.schema import load_dataset_info, verify_document
from hrm_dist.checkpoint.reader import Checkpoint, dataset_identity, open_checkpoint
from hrm_dist.config import TrainConfig
from hrm_dist.model.act import ACTModel
from tools.convert.fit import TABLE, problems
from tools.convert.import_ import UNMATCHED, match_rows, take_rows, write_step_0
from tools.vote import read_identifiers


def start_from(checkpoint: Path, identifiers: Path | None, config: TrainConfig) -> str:
    """Write step 0 of a run with the weights of a checkpoint, averaged ones where it has them; return a summary.

    Rows of the puzzle table go to the puzzles of their names; all others get the mean of the trained rows.
    """
    opened = open_checkpoint(checkpoint)
    data, run = Path(config.data_path), Path(config.checkpoint_path)
    info = load_dataset_info(data)
    metadata = info.metadata("train")
    tensors = opened.tensors("model") | opened.tensors("ema")
    with torch.device("meta"):
        expected = ACTModel(config.arch, metadata).state_dict()
    found, wanted = ({name: tuple(t.shape) for name, t in some.items()} for some in (tensors, expected))
    if misfits := problems(found, wanted, metadata.seq_len):
        raise InputError(f"{checkpoint}: does not fit these tasks: {misfits[0]}")
    summary = "the model has no puzzle table"
    if TABLE in tensors:
        known = _names_of_data(opened) if identifiers is None else names_of_rows(checkpoint, identifiers)
        ours = read_identifiers(verify_document(data, info, "identifiers.json"))
        source = match_rows(known, ours)
        tensors[TABLE] = take_rows(tensors[TABLE], source, use_mean=True)
        num_matched = int((source[1:] != UNMATCHED).sum())  # the first is the blank one
        summary = (
            f"of {len(ours) - 1:,} puzzles the checkpoint knows {num_matched:,}; the others begin with the mean of its "
            "rows"
        )
    write_step_0(run, config, dataset_identity(data, metadata), tensors)
    return summary


def names_of_rows(checkpoint: Path, identifiers: Path) -> list[str]:
    """Return the puzzle of each row of a checkpoint's table by a file; raise InputError if it is not of these rows."""
    shape = open_checkpoint(checkpoint).shapes.get(f"model.{TABLE}")
    if shape is None:
        raise InputError(f"--identifiers {identifiers}: {checkpoint} has no puzzle table; leave it out.")
    remedy = "give the identifiers.json of the data that the checkpoint was trained on"
    names = read_json(identifiers, remedy)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"--identifiers {identifiers}: is no list of names; {remedy}.")
    if len(names) != shape[0]:
        raise InputError(
            f"--identifiers {identifiers}: names {len(names):,} puzzles, but {checkpoint} has {shape[0]:,} rows; "
            f"{remedy}."
        )
    return names


def _names_of_data(opened: Checkpoint) -> list[str]:
    """Return the puzzle of each row, if the data of a checkpoint is where it was; else none of them."""
    trained_on = Path(str(opened.state.config.get("data_path")))
    try:
        info = load_dataset_info(trained_on)
        if dataset_identity(trained_on, info.metadata("train")) == opened.state.dataset:
            names: list[str] = json.loads(verify_document(trained_on, info, "identifiers.json").read_bytes())
            return names
    except (InputError, OSError):
        pass
    return []
