"""A folder to give away: what a model needs to run without its dataset and its run.

DIR/config.json          ExportedModel: what model it is, of which puzzles, and the sha256 of the other files
    model.safetensors    weights under the published names, and the puzzle table
    identifiers.json     list: row of the puzzle table -> puzzle name
    windows.json         only of a model that was trained with padding=skip; see data_pipeline.windows
    README.md            a model card, which nothing reads

`tools.convert export` writes it. No file holds anything but numbers and text.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from data_pipeline.base.errors import InputError, unreadable
from data_pipeline.base.models import Strict, reason_of
from data_pipeline.schema import WINDOWS, DatasetMetadata
from data_pipeline.windows import Windows
from hrm_dist.config import ArchConfig
from hrm_dist.evaluation.load_model import arch_to_predict, ready_to_predict
from hrm_dist.model.act import ACTModel
from hrm_dist.model.released import convert_released

FORMAT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
IDENTIFIERS = "identifiers.json"
_REMEDY = "get the folder again, whole, or export the model again with `python -m tools.convert export`"

Example = list[str] | dict[str, list[list[list[int]]]]
"""A puzzle to try: rows of text, or of ARC the test inputs of a task by its name."""


class ExportedModel(Strict):
    """The content of config.json."""

    format_version: Literal[1] = FORMAT_VERSION
    kind: str
    """Of the puzzles; see data_pipeline.kinds."""
    canvas: int = Field(ge=1)
    """Side of a grid, with its padding."""
    metadata: DatasetMetadata
    """Of the training split."""
    arch: ArchConfig
    padding: Literal["keep", "skip"] = "keep"
    source: str
    """The checkpoint, by name and digest, and which of its weights."""
    dataset_sha256: str
    """Of the dataset of training, as checkpoints have it."""
    example: Example
    sha256: dict[str, str]
    """Of the other files but README.md."""


def is_exported(folder: Path) -> bool:
    """Return whether a folder is one to give away, be it whole or not."""
    return any((folder / name).is_file() for name in (CONFIG, WEIGHTS))


def read_exported(folder: Path) -> ExportedModel:
    """Read config.json; raise InputError where it, or a file that it lists, is damaged or of a later version."""
    path = folder / CONFIG
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, not JSON ({error}); {_REMEDY}.") from None
    version = cast("dict[str, object]", content).get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        later = isinstance(version, int) and version > FORMAT_VERSION
        remedy = "use the release of hrm-dist that wrote it, or a later one" if later else _REMEDY
        raise InputError(
            f"{path}: format_version {version!r} is not {FORMAT_VERSION}, which this release reads; {remedy}."
        )
    try:
        exported = ExportedModel.model_validate(content)
    except ValidationError as error:
        raise InputError(
            f"{path}: {reason_of(error)}; {_REMEDY}, or use the release of hrm-dist that wrote it."
        ) from None
    for name in (WEIGHTS, IDENTIFIERS, *([WINDOWS] if exported.padding == "skip" else [])):
        if file_sha256(folder / name) != exported.sha256.get(name):
            raise InputError(f"{folder / name}: damaged, its sha256 is not the one in {CONFIG}; {_REMEDY}.")
    return exported


def file_sha256(path: Path) -> str:
    """Return a file's digest; raise InputError if it is missing or unreadable."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise unreadable(path, error) from None


def load_exported(
    folder: Path, exported: ExportedModel, device: torch.device, overrides: Mapping[str, object]
) -> ACTModel:
    """Return the model in evaluation mode; overrides: fields of its architecture that shall not be as in training."""
    windows = None
    if exported.padding == "skip":
        windows = torch.from_numpy(_windows(folder / WINDOWS, exported))
    model = ACTModel(
        arch_to_predict(exported.arch.model_dump(), overrides), exported.metadata, windows=windows
    )
    path = folder / WEIGHTS
    try:
        model.load_state_dict(convert_released(load_file(path)))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: unreadable ({error}); {_REMEDY}.") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: is of another model than {CONFIG} says ({reason}); {_REMEDY}.") from None
    return ready_to_predict(model, device)


def read_names(folder: Path, exported: ExportedModel) -> list[str]:
    """Return the puzzle names of the table's rows."""
    path = folder / IDENTIFIERS
    names: Any = json.loads(_read(path))
    if not isinstance(names, list) or len(names) != exported.metadata.num_puzzle_identifiers:
        raise InputError(
            f"{path}: is no list of the {exported.metadata.num_puzzle_identifiers:,} puzzles of {CONFIG}; {_REMEDY}."
        )
    return cast("list[str]", names)


def _windows(path: Path, exported: ExportedModel) -> Any:
    try:
        windows = Windows.model_validate_json(_read(path))
    except ValidationError as error:
        raise InputError(f"{path}: {reason_of(error)}; {_REMEDY}.") from None
    table = windows.table()
    if len(table) != exported.metadata.num_puzzle_identifiers:
        raise InputError(f"{path}: is of {len(table):,} puzzles, which are not those of {CONFIG}; {_REMEDY}.")
    return table


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _missing(path: Path) -> InputError:
    return InputError(f"{path}: missing, so the model cannot be run; {_REMEDY}.")
