"""The model of a checkpoint, for prediction."""

from pathlib import Path

import torch

from data_pipeline.base.errors import InputError
from data_pipeline.schema import DatasetMetadata, load_dataset_info
from data_pipeline.windows import windows_of_puzzles
from hrm_dist.checkpoint.reader import CheckpointState, dataset_identity, open_checkpoint
from hrm_dist.config import ArchConfig
from hrm_dist.model.act import ACTModel
from hrm_dist.model.attention_kernel import use_attention_kernel
from hrm_dist.model.kernels import use_fused_swiglu

_CPU = torch.device("cpu")


def load_model(
    path: Path, data_path: Path, metadata: DatasetMetadata, *, ema: bool, device: torch.device = _CPU
) -> ACTModel:
    """Return a checkpoint's model in evaluation mode, with the EMA of its weights if asked for and kept.

    Raises InputError if the dataset is not the one of training. Call it on all ranks, which verify the files together.
    """
    checkpoint = open_checkpoint(path)
    refuse_other_dataset(path, checkpoint.state, data_path, metadata)
    config = checkpoint.state.config
    windows = None
    if config.get("padding") == "skip":
        windows = torch.from_numpy(windows_of_puzzles(data_path, load_dataset_info(data_path)))
    model = ACTModel(ArchConfig.model_validate(config["arch"]), metadata, windows=windows)
    tensors = checkpoint.tensors("model")
    if ema:
        tensors |= checkpoint.tensors("ema")
    model.load_state_dict(tensors)
    use_attention_kernel(model, "auto", model.arch, model.seq_len, device)
    use_fused_swiglu(model, "auto", model.dtype, device)
    model.recurrence.casts_once = device.type == "cuda"
    return model.to(device).eval()


def refuse_other_dataset(
    path: Path, state: CheckpointState, data_path: Path, metadata: DatasetMetadata
) -> None:
    """Raise InputError if a dataset is not the one of training: identifiers would mean other puzzles."""
    if state.dataset != dataset_identity(data_path, metadata):
        raise InputError(
            f"{path}: was trained on another dataset than {data_path}, so puzzle identifiers and embeddings do not "
            "belong together; give --data the dataset of the training."
        )
