"""What a run costs, in matmul operations."""

from pathlib import Path

from data_pipeline.schema import load_dataset_info
from hrm_dist.config import TrainConfig


def operations_per_step(config: TrainConfig) -> int:
    """Return the matmul operations of a training step, over the global batch. Its dataset must be there."""
    from hrm_dist.model.flops import flops_per_sequence  # torch is slow to load

    metadata = load_dataset_info(Path(config.data_path)).metadata("train")
    return config.global_batch_size * flops_per_sequence(
        config.arch, metadata, config.activation_checkpointing
    )
