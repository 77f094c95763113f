"""Read checkpoints: everything a run needs to resume, whole or not at all.

They are written by any engine and read by any other.

    checkpoints/step_N/state.json                    step, configuration, versions, where each tensor is, sha256
                       model-00000.safetensors       rank 0's share of weights, initial states, puzzle table
                       ema-00000.safetensors         of the averaged weights, where the run keeps them
                       optimizer-00000.safetensors   of the moments of every weight
                       rank-00000.safetensors        rank 0's slice of the carry, and its random state
                       model-00001.safetensors ...   the same of rank 1, and so on
    checkpoints/latest -> step_N,  checkpoints/best -> step_M     links, or files that hold the name (pointer.py)

A rank's share is a number of tensors, or of ranges of flattened tensors, named `NAME[START:STOP]`. A checkpoint is
written under a temporary name, synced, and renamed; links move only to complete ones (writer.py).
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipeline.base.errors import InputError
from data_pipeline.base.models import Strict, reason_of
from data_pipeline.schema import DatasetMetadata, dataset_sha256
from hrm_dist.checkpoint import pointer
from hrm_dist.checkpoint.pointer import STEP_DIR
from hrm_dist.distributed import collectives
from hrm_dist.tensor_shards import is_finite

FORMAT = 2
STATE_FILE = "state.json"

_STEM_OF_KIND = {
    "model": "model", "ema": "ema", "exp_avg": "optimizer", "exp_avg_sq": "optimizer",
    "carry": "rank", "rank": "rank",
}  # fmt: skip
_REMEDY = "choose another checkpoint, such as a step_N folder beside it, or start over in another folder."


class StoredRange(NamedTuple):
    """Elements start..stop-1 of a flattened tensor, and the file that has them."""

    file: str
    start: int
    stop: int


class TensorEntry(Strict):
    """A tensor of a checkpoint: its shape, and the stored ranges (`parts`) of its elements, in order."""

    shape: tuple[int, ...]
    parts: tuple[StoredRange, ...]


class CheckpointState(Strict):
    """The content of state.json."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    format: int
    step: int
    num_updates: int
    """Updates made: `step` without those that were skipped because something was not finite."""
    world_size: int
    config: dict[str, Any]
    dataset: dict[str, Any]
    """What the run was trained on: metadata, and the digest of its files."""
    environment: dict[str, str | int | bool]
    """What bit-for-bit equality depends on: versions, threads, device."""
    metric_sums: list[float]
    """Over all ranks, since the last logged row; each rank's own are in its file."""
    metric_names: tuple[str, ...] = ()
    """What they are sums of."""
    best_score: float | None
    evaluation_is_due: bool = False
    """Whether a signal stopped the evaluation of this step, so that it is the first thing to do."""
    tensors: dict[str, TensorEntry] = Field(default_factory=dict)
    """By `KIND.NAME`; see hrm_dist/tensor_shards.py."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """Of every other file."""
    own_sha256: str = ""
    """Of all the rest of this content."""

    def digest(self) -> str:
        """Return what `own_sha256` has to be; fields that an older file does not have do not count."""
        rest = self.model_copy(update={"own_sha256": ""})
        return hashlib.sha256(rest.model_dump_json(exclude_unset=True).encode()).hexdigest()


def file_of(kind: str, rank: int) -> str:
    """Return the file to which a rank writes tensors of a kind."""
    return f"{_STEM_OF_KIND[kind]}-{rank:05d}.safetensors"


def name_in_file(key: str, stored: StoredRange, shape: Sequence[int]) -> str:
    """Return the name of a range in its file: plain where it is the whole tensor of a model or of its average."""
    kind, name = key.split(".", 1)
    plain = name if kind in ("model", "ema") else key
    is_whole = stored.stop - stored.start == torch.Size(shape).numel()
    return plain if is_whole else f"{plain}[{stored.start}:{stored.stop}]"


class Checkpoint:
    """Read any range of any tensor of a complete checkpoint; files are mapped, not loaded."""

    def __init__(self, path: Path, state: CheckpointState) -> None:
        self.path, self.state = path, state
        self._opened = functools.cache(lambda name: safe_open(path / name, framework="pt"))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by `KIND.NAME`."""
        return {key: entry.shape for key, entry in self.state.tensors.items()}

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return elements start..stop-1 of a flattened tensor."""
        entry = self._entry(key)
        stop = torch.Size(entry.shape).numel() if stop is None else stop
        found: list[Tensor] = []
        for stored in entry.parts:
            first, last = max(start, stored.start), min(stop, stored.stop)
            if first < last:
                tensor = self._stored(stored.file, name_in_file(key, stored, entry.shape))
                found.append(tensor.reshape(-1)[first - stored.start : last - stored.start])
        if sum(map(len, found)) != max(0, stop - start):
            raise InputError(
                f"{self.path / STATE_FILE}: does not say where all of {key} is; the checkpoint is damaged: {_REMEDY}"
            )
        values = found[0] if len(found) == 1 else torch.cat(found) if found else torch.empty(0)
        if key.startswith(("model.", "ema.")) and not is_finite(values):
            raise InputError(
                f"{self.path}: {key} has values that are no finite numbers (NaN or infinite), so it can neither "
                f"predict nor train; {_REMEDY}"
            )
        return values

    def tensor(self, key: str) -> Tensor:
        """Return a whole tensor."""
        return self.read(key).reshape(self._entry(key).shape)

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Return the whole tensors of a kind, by NAME."""
        keys = [key for key in self.state.tensors if key.startswith(f"{kind}.")]
        return {key.removeprefix(f"{kind}."): self.tensor(key) for key in keys}

    def has(self, kind: str) -> bool:
        """Return whether there is any tensor of a kind."""
        return any(key.startswith(f"{kind}.") for key in self.state.tensors)

    def _entry(self, key: str) -> TensorEntry:
        if key not in self.state.tensors:
            raise InputError(
                f"{self.path / STATE_FILE}: has no tensor {key}; the checkpoint is of another model: {_REMEDY}"
            )
        return self.state.tensors[key]

    def _stored(self, file: str, name: str) -> Tensor:
        try:
            return self._opened(file).get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.path / file}: {name}: unreadable ({error}); {_REMEDY}") from error


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint after verifying every file that it lists; the ranks share that work, so call it on all.

    Raises InputError naming the file when anything is missing, damaged, or of another format.
    """
    path = _followed(path)
    states: list[CheckpointState] = []
    collectives.run_on_all_ranks(lambda: states.append(read_state(path)))
    [state] = states
    if len(set(collectives.gather_objects(state.own_sha256))) > 1:
        raise InputError(
            f"{path}: is another checkpoint on some processes than on others; the folder has to be the same one on all "
            "nodes, on storage that they share."
        )
    own = list(state.sha256)[collectives.rank() :: collectives.world_size()]
    collectives.run_on_all_ranks(lambda: [_verify(path / name, state.sha256[name]) for name in own])
    return Checkpoint(path, state)


def read_state(path: Path) -> CheckpointState:
    """Return what state.json says; raise InputError when it is missing, damaged, or of another format."""
    path = _followed(path)
    is_checkpoint = (path / STATE_FILE).exists() or STEP_DIR.fullmatch(pointer.target(path).name)
    latest = path.with_name("latest")
    is_missing = not path.is_symlink() and not path.exists()
    if path.name == "best" and is_missing and latest.exists():
        raise InputError(
            f"{path}: no evaluation has scored anything (nothing is held out, its outputs are hidden, or none is made "
            f"yet), so no checkpoint is the best; take {latest}."
        )
    if not path.is_dir() or not is_checkpoint:
        within = next((p for p in (path / "latest", path / "checkpoints" / "latest") if p.exists()), None)
        such_as = within or "runs/x/checkpoints/latest"
        raise InputError(f"{path}: no checkpoint here (a checkpoint is a folder such as {such_as}).")
    try:
        content = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise InputError(
                f"{path / STATE_FILE}: format {content.get('format')!r}, this version reads {FORMAT}; {_REMEDY}"
            )
        state = CheckpointState.model_validate(content)
        if state.own_sha256 != state.digest():
            raise ValueError("its sha256 is not that of its content")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path / STATE_FILE}: unreadable ({reason_of(error)}); the checkpoint is damaged: {_REMEDY}"
        ) from error
    return state


def _followed(path: Path) -> Path:
    """Return the checkpoint that a path leads to, so that messages name the step, not `latest`."""
    return pointer.target(path) if pointer.is_pointer(path) else path


def _verify(file: Path, digest: str) -> None:
    if not file.is_file():
        raise InputError(
            f"{file}: missing, though {STATE_FILE} lists it; the checkpoint is damaged: {_REMEDY}"
        )
    if _sha256(file) != digest:
        raise InputError(f"{file}: its sha256 is not the one in {STATE_FILE}; the file is damaged: {_REMEDY}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def saved_steps(folder: Path) -> list[tuple[int, Path]]:
    """Return the steps that have a checkpoint in a run's folder of them, whole or not, in order."""
    return sorted(
        (int(match[1]), path) for path in folder.glob("*") if (match := STEP_DIR.fullmatch(path.name))
    )


def is_up_to(name: Path, path: Path) -> bool:
    """Return whether a name such as `best` leads to a checkpoint beside another one, and not beyond it."""
    path = pointer.target(path)
    step_of = {other: step for step, other in saved_steps(path.parent)}
    step = step_of.get(pointer.target(name))
    return step is not None and step <= step_of.get(path, -1)


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint is complete and undamaged, after verifying every file of it."""
    try:
        state = read_state(path)
        for name, digest in state.sha256.items():
            _verify(path / name, digest)
    except InputError:
        return False
    return True


def previous_complete(path: Path) -> Path | None:
    """Return the latest complete checkpoint beside a damaged one, if there is one, after verifying every file of it."""
    path = pointer.target(path)
    others = (other for _, other in reversed(saved_steps(path.parent)) if other != path)
    return next(filter(is_whole, others), None)


def dataset_identity(data_path: Path, metadata: DatasetMetadata) -> dict[str, Any]:
    """Return what makes two datasets the same for a model: sizes, and the digest of what lists their content."""
    return {"metadata": metadata.model_dump(mode="json"), "sha256": dataset_sha256(data_path)}


def identity(path: Path) -> str:
    """Return a short name of a checkpoint's exact content, to tell whose predictions are whose."""
    path = pointer.target(path)
    # Some copies have a whole checkpoint under such a name.
    name = f"step_{read_state(path).step}" if path.name in pointer.NAMES else path.name
    return f"{name}-{content_sha256(path)[:12]}"


def content_sha256(path: Path) -> str:
    """Return the digest of a checkpoint's exact content: that of its state file, which has those of the others."""
    return _sha256(pointer.target(path) / STATE_FILE)
