"""A checkpoint's weights as a safetensors file under the published names. Memory stays at about one tensor."""

import json
from pathlib import Path

import torch

from data_pipeline.base.errors import InputError
from data_pipeline.base.files import atomic_write, replace_file
from data_pipeline.base.sizes import size_text
from data_pipeline.schema import load_dataset_info, verify_document
from hrm_dist.checkpoint import reader
from hrm_dist.checkpoint.reader import Checkpoint
from hrm_dist.checkpoint.safetensors_writer import Entry, stream_tensors
from hrm_dist.model.released import published_name
from tools.convert.fit import TABLE

SUFFIX = ".safetensors"


def identifiers_beside(weights: Path) -> Path:
    """Return where an export puts the names of the puzzle table's rows."""
    return weights.with_name(f"{weights.name.removesuffix(SUFFIX)}.identifiers.json")


def export_weights(path: Path, out: Path, data: Path | None, *, ema: bool) -> str:
    """Write the file and, where there is a puzzle table, the names of its rows; return a summary."""
    if out.suffix != SUFFIX:
        raise InputError(
            f"--out {out}: the file is of the safetensors format; give a name that ends in {SUFFIX}."
        )
    opened = reader.open_checkpoint(path)
    ema = ema and opened.has("ema")
    names = [key.removeprefix("model.") for key in opened.shapes if key.startswith("model.")]
    source = {
        name: f"ema.{name}" if ema and f"ema.{name}" in opened.shapes else f"model.{name}" for name in names
    }
    identifiers = _identifiers(opened, data) if TABLE in names else None
    entries = [Entry(published_name(name), opened.shapes[source[name]], torch.float32) for name in names]
    weights = "ema" if ema else "raw"
    metadata = {
        "format": "pt",  # what torch's loaders look for
        "source": f"hrm-dist {reader.identity(path)}, {weights} weights, step {opened.state.step}",
        "arch": json.dumps(opened.state.config["arch"]),
        "dataset": json.dumps(opened.state.dataset["metadata"]),
    }
    if skips_padding := opened.state.config.get("padding") == "skip":
        metadata["padding"] = "skip"
    with atomic_write(out) as file:
        stream_tensors(file, entries, (opened.tensor(key) for key in source.values()), metadata)
    if identifiers is not None:
        replace_file(identifiers_beside(out), identifiers)
    lines = [f"{out}: {len(entries)} tensors ({weights} weights), {size_text(out.stat().st_size)}"]
    if skips_padding:
        lines.append(
            "trained with padding=skip, without which these weights are of another model; set it to use them"
        )
    if identifiers is not None:
        lines.append(
            f"{identifiers_beside(out)}: the names of the puzzle table's {opened.shapes[source[TABLE]][0]:,} rows"
        )
    return "\n".join(lines)


def _identifiers(opened: Checkpoint, data: Path | None) -> bytes:
    """Return the content of the training dataset's identifiers.json."""
    folder = data or Path(opened.state.config["data_path"])
    if not (folder / "dataset.json").exists():
        raise InputError(
            f"{folder}: no dataset here, and its identifiers.json names the rows of the puzzle table; give the dataset "
            "of the training with --data."
        )
    info = load_dataset_info(folder)
    if reader.dataset_identity(folder, info.metadata("train")) != opened.state.dataset:
        raise InputError(
            f"{folder}: is not the dataset that {opened.path} was trained on, so its identifiers.json names other "
            "puzzles; give the dataset of the training with --data."
        )
    return verify_document(folder, info, "identifiers.json").read_bytes()
