"""The model of a checkpoint, for prediction."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.base.errors import InputError
from data_pipeline.schema import WINDOWS, DatasetInfo, DatasetMetadata, load_dataset_info
from data_pipeline.windows import windows_of_puzzles
from hrm_dist.checkpoint.reader import CheckpointState, dataset_identity, open_checkpoint
from hrm_dist.config import ArchConfig
from hrm_dist.model.act import ACTModel
from hrm_dist.model.attention_kernel import use_attention_kernel
from hrm_dist.model.kernels import use_fused_swiglu

_CPU = torch.device("cpu")


def load_model(
    path: Path,
    data_path: Path,
    metadata: DatasetMetadata,
    *,
    ema: bool,
    device: torch.device = _CPU,
    overrides: Mapping[str, object] = MappingProxyType({}),
) -> ACTModel:
    """Return a checkpoint's model in evaluation mode, with the EMA of its weights if asked for and kept.

    overrides: fields of its architecture that shall not be as in training. Raises InputError if the dataset is not the
    one of training. Call it on all ranks, which verify the files together.
    """
    checkpoint = open_checkpoint(path)
    refuse_other_dataset(path, checkpoint.state, data_path, metadata)
    config = checkpoint.state.config
    windows = None
    if config.get("padding") == "skip":
        windows = torch.from_numpy(_windows_of_training(path, checkpoint.state, data_path))
    tensors = checkpoint.tensors("model")
    if ema:
        tensors |= checkpoint.tensors("ema")
    model = ACTModel(arch_to_predict(config["arch"], overrides), metadata, windows=windows)
    model.load_state_dict(tensors)
    return ready_to_predict(model, device)


def arch_to_predict(arch: Mapping[str, object], overrides: Mapping[str, object]) -> ArchConfig:
    """Return the architecture of training as predictions need it, with other fields where asked for."""
    # A chain of training is a start in evaluation.
    return ArchConfig.model_validate({**arch, "num_chains": 1, **overrides})


def ready_to_predict(model: ACTModel, device: torch.device) -> ACTModel:
    """Return the model on a device in evaluation mode, computed by the kernels that predictions use."""
    use_attention_kernel(model, "auto", model.arch, model.seq_len, device)
    use_fused_swiglu(model, "auto", model.dtype, device)
    model.recurrence.casts_once = device.type == "cuda"
    return model.to(device).eval()


def dataset_of_training(path: Path, state: CheckpointState, data_path: Path | None, why: str) -> Path:
    """Return the folder of the dataset of training, where it was then unless another one is given.

    Raise InputError, with the reason why it is needed, if it is not there or not the same.
    """
    folder = data_path or Path(state.config["data_path"])
    if not (folder / "dataset.json").exists():
        raise InputError(
            f"{folder}: no dataset here, and {why}; give the dataset of the training with --data."
        )
    refuse_other_dataset(path, state, folder, load_dataset_info(folder).metadata("train"))
    return folder


def refuse_other_dataset(
    path: Path, state: CheckpointState, data_path: Path, metadata: DatasetMetadata
) -> None:
    """Raise InputError if a dataset is not the one of training: identifiers would mean other puzzles."""
    if state.dataset != dataset_identity(data_path, metadata):
        raise InputError(
            f"{path}: was trained on another dataset than {data_path}, so puzzle identifiers and embeddings do not "
            "belong together; give --data the dataset of the training."
        )


def _windows_of_training(path: Path, state: CheckpointState, data_path: Path) -> NDArray[np.uint8]:
    """Return the windows of a dataset's puzzles; raise InputError if it has none, or others than in training."""
    info = load_dataset_info(data_path)
    refuse_other_windows(path, state, data_path, info)
    return windows_of_puzzles(data_path, info)


def refuse_other_windows(path: Path, state: CheckpointState, data_path: Path, info: DatasetInfo) -> None:
    """Raise InputError if a dataset has no windows, or others than in training."""
    if WINDOWS not in info.documents:
        raise InputError(
            f"{path}: was trained with padding=skip, but {data_path} has no {WINDOWS}, since an earlier version built "
            "it; give --data the same dataset built again, whose shards come out the same."
        )
    if state.environment.get("windows") not in (None, info.documents[WINDOWS]):
        raise InputError(
            f"{path}: was trained with padding=skip and other windows than those of {data_path}, which another version "
            "built; give --data the dataset of the training."
        )
