"""A checkpoint's weights to give away: a folder that runs by itself, or one safetensors file under the published names.

Memory stays at about one tensor.
"""

import json
import os
import shutil
from pathlib import Path

import torch

from data_pipeline.base.errors import InputError, unwritable
from data_pipeline.base.files import atomic_write, make_folder, replace_file, sync
from data_pipeline.base.sizes import size_text
from data_pipeline.schema import WINDOWS, load_dataset_info, verify_document
from hrm_dist.checkpoint import reader
from hrm_dist.checkpoint.reader import Checkpoint
from hrm_dist.checkpoint.safetensors_writer import Entry, stream_tensors
from hrm_dist.config import ArchConfig
from hrm_dist.evaluation.load_model import dataset_of_training, refuse_other_windows
from hrm_dist.inference.examples import example_of
from hrm_dist.inference.exported import CONFIG, IDENTIFIERS, WEIGHTS, ExportedModel, file_sha256
from hrm_dist.model.released import published_name
from tools.convert.fit import TABLE
from tools.convert.model_card import CARD, model_card
from tools.convert.weights_file import SUFFIX, identifiers_beside

_OTHER_FORMATS = (".pt", ".pth", ".bin", ".ckpt", ".onnx", ".gguf")
_WHY = "its identifiers.json names the rows of the puzzle table"


def export_weights(
    path: Path,
    out: Path,
    data: Path | None,
    *,
    ema: bool,
    license: str | None = None,
    scores: Path | None = None,
) -> str:
    """Write a file, or else a folder; return a summary.

    license: what the model card says of it; scores: a scores.json of these weights, besides those in the run folder.
    """
    if out.suffix in _OTHER_FORMATS:
        raise InputError(
            f"--out {out}: weights are written in the safetensors format; give a name ending in {SUFFIX}, or a folder."
        )
    opened = reader.open_checkpoint(path)
    ema = ema and opened.has("ema")
    if out.suffix == SUFFIX:
        given = {"--license": license, "--scores": scores}
        for option in (option for option, value in given.items() if value is not None):
            raise InputError(
                f"{option}: is for a model card, which a single file has not; give --out a folder."
            )
        return "\n".join(_write_file(opened, path, out, data, ema))
    return "\n".join(_write_folder(opened, path, out, data, ema, license, scores))


def _write_file(opened: Checkpoint, path: Path, out: Path, data: Path | None, ema: bool) -> list[str]:
    """Write the file and, where there is a puzzle table, the names of its rows; return a summary."""
    has_table = f"model.{TABLE}" in opened.shapes
    identifiers = None
    if has_table:
        folder = dataset_of_training(opened.path, opened.state, data, _WHY)
        identifiers = verify_document(folder, load_dataset_info(folder), "identifiers.json").read_bytes()
    lines = [_write_weights(opened, path, out, ema)]
    if opened.state.config.get("padding") == "skip":
        lines.append(
            "trained with padding=skip, without which these weights are of another model; set it to use them"
        )
    if identifiers is not None:
        replace_file(identifiers_beside(out), identifiers)
        num_rows = opened.shapes[f"model.{TABLE}"][0]
        lines.append(f"{identifiers_beside(out)}: the names of the puzzle table's {num_rows:,} rows")
    return lines


def _write_weights(opened: Checkpoint, path: Path, out: Path, ema: bool) -> str:
    """Write the tensors under their published names; return what was written."""
    names = [key.removeprefix("model.") for key in opened.shapes if key.startswith("model.")]
    source = {
        name: f"ema.{name}" if ema and f"ema.{name}" in opened.shapes else f"model.{name}" for name in names
    }
    entries = [Entry(published_name(name), opened.shapes[source[name]], torch.float32) for name in names]
    metadata = {
        "format": "pt",  # what torch's loaders look for
        "source": source_text(opened, path, ema),
        "arch": json.dumps(opened.state.config["arch"]),
        "dataset": json.dumps(opened.state.dataset["metadata"]),
    }
    if opened.state.config.get("padding") == "skip":
        metadata["padding"] = "skip"
    with atomic_write(out) as file:
        stream_tensors(file, entries, (opened.tensor(key) for key in source.values()), metadata)
    weights = "ema" if ema else "raw"
    return f"{out}: {len(entries)} tensors ({weights} weights), {size_text(out.stat().st_size)}"


def source_text(opened: Checkpoint, path: Path, ema: bool) -> str:
    """Return which weights these are."""
    return f"hrm-dist {reader.identity(path)}, {'ema' if ema else 'raw'} weights, step {opened.state.step}"


# A folder


def _write_folder(
    opened: Checkpoint,
    path: Path,
    out: Path,
    data: Path | None,
    ema: bool,
    license: str | None,
    scores: Path | None,
) -> list[str]:
    """Write a folder that runs by itself, whole or not at all; return a summary."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out {out}: is there already; choose another name, or delete it.")
    dataset = dataset_of_training(opened.path, opened.state, data, "its puzzles belong into the folder")
    card = model_card(opened, path, out.resolve().name, dataset, ema=ema, license=license, scores=scores)
    draft = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.tmp")
    try:
        make_folder(draft)
        lines = _fill(opened, path, draft, dataset, ema)
        replace_file(draft / CARD, card.encode())
        draft.replace(out.resolve())
        sync(out.resolve().parent)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return [line.replace(str(draft), str(out)) for line in lines] + [
        f"{out / CARD}: a model card; look at it before you give it away, since it names your command"
    ]


def _fill(opened: Checkpoint, path: Path, folder: Path, dataset: Path, ema: bool) -> list[str]:
    """Write all but the card; config.json, which has the digests, comes last."""
    state, info = opened.state, load_dataset_info(dataset)
    identifiers = verify_document(dataset, info, "identifiers.json").read_bytes()
    lines = [_write_weights(opened, path, folder / WEIGHTS, ema)]
    replace_file(folder / IDENTIFIERS, identifiers)
    written = [WEIGHTS, IDENTIFIERS]
    skips_padding = state.config.get("padding") == "skip"
    if skips_padding:
        refuse_other_windows(opened.path, state, dataset, info)
        replace_file(folder / WINDOWS, verify_document(dataset, info, WINDOWS).read_bytes())
        written.append(WINDOWS)
    exported = ExportedModel(
        kind=info.kind,
        canvas=info.canvas,
        metadata=info.metadata("train"),
        arch=ArchConfig.model_validate(state.config["arch"]),
        padding="skip" if skips_padding else "keep",
        source=source_text(opened, path, ema),
        dataset_sha256=state.dataset["sha256"],
        example=example_of(dataset, info, json.loads(identifiers)),
        sha256={name: file_sha256(folder / name) for name in written},
    )
    replace_file(folder / CONFIG, f"{exported.model_dump_json(indent=1)}\n".encode())
    lines.append(f"{folder / CONFIG}: what it takes to run them, with {', '.join(written[1:])}")
    return lines
