"""Checkpoints: everything a run needs to go on, whole or not at all.

    checkpoints/step_N/state.json              step, configuration, versions, sha256 of every other file
                       model.safetensors       weights, initial states, puzzle table
                       ema.safetensors         averaged weights, where the run keeps them
                       optimizer.safetensors   moments of every weight
                       rank_00000.safetensors  that rank's slice of the carry, and its random state
    checkpoints/latest -> step_N,  checkpoints/best -> step_M

A checkpoint is written under a temporary name, synced, and renamed; links move only to complete ones.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_pipeline.errors import InputError
from data_pipeline.schema import DatasetMetadata
from data_pipeline.writer import sync
from hrm_dist import distributed
from hrm_dist.config import ArchConfig
from hrm_dist.model.act import ACTModel

FORMAT = 1
_STATE = "state.json"
_STEP_DIR = re.compile(r"step_(\d+)")


class CheckpointState(BaseModel):
    """The content of state.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    format: int
    step: int
    world_size: int
    config: dict[str, Any]
    dataset: dict[str, Any]
    """What the run was trained on: metadata, and the digest of its files."""
    environment: dict[str, str | int | bool]
    """What bit-for-bit equality depends on: versions, threads, device."""
    metric_sums: list[float]
    best_score: float | None
    sha256: dict[str, str]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(
    folder: Path,
    state: CheckpointState,
    shared: Mapping[str, Mapping[str, Tensor]],
    own: Mapping[str, Tensor],
    names: Sequence[str] = ("latest",),
) -> Path:
    """Write a checkpoint from all ranks and point the links `names` to it; gives its final folder.

    shared: file stem -> tensors, the same on every rank, written by the main one; own: this rank's tensors.
    """
    final = folder / f"step_{state.step}"
    temporary = folder / f".step_{state.step}.tmp"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step_*"):
            shutil.rmtree(leftover)
        temporary.mkdir()

    distributed.on_main(prepare)
    files = dict(shared) if distributed.is_main() else {}
    files[f"rank_{distributed.rank():05d}"] = own
    digests: dict[str, str] = {}
    for stem, tensors in files.items():
        path = temporary / f"{stem}.safetensors"
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)
        path.chmod(0o666 & ~_umask())  # safetensors writes 0600, which shuts out the rest of a group
        sync(path)
        digests[path.name] = _sha256(path)
    all_digests = {
        name: digest for part in distributed.gather_objects(digests) for name, digest in part.items()
    }

    def finish() -> None:
        path = temporary / _STATE
        path.write_text(state.model_copy(update={"sha256": all_digests}).model_dump_json(indent=1))
        sync(path)
        sync(temporary)
        if final.exists():  # the run was set back to an earlier step and came here again
            _remove(final)
        temporary.rename(final)
        sync(folder)
        for name in names:
            link(folder / name, final)

    distributed.on_main(finish)
    return final


def link(name: Path, target: Path) -> None:
    """Point a link such as `latest` to a sibling folder, in one atomic step."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, name)
    sync(name.parent)


def _remove(path: Path) -> None:
    # Renamed first: a half-deleted folder must not look like a checkpoint.
    doomed = path.with_name(f".{path.name}.deleted")
    path.rename(doomed)
    shutil.rmtree(doomed)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the last `keep` checkpoints up to `latest`, and those that `latest` and `best` point to.

    What lies beyond `latest` was left by a run that was then set back; it is in nobody's way.
    """
    latest = (folder / "latest").resolve()
    linked = {latest, (folder / "best").resolve()}
    steps = sorted((int(m[1]), p) for p in folder.iterdir() if (m := _STEP_DIR.fullmatch(p.name)))
    newest = int(latest.name.removeprefix("step_"))
    for _, path in [(step, path) for step, path in steps if step <= newest][:-keep]:
        if path.resolve() not in linked:
            _remove(path)


def read_state(path: Path) -> CheckpointState:
    """The state of a checkpoint, after verifying every file it lists.

    Raises InputError naming the file when anything is missing, damaged, or of another format.
    """
    remedy = "choose another checkpoint, e.g. a step_N folder beside it, or start over with resume=never."
    if not path.is_dir():
        raise InputError(
            f"{path}: no checkpoint here (a checkpoint is a folder such as runs/x/checkpoints/latest)."
        )
    try:
        content = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise InputError(
                f"{path / _STATE}: format {content.get('format')!r}, this version reads {FORMAT}; {remedy}"
            )
        state = CheckpointState.model_validate(content)
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(
            f"{path / _STATE}: unreadable ({reason}); the checkpoint is damaged: {remedy}"
        ) from error
    for name, digest in state.sha256.items():
        file = path / name
        if not file.is_file():
            raise InputError(
                f"{file}: missing, though {_STATE} lists it; the checkpoint is damaged: {remedy}"
            )
        if _sha256(file) != digest:
            raise InputError(f"{file}: its sha256 is not the one in {_STATE}; the file is damaged: {remedy}")
    return state


def read_tensors(path: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of one file of a verified checkpoint, on the CPU."""
    file = path / f"{stem}.safetensors"
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: unreadable ({error}); choose another checkpoint.") from error


def read_own(path: Path, state: CheckpointState, rank: int, world_size: int) -> dict[str, Tensor]:
    """This rank's rows of what the ranks of the saved run wrote, re-sliced when their number differs.

    Tensors of a name are joined along their first dimension. The random state goes only with an equal
    number of ranks.
    """
    if state.world_size == world_size:
        return read_tensors(path, f"rank_{rank:05d}")
    parts = [read_tensors(path, f"rank_{r:05d}") for r in range(state.world_size)]
    names = [name for name in parts[0] if name.startswith("carry.")]
    whole = {name: torch.cat([part[name] for part in parts]) for name in names}
    return {name: tensor.tensor_split(world_size)[rank] for name, tensor in whole.items()}


def dataset_identity(data_path: Path, metadata: DatasetMetadata) -> dict[str, Any]:
    """What makes two datasets the same for a model: sizes, and the digest of what lists their content."""
    digest = hashlib.sha256()
    for name in ("dataset.json", "train/index.json"):
        digest.update((data_path / name).read_bytes())
    return {"metadata": metadata.model_dump(mode="json"), "sha256": digest.hexdigest()}


def load_model(path: Path, data_path: Path, metadata: DatasetMetadata, *, average: bool) -> ACTModel:
    """The model of a checkpoint for prediction, with its averaged weights if asked for and kept.

    Raises InputError if the dataset is not the one of training: identifiers would mean other puzzles.
    """
    state = read_state(path)
    if state.dataset != dataset_identity(data_path, metadata):
        raise InputError(
            f"{path}: was trained on another dataset than {data_path}, so puzzle identifiers and embeddings do not "
            "belong together; give --data the dataset of the training."
        )
    model = ACTModel(ArchConfig.model_validate(state.config["arch"]), metadata)
    tensors = read_tensors(path, "model")
    if average and "ema.safetensors" in state.sha256:
        tensors |= read_tensors(path, "ema")
    model.load_state_dict(tensors)
    return model.eval()


def identity(path: Path) -> str:
    """A short name of a checkpoint's exact content, to tell whose predictions are whose."""
    return f"{path.resolve().name}-{_sha256(path / _STATE)[:12]}"
